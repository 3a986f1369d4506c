"""DCR's contrast, and the kinds of the anchor: the gradient of plain autograd, at any size of pass."""

import logging

import pytest
import torch

from builders.autograd_step import AutogradStep
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
        {"contrast_negatives": 3, "contrast_group": 4, "text": "concat", **{"draw_weights": (0.9, 0.3)}},
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
@pytest.mark.parametrize("kind", ["cosine", "squared", "kernel"])
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
