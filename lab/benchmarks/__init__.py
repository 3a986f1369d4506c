"""Benchmarks of the training step on this machine: ``python -m lab bench``, ``make bench``.

Every figure is a comparison within one run. Four contestants take turns: the step as the official code
computes it, the best plain PyTorch, and ours without and with cached latents (`lab.benchmarks.contestants`).
`sizes` holds the model sizes, `run` the rows, `table` the page.
"""
