"""FeedbackLoss in loops of one's own: Trainer's gradients, with torch's optimizer and inside accelerate."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from builders.small import gradients, images, small_clip, small_teacher, worst
from diva_rs import FeedbackLoss, Recipe, Trainer

pytestmark = pytest.mark.parity

FIELDS = {"precision": "fp64", "draws": 2, "density": 0.5, "anchor": 0.05}


def pair(**fields):
    recipe = Recipe(**FIELDS).replace(**fields)
    trainer = Trainer(small_clip(torch.float64), small_teacher(torch.float64), recipe)
    return trainer, FeedbackLoss(small_clip(torch.float64), small_teacher(torch.float64), recipe)


def grads_of(feedback):
    named = {
        **feedback.step_modules.parameters,
        **{f"projector.{n}": p for n, p in feedback.projector.named_parameters()},
    }
    return {name: parameter.grad.clone() for name, parameter in named.items()}


@pytest.mark.parametrize(
    "fields", [{}, {"micro_batch": 2}, {"projector": "mlp", "text": "concat"}, {"condition": "all"}], ids=str
)
def test_loss_and_gradients_are_the_trainers(fields):
    trainer, feedback = pair(**fields)
    batch = images(4, dtype=torch.float64)
    expected = trainer.accumulate(batch)
    loss = feedback(batch)
    loss.backward()
    assert abs(float(loss.detach() - expected)) <= 1e-12
    assert worst(grads_of(feedback), gradients(trainer)) <= 1e-10


def test_the_loss_scales_and_adds_like_any_other():
    trainer, feedback = pair()
    batch = images(4, dtype=torch.float64)
    trainer.accumulate(batch)
    proj = feedback.clip.visual.proj
    (3 * feedback(batch) + proj.square().sum()).backward()
    expected = {name: 3 * value for name, value in gradients(trainer).items()}
    expected["visual.proj"] = expected["visual.proj"] + 2 * proj.detach()
    assert worst(grads_of(feedback), expected) <= 1e-10


def test_a_hand_written_loop_with_adamw_walks_with_the_native_optimizer():
    recipe = Recipe(
        precision="fp64", optimizer="adamw", lr=1e-3, weight_decay=0.01, schedule="constant", grad_clip=1.0
    )
    trainer = Trainer(small_clip(torch.float64), small_teacher(torch.float64), recipe)
    feedback = FeedbackLoss(small_clip(torch.float64), small_teacher(torch.float64), recipe)
    optimizer = torch.optim.AdamW(feedback.trained_parameters(), lr=1e-3, weight_decay=0.01)
    for step in range(4):
        batch = images(4, seed=step, dtype=torch.float64)
        trainer.step(batch)
        feedback(batch).backward()
        torch.nn.utils.clip_grad_norm_(feedback.trained_parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    ours = {name: value.detach() for name, value in trainer.clip.state_dict().items()}
    assert worst(ours, dict(feedback.clip.state_dict())) <= 1e-10


WRAPPED = {
    "checkpoint": lambda feedback, batch: checkpoint(feedback, batch, [1, 2, 3, 4], use_reentrant=False),
    "reentrant": lambda feedback, batch: checkpoint(feedback, batch, [1, 2, 3, 4], use_reentrant=True),
    "compiled": lambda feedback, batch: torch.compile(feedback, backend="eager")(batch, [1, 2, 3, 4]),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_under_what_runs_or_compiles_a_loss_again(wrap):
    trainer, feedback = pair()
    trainer.accumulate(images(4, dtype=torch.float64), ids=[1, 2, 3, 4])
    wrap(feedback, images(4, dtype=torch.float64).requires_grad_()).backward()
    assert worst(grads_of(feedback), gradients(trainer)) <= 1e-10


def test_inside_accelerate():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    trainer, feedback = pair()
    optimizer = torch.optim.SGD(feedback.trained_parameters(), lr=0.0)
    wrapped, optimizer = accelerator.prepare(feedback, optimizer)
    batch = images(4, dtype=torch.float64)
    trainer.accumulate(batch, ids=range(4))
    for start in (0, 2):
        with accelerator.accumulate(wrapped):
            accelerator.backward(wrapped(batch[start : start + 2], ids=range(start, start + 2)))
    assert worst(grads_of(feedback), gradients(trainer)) <= 1e-10


def test_a_callers_autocast_does_not_reach_the_native_step():
    recipe = Recipe(draws=2)
    trainer = Trainer(small_clip(), small_teacher(), recipe)
    plain, cast = trainer.accumulate(images(2)), None
    again = Trainer(small_clip(), small_teacher(), recipe)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = again.accumulate(images(2))
    assert cast.dtype == torch.float32
    # The tower is the caller's own module: everything behind it stays in float32.
    assert abs(float(plain - cast)) < 2e-2


def test_the_draw_counter_survives_a_state_dict():
    _, feedback = pair()
    batch = images(2, dtype=torch.float64)
    feedback(batch)
    state = copy.deepcopy(feedback.state_dict())
    expected = float(feedback(batch).detach())
    assert not any("unet" in name or "teacher" in name for name in state)
    _, other = pair()
    other.load_state_dict(state)
    assert float(other(batch).detach()) == expected


def test_evaluation_does_not_move_the_counter():
    _, feedback = pair()
    feedback.eval()
    batch = images(2, dtype=torch.float64)
    with torch.no_grad():
        first, second = feedback(batch), feedback(batch)
    assert float(first) == float(second)
