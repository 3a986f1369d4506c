"""Stages: which parameters move, with which optimizer; resuming inside any of them."""

import copy

import pytest
import torch

from builders.autograd_step import AutogradStep
from builders.small import gradients, images, small_clip, small_teacher, worst
from diva_rs import ConfigError, Recipe, Stage, Trainer

FIELDS = {"precision": "fp64", "draws": 2, "choose": 4, "optimizer": "adamw", "lr": 1e-3}
STAGES = (
    Stage(train=("projector", "denoiser"), steps=2, lr=1e-2),
    Stage(train=("projector", {"name": "tower:*resblocks.1*", "lr": 1e-4, "weight_decay": 0.1}), steps=2),
    Stage(train=("tower",), steps=1, continues=True),
    Stage(train=("tower", "denoiser"), optimizer="sgd", schedule="constant", lr=1e-2),
)


def trainer_of(dtype=torch.float64, **fields):
    return Trainer(small_clip(dtype), small_teacher(dtype), Recipe(**{**FIELDS, **fields}))


def moved(trainer, before):
    return {name for name, value in trainer.parameters().items() if not torch.equal(value, before[name])}


def kept(trainer):
    return {name: value.detach().clone() for name, value in trainer.parameters().items()}


def run(trainer, first, last):
    return [float(trainer.step(images(3, seed=step, dtype=torch.float64))) for step in range(first, last)]


def test_each_stage_moves_its_groups_alone():
    trainer = trainer_of(stages=STAGES)
    parameters = trainer.parameters()
    flags = {name: value.requires_grad for name, value in parameters.items()}
    denoiser = {name for name in parameters if name.startswith("denoiser.")}
    projector = {name for name in parameters if name.startswith("projector.")}
    tower = set(parameters) - denoiser - projector
    part = {name for name in tower if "resblocks.1" in name}
    trained = [projector | denoiser] * 2 + [projector | part] * 2 + [tower] + [tower | denoiser] * 2
    for step, groups in enumerate(trained):
        assert trainer.stage == (0, 0, 1, 1, 2, 3, 3)[step]
        before = kept(trainer)
        run(trainer, step, step + 1)
        with_grad = {name for name, value in parameters.items() if value.grad is not None}
        assert with_grad <= groups and moved(trainer, before) == with_grad
        assert len(with_grad) > 0.8 * len(groups)  # all but what neither tokens nor embedding depend on
        assert flags == {name: value.requires_grad for name, value in parameters.items()}


@pytest.mark.parametrize("stop", range(1, 7))
def test_a_run_resumes_in_any_stage(stop):
    straight, first = trainer_of(stages=STAGES), trainer_of(stages=STAGES)
    expected = run(straight, 0, 7)
    losses = run(first, 0, stop)
    state = copy.deepcopy(first.state_dict())
    resumed = Trainer(small_clip(torch.float64, seed=9), small_teacher(torch.float64), first.recipe)
    resumed.load_state_dict(state)
    assert resumed.stage == first.stage
    assert losses + run(resumed, stop, 7) == expected
    assert all(torch.equal(value, kept(straight)[name]) for name, value in kept(resumed).items())


@pytest.mark.parity
@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("fields", [{}, {"condition": "text", "choose": None}], ids=["random", "text"])
def test_a_denoiser_that_trains_has_the_gradient_of_plain_autograd(micro_batch, fields):
    stage = Stage(train=("projector", "tower", "denoiser"))
    trainer = trainer_of(stages=(stage,), micro_batch=micro_batch, denoiser_batch=3, **fields)
    assert trainer.backend["denoiser"] == "torch (it trains)"
    if fields:
        whole = trainer_of(stages=(stage,), **fields)
        for made in (trainer, whole):
            made.accumulate(images(5))
        assert sum(name.startswith("denoiser.") for name in gradients(whole)) > 20
        assert worst(gradients(trainer), gradients(whole)) <= 1e-10
        return
    losses, expected = AutogradStep(trainer, None, train_denoiser=True).run(images(5))
    outcome = trainer.train(images(5))
    assert float(outcome.losses["loss"]) == pytest.approx(losses["loss"], rel=1e-10)
    assert sum(name.startswith("denoiser.") for name in expected) > 20
    assert worst(gradients(trainer), expected) <= 1e-10


def test_a_frozen_denoiser_never_gets_a_gradient():
    trainer = trainer_of(stages=(Stage(train=("denoiser",), steps=1), Stage(train=("projector",))))
    run(trainer, 0, 1)
    assert any(p.grad is not None for p in trainer.teacher.unet.parameters())
    run(trainer, 1, 2)
    assert all(p.grad is None for p in trainer.teacher.unet.parameters())
    assert "denoiser.conv_in.weight" not in trainer_of().parameters()


def test_a_warm_up_is_the_short_form_of_two_stages():
    short = trainer_of(projector_warmup=2, steps=5, warmup=1)
    stages = (Stage(train=("projector",), steps=2), Stage(train=("projector", "tower"), continues=True))
    long = trainer_of(stages=stages, steps=5, warmup=1)
    assert run(short, 0, 5) == run(long, 0, 5)
    assert all(torch.equal(value, kept(long)[name]) for name, value in kept(short).items())


@pytest.mark.parametrize(
    ("group", "words"),
    [("tower:*nothing*", "no trainable parameter"), ("vae", "there are tower, projector")],
)
def test_a_group_must_match(group, words):
    with pytest.raises(ConfigError, match=words):
        trainer_of(stages=(Stage(train=(group,)),))


def test_a_denoiser_that_trains_needs_weights_in_the_students_dtype():
    stage = Stage(train=("denoiser",))
    with pytest.raises(ConfigError, match='backend="native"'):
        trainer_of(stages=(stage,), backend="native")
    clip, teacher = small_clip(), small_teacher()
    with pytest.raises(ConfigError, match="needs torch"):
        Trainer(clip, small_teacher(torch.bfloat16), Recipe(precision="bf16", stages=(stage,)))
    trainer = Trainer(clip, teacher, Recipe(precision="bf16", stages=(stage,), lr=1e-2))
    seen = []
    trainer.teacher.unet.mid_block.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    before = teacher.unet.conv_in.weight.detach().clone()
    trainer.step(images(2))
    assert set(seen) == {torch.bfloat16} and teacher.unet.conv_in.weight.dtype == torch.float32
    assert not torch.equal(teacher.unet.conv_in.weight, before)  # the module given trains in place


def test_a_denoiser_that_trains_is_the_callers_own():
    teacher, stage = small_teacher(torch.float64).on("meta"), Stage(train=("denoiser",))
    with pytest.raises(ConfigError, match="this teacher runs a copy of it on meta"):
        Trainer(small_clip(torch.float64), teacher, Recipe(**FIELDS, stages=(stage,)))
