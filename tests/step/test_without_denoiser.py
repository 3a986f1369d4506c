"""Training without the denoising loss, and without any diffusion model."""

import copy

import pytest
import torch
from torch.nn.functional import cosine_similarity

from builders.autograd_step import AutogradStep
from builders.small import gradients, images, small_clip, small_teacher, worst
from diva_rs import ConfigError, Draws, FeedbackLoss, Recipe, Stage, Trainer
from diva_rs.captions import KeepTerm
from diva_rs.microworld import Microworld

SAMPLES = 5
FIELDS = {"precision": "fp64", "draws": 2, "choose": 4, "anchor": 0.2}


def spread(view):
    """Reads embeddings alone."""
    return (view.pooled @ view.pooled.T).square().mean()


def error(view):
    """Reads predictions too."""
    return (view.predictions - view.targets).abs().mean() + view.tokens.var()


def trainer_of(terms, teacher=True, **fields):
    unet = small_teacher(torch.float64) if teacher else None
    return Trainer(small_clip(torch.float64), unet, Recipe(**{**FIELDS, **fields}), terms)


@pytest.mark.parity
@pytest.mark.parametrize("denoising", [0.0, 0.3])
@pytest.mark.parametrize("term", [spread, error])
@pytest.mark.parametrize("micro_batch", [None, 1, 2, 3])
def test_the_weight_of_the_denoising_loss(denoising, term, micro_batch):
    terms = {"mine": (0.5, term)}
    trainer = trainer_of(terms, denoising=denoising, micro_batch=micro_batch)
    losses, grads = AutogradStep(trainer, terms).run(images(SAMPLES))
    outcome = trainer.train(images(SAMPLES))
    assert list(outcome.losses) == list(losses) == list(trainer.loss_names)
    assert {name: float(value) for name, value in outcome.losses.items()} == pytest.approx(losses, rel=1e-10)
    assert ("denoising" in losses) is (denoising > 0)
    assert worst(gradients(trainer), grads) <= 1e-10


@pytest.mark.parity
@pytest.mark.parametrize("face", [Trainer, FeedbackLoss])
@pytest.mark.parametrize(
    "fields", [{}, {"micro_batch": 2}, {"gradient_checkpointing": True}, {"backend": "torch"}], ids=str
)
def test_without_a_diffusion_model(face, fields):
    recipe, terms = Recipe(**FIELDS, denoising=0, **fields), {"mine": (0.5, spread)}
    step = face(small_clip(torch.float64), None, recipe, terms=terms)
    run = step.train if face is Trainer else step
    loss = run({"images": images(SAMPLES), "ids": range(SAMPLES)})
    losses = loss.losses if face is Trainer else step.losses
    clip = copy.deepcopy(small_clip(torch.float64))
    found = clip.encode_image(step.step_modules.inputs(images(SAMPLES), None, 0, None, 0).images)
    expected = (
        0.5 * (found @ found.T).square().mean() + 0.2 * (1 - cosine_similarity(found, found.detach())).mean()
    )
    expected.backward()
    if face is FeedbackLoss:
        loss.backward()
    wanted = {name: p.grad for name, p in clip.named_parameters() if p.grad is not None}
    own = {name: p.grad for name, p in step.step_modules.parameters.items() if p.grad is not None}
    assert float(losses["loss"]) == pytest.approx(float(expected.detach()), rel=1e-10)
    assert list(losses) == ["loss", "anchor", "mine"] and worst(own, wanted) <= 1e-10


def test_without_a_diffusion_model_nothing_else_runs():
    trainer = trainer_of({"mine": (1.0, spread)}, teacher=False, denoising=0, backend="native")
    assert trainer.backend == {
        "tower": "native",
        "denoiser": "none (there is no diffusion model)",
        "vae": "none (there is no diffusion model)",
    }
    assert trainer.teacher is None and all(name.startswith("visual.") for name in trainer.parameters())
    assert isinstance(trainer.projector, torch.nn.Identity)
    trainer.step({"pixel_values": images(2).double()})
    with pytest.raises(ConfigError, match="no diffusion model that takes them"):
        trainer.accumulate(
            images(1),
            draws=Draws(torch.zeros(1, 2).long(), torch.zeros(1, 2, 4, 8, 8), torch.zeros(1, 2, 0).long()),
        )


@pytest.mark.parametrize(("term", "runs"), [(spread, False), (error, True)])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_the_denoiser_runs_for_terms_that_read_predictions_alone(term, runs, micro_batch):
    trainer = trainer_of({"mine": (1.0, term)}, denoising=0, micro_batch=micro_batch, backend="torch")
    calls = []
    trainer.teacher.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    trainer.step(images(4))
    assert bool(calls) is runs
    assert all((value.grad is not None) is runs for value in trainer.projector.parameters())


@pytest.mark.parametrize("name", ["predictions", "targets", "timesteps"])
def test_a_term_that_reads_what_no_model_makes_says_so(name):
    trainer = trainer_of({"mine": (1.0, lambda view: getattr(view, name).sum())}, teacher=False, denoising=0)
    with pytest.raises(ConfigError, match=f"this view has no {name}"):
        trainer.step(images(2))


def test_what_cannot_train_is_refused():
    mine = {"mine": (1.0, spread)}
    with pytest.raises(ConfigError, match=r"unet is None, but denoising=1.0.*denoising=0"):
        trainer_of(mine, teacher=False)
    with pytest.raises(ConfigError, match="unet is None, but the denoiser trains"):
        trainer_of(mine, teacher=False, denoising=0, stages=(Stage(train=("tower", "denoiser"), steps=2),))
    for teacher in (True, False):
        with pytest.raises(ConfigError, match="nothing to minimise"):
            trainer_of(None, teacher=teacher, denoising=0, anchor=0)
    with pytest.raises(ConfigError, match="nothing trains in the stage of projector from step 0"):
        trainer_of(mine, teacher=False, denoising=0, projector_warmup=3)


def test_a_copy_of_a_loss_without_a_diffusion_model():
    clip = small_clip()
    keep = KeepTerm(
        clip, lambda texts: torch.tensor([[62, len(text), 63, *[0] * 5] for text in texts]), ["a", "be"]
    )
    feedback = FeedbackLoss(clip, None, Recipe(denoising=0), terms={"keep": (1.0, keep)})
    other = copy.deepcopy(feedback)
    assert torch.equal(other(images(2)), feedback(images(2)))
    assert other.clip is not clip and set(feedback.state_dict()) == set(other.state_dict())


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_the_anchor_alone_leaves_the_weights_as_they_are(backend):
    """AdamW turns any gradient above its eps, rounding noise too, into steps as long as the rate."""
    clip = Microworld().clip()
    before = copy.deepcopy(clip.visual.state_dict())
    recipe = Recipe(denoising=0, condition="class", anchor=1.0, optimizer="adamw", lr=1e-2, backend=backend)
    trainer = Trainer(clip, None, recipe)
    pixels = torch.rand(16, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    for step in range(3):
        trainer.step(pixels, range(16 * step, 16 * step + 16))
    after = clip.visual.state_dict()
    assert max(float((after[name] - old).abs().max()) for name, old in before.items()) <= 1e-6
