"""DCR's contrast, and the kinds of the anchor: the gradient of plain autograd, at any size of pass."""

import logging

import pytest
import torch

from builders.autograd_step import ANCHORS, AutogradStep
from builders.small import gradients, images, small_clip, small_teacher, worst
from diva_rs import ConfigError, FeedbackLoss, Recipe, Stage, Trainer

SAMPLES = 5
FIELDS = {"precision": "fp64", "draws": 2, "choose": 4, "contrast": 0.6, "denoising": 0.0}
CLASS = {"condition": "class", "text": "add", "choose": None}


def trainer_of(terms=None, **fields):
    recipe = Recipe(**{**FIELDS, **fields})
    return Trainer(small_clip(torch.float64), small_teacher(torch.float64), recipe, terms=terms)


def moved(trainer):
    """Away from the original CLIP, where an anchor has no gradient."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in trainer.step_modules.parameters.values():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise, alpha=0.05)
    return trainer


def spread(view):
    error = (view.predictions - view.targets).flatten(2).mean(1)
    return torch.logsumexp(-torch.cdist(error, error), dim=1).mean() + view.pooled.var()


def check(trainer, reference, terms=None):
    losses, expected = reference.run(images(SAMPLES))
    outcome = trainer.train(images(SAMPLES))
    assert list(outcome.losses) == list(losses) == list(trainer.loss_names)
    for name, value in losses.items():
        assert abs(float(outcome.losses[name]) - value) <= 1e-10 * max(abs(value), 1), name
    assert worst(gradients(trainer), expected) <= 1e-10


@pytest.mark.parity
@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("micro_batch", [None, 1, 2])
@pytest.mark.parametrize("denoiser_batch", [None, 1, 4, 14])
def test_the_contrast_has_the_gradient_of_plain_autograd(backend, micro_batch, denoiser_batch):
    trainer = trainer_of(backend=backend, micro_batch=micro_batch, denoiser_batch=denoiser_batch)
    check(trainer, AutogradStep(trainer, None))


@pytest.mark.parity
@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize(
    "fields",
    [
        CLASS,
        {"contrast_group": 2, "denoiser_batch": 20, "draws": 1},
        {"contrast_negatives": 2, "contrast_temperature": 0.5, "denoiser_batch": 3},
        {"contrast_negatives": 3, "contrast_group": 4, "text": "concat", "draw_weights": (0.9, 0.3)},
        {"gradient_checkpointing": True, "denoiser_checkpointing": True, "denoiser_batch": 4},
        {"denoiser_checkpointing": True, "denoising": 0.4},
    ],
    ids=["class", "groups", "negatives", "both", "recompute", "recompute-all"],
)
def test_groups_negatives_conditions_and_recomputation(fields, micro_batch):
    trainer = trainer_of(micro_batch=micro_batch, **fields)
    check(trainer, AutogradStep(trainer, None))


@pytest.mark.parity
@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("kind", ANCHORS)
@pytest.mark.parametrize("contrast", [0.0, 0.6])
def test_it_stands_beside_all_other_terms(kind, contrast, micro_batch):
    terms = {"spread": (0.7, spread)}
    fields = {"denoising": 0.5, "anchor": 0.3, "anchor_kind": kind, "micro_batch": micro_batch}
    trainer = trainer_of(terms, contrast=contrast, **fields)
    reference = AutogradStep(trainer, terms)
    moved(trainer)
    reference.clip.load_state_dict(trainer.clip.state_dict())
    check(trainer, reference, terms)


@pytest.mark.parity
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_feedback_loss_has_the_contrast(micro_batch):
    recipe = Recipe(**FIELDS, micro_batch=micro_batch, contrast_negatives=2)
    feedback = FeedbackLoss(small_clip(torch.float64), small_teacher(torch.float64), recipe)
    twin = trainer_of(contrast_negatives=2)
    twin.accumulate(images(SAMPLES))
    (2 * feedback(images(SAMPLES))).backward()
    modules = feedback.step_modules
    named = {**modules.parameters, **dict(feedback.projector.named_parameters(prefix="projector"))}
    ours = {name: value.grad / 2 for name, value in named.items() if value.grad is not None}
    assert worst(ours, gradients(twin)) <= 1e-10
    assert feedback.samples_seen == SAMPLES


def test_views_replay_and_the_loader_may_give_them():
    def views(trainer, batch, epoch=0):
        trainer.set_epoch(epoch)
        return trainer.step_modules.inputs(batch, None, epoch, None, 0).images[2:]

    trainer, batch = trainer_of(), {"images": images(2, dtype=torch.float64), "ids": [7, 8]}
    first = views(trainer, batch)
    turned = {"images": batch["images"].flip(0), "ids": [8, 7]}
    assert torch.equal(first, views(trainer, turned).flip(0)) and torch.equal(
        first, views(trainer_of(), batch)
    )
    assert not torch.equal(first, views(trainer, batch, 1))
    assert not torch.equal(first, views(trainer_of(seed=1), batch))
    mean, std = (
        torch.tensor(value, dtype=torch.float64).view(1, 3, 1, 1)
        for value in (trainer.step_modules.tower.mean, trainer.step_modules.tower.std)
    )
    assert (first * std + mean).min() >= -1e-12 and (first * std + mean).max() <= 1 + 1e-12  # correct pixels
    official = views(trainer_of(contrast_view="official"), batch)
    assert official.min() >= 0 and official.max() <= 1  # of CLIP's input, clamped
    given = views(trainer, {**batch, "augmented": batch["images"].flip(-1)})
    assert torch.equal(given, trainer.step_modules.inputs(batch, None, 0, None, 0).images[:2].flip(-1))


def test_an_image_alone_has_no_negatives(caplog):
    trainer = trainer_of()
    with caplog.at_level(logging.WARNING, "diva_rs"):
        for _ in range(2):
            assert float(trainer.step(images(1))) >= 0.6 * 0.69  # two positives alone: at least log 2
    [record] = [record for record in caplog.records if record.name == "diva_rs"]
    assert "no negatives" in record.getMessage()


def test_memory_that_does_not_hold_a_row():
    class Small:
        def __call__(self, module, inputs):
            if len(inputs[0]) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    whole, small = trainer_of(), trainer_of(backend="torch")
    small.teacher.unet.register_forward_pre_hook(Small())
    loss, expected = small.accumulate(images(SAMPLES)), whole.accumulate(images(SAMPLES))
    assert float(loss) == pytest.approx(float(expected), rel=1e-10)
    assert worst(gradients(small), gradients(whole)) <= 1e-10
    assert small.step_modules.step.denoiser_limit <= 3


@pytest.mark.parametrize(
    ("fields", "passes"), [({}, 60), ({"denoiser_batch": 2}, 120), ({"contrast_negatives": 2}, 40)]
)
def test_each_image_meets_each_condition_once(fields, passes):
    """B (B + 1) images for each draw where the graph of a row fits, and twice as many where it does not."""
    trainer, seen = trainer_of(backend="torch", denoising=0.3, **fields), []
    trainer.teacher.unet.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    trainer.accumulate(images(SAMPLES))
    assert sum(seen) == passes


def test_the_weights_of_terms_by_stage():
    stages = (
        Stage(train=("projector",), steps=2, denoising=1.0, contrast=0.0),
        Stage(train=("tower",), anchor=0.2),
    )
    trainer = trainer_of(stages=stages, steps=4)
    names = [("loss", "denoising")] * 2 + [("loss", "contrast", "anchor")] * 2
    twins = trainer_of(contrast=0.0, denoising=1.0), trainer_of(anchor=0.2)
    for step, expected in enumerate(names):
        assert trainer.loss_names == expected
        twin = twins[step // 2]
        twin.load_state_dict({**twin.state_dict(), "parameters": trainer.state_dict()["parameters"]})
        twin.samples_seen, twin.steps_done = trainer.samples_seen, trainer.steps_done
        outcome, same = trainer.train(images(3, seed=step), until=3), twin.train(images(3, seed=step))
        assert tuple(outcome.losses) == expected
        assert outcome.losses == same.losses
        assert set(trainer.metrics) == {*expected, "grad_norm", "lr", "epoch", "samples"}
    assert trainer.step_modules.all_loss_names == ("loss", "denoising", "contrast", "anchor")


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"condition": "text", "choose": None}, "condition='text' has none"),
        ({"contrast_group": 1}, "at least 2"),
        ({"contrast": 0.0}, "nothing to minimise"),
        (
            {"stages": (Stage(train=("tower",), steps=1), Stage(train=("tower",), contrast=0.0))},
            "from step 1",
        ),
    ],
)
def test_recipes_that_cannot_be(fields, words):
    with pytest.raises(ConfigError, match=words):
        trainer_of(**fields)


@pytest.mark.hostile
def test_the_contrast_needs_a_diffusion_model():
    with pytest.raises(ConfigError, match=r"unet is None, but contrast=0\.6"):
        Trainer(small_clip(torch.float64), None, Recipe(**FIELDS))
