"""post_train: loop, data feed, evaluation, callbacks, folder and resume."""
