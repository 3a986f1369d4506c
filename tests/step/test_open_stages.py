"""A run of the caller's own stages: nothing of the package names them."""

import diva_rs
from builders.small import images, small_clip, small_teacher

# Denoiser and projector first, then the tower's last block: as in GenHancer (ICCV 2025).
STAGES = (
    diva_rs.Stage(train=("projector", "denoiser"), steps=3, optimizer="adamw", lr=1e-3),
    diva_rs.Stage(train=({"name": "tower:*resblocks.1*", "lr": 1e-4},), steps=3, optimizer="sgd", lr=1e-2),
)


def test_stages_from_outside_train_one_after_the_other():
    clip, teacher, stages = small_clip(), small_teacher(), []
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    conv = teacher.unet.conv_in.weight.clone()

    class Look(diva_rs.callbacks.Callback):
        def on_train_begin(self, trainer):
            self.trainer = trainer

        def on_step(self, step, metrics):
            moved = any(not value.equal(before[name]) for name, value in clip.state_dict().items())
            stages.append((moved, not teacher.unet.conv_in.weight.equal(conv)))

    result = diva_rs.post_train(
        clip, teacher, [images(4)], stages=STAGES, callbacks=[Look()], log_every=1, progress=False
    )
    assert result.report["steps"] == 6
    assert stages == [(False, True)] * 3 + [(True, True)] * 3
    moved = {name for name, value in clip.state_dict().items() if not value.equal(before[name])}
    assert moved and all("resblocks.1" in name for name in moved)
