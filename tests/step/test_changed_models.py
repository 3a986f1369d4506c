"""Models that are changed after the trainer was made: noticed at the next step, never computed wrongly."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from builders.small import images, small_clip, small_teacher
from diva_rs import FeedbackLoss, Recipe, Teacher, Trainer
from diva_rs.errors import ConfigError, DeviceError

pytestmark = pytest.mark.hostile


class Doubled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


def subclass(conv):
    conv.__class__ = Doubled


def adapter(unet):
    """What LoRA libraries do: a layer in the place of a layer."""
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    block.to_q = nn.Sequential(block.to_q, nn.Identity())


CHANGES = {
    "tower-hook": ("clip", lambda clip: clip.visual.ln_pre.register_forward_hook(lambda *_: None), "hook"),
    "tower-pre-hook": (
        "clip", lambda clip: clip.visual.register_forward_pre_hook(lambda *_: None), "pre-hook",
    ),
    "tower-layer": ("clip", lambda clip: setattr(clip.visual, "ln_pre", nn.Identity()), "ln_pre"),
    "tower-forward": ("clip", lambda clip: setattr(clip.visual.ln_pre, "forward", lambda x: x), "replaced"),
    "tower-weight-norm": ("clip", lambda clip: parametrizations.weight_norm(clip.visual.conv1), "conv1"),
    "unet-hook": ("unet", lambda unet: unet.mid_block.register_forward_hook(lambda *_: None), "mid_block"),
    "unet-backward-hook": (
        "unet", lambda unet: unet.conv_in.register_full_backward_hook(lambda *_: None), "backward hook",
    ),
    "unet-adapter": ("unet", adapter, "to_q"),
    "unet-subclass": ("unet", lambda unet: subclass(unet.conv_in), "conv_in is a .*Doubled"),
    "unet-processor": ("unet", lambda unet: unet.set_attn_processor(Processor()), "Processor"),
    "unet-weights": (
        "unet", lambda unet: setattr(unet.conv_in.weight, "data", unet.conv_in.weight * 2), "another tensor",
    ),
    "vae-hook": ("vae", lambda vae: vae.encoder.conv_in.register_forward_hook(lambda *_: None), "hook"),
    "vae-tiling": ("vae", lambda vae: vae.enable_tiling(), "tiling"),
    "vae-weights": ("vae", lambda vae: adopt(vae), "another tensor"),
}  # fmt: skip


def adopt(vae):
    vae.encoder.conv_in.weight = nn.Parameter(vae.encoder.conv_in.weight.clone(), requires_grad=False)


class Processor:
    def __call__(self, attention, hidden_states, *_, **__):
        return hidden_states


def made(**fields) -> tuple[Trainer, dict]:
    clip, teacher = small_clip(), small_teacher()
    trainer = Trainer(clip, teacher, Recipe(**fields))
    trainer.step(images(2))
    assert set(trainer.backend.values()) == {"native"}
    return trainer, {"clip": clip, "unet": trainer.teacher.unet, "vae": trainer.teacher.vae}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_a_native_network_would_not_see_is_an_error(name):
    part, change, words = CHANGES[name]
    trainer, models = made()
    before = {name: parameter.detach().clone() for name, parameter in trainer.parameters().items()}
    change(models[part])
    with pytest.raises((ConfigError, DeviceError), match=words) as caught:
        trainer.step(images(2))
    assert "make the trainer" in str(caught.value)
    assert trainer.pending == 0 and trainer.steps_done == 1
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainer.parameters().items())


@pytest.mark.parametrize("part", ["clip", "unet", "vae"])
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_model_cast_or_moved_between_steps_is_an_error(part, backend):
    moves = [(torch.float64, DeviceError, r"is now torch.float64 on cpu, but was torch.float32")]
    # PyTorch moves to another kind of device by giving a module other parameters.
    moves += [("meta", (DeviceError, ConfigError), r"is now .* on meta, but was|is another tensor")]
    for move, error, words in moves:
        clip, teacher = small_clip(), small_teacher()
        trainer = Trainer(clip, teacher, Recipe(backend=backend))
        trainer.step(images(2))
        models = {"clip": clip, "unet": trainer.teacher.unet, "vae": trainer.teacher.vae}
        models[part].to(move)
        with pytest.raises(error, match=words):
            trainer.step(images(2))


def test_changes_that_make_no_difference_pass():
    trainer, models = made()
    expected, _ = made()
    models["clip"].train()  # no dropout in it
    models["unet"].train(), models["vae"].train()
    models["clip"].note = "mine"
    models["vae"].decoder.register_forward_hook(lambda *_: None)  # which nobody runs
    models["clip"].load_state_dict(models["clip"].state_dict())
    for _ in range(2):
        assert torch.equal(trainer.step(images(2)), expected.step(images(2)))


def test_dropout_that_is_switched_on_later():
    clip = small_clip(attn_pooler_queries=1, patch_dropout=0.5)
    clip.eval()
    trainer = Trainer(clip, small_teacher(), Recipe(backend="auto"))
    trainer.step(images(2))
    clip.train()
    with pytest.raises(ConfigError, match="train mode"):
        trainer.step(images(2))


def test_python_networks_may_be_hooked_at_any_time():
    trainer = Trainer(small_clip(), small_teacher(), Recipe(backend="torch"))
    trainer.step(images(2))
    called = []
    trainer.teacher.unet.register_forward_hook(lambda *_: called.append("unet"))
    trainer.clip.visual.register_forward_hook(lambda *_: called.append("clip"))
    trainer.clip.visual.ln_pre.register_forward_hook(lambda *_: called.append("clip"))
    trainer.step(images(2))
    assert set(called) == {"unet", "clip"}


def test_feedback_loss_runs_the_tower_with_its_hooks():
    feedback, called = FeedbackLoss(small_clip(), small_teacher()), []
    feedback(images(2))
    feedback.clip.visual.ln_pre.register_forward_hook(lambda *_: called.append(1))
    feedback(images(2)).backward()
    assert called == [1]
    feedback.step_modules.teacher.unet.mid_block.register_forward_hook(lambda *_: None)
    with pytest.raises(ConfigError, match="mid_block has a forward hook"):
        feedback(images(2))


def test_a_hook_for_all_modules():
    trainer, _ = made()
    hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(ConfigError, match="all modules"):
            trainer.step(images(2))
    finally:
        hook.remove()
    trainer.step(images(2))


def test_a_teacher_in_another_dtype_is_a_copy_that_the_caller_cannot_change():
    teacher = small_teacher()
    trainer = Trainer(small_clip(torch.float64), teacher, Recipe(precision="fp64"))
    teacher.unet.mid_block.register_forward_hook(lambda *_: None)
    trainer.step(images(2, dtype=torch.float64))
    assert isinstance(teacher, Teacher) and teacher.dtype == torch.float32
