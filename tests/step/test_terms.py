"""Terms of the caller: the gradient of plain autograd, at any micro-batch size."""

import numpy as np
import pytest
import torch

from builders.autograd_step import AutogradStep
from builders.small import gradients, images, small_clip, small_teacher, worst
from diva_rs import ConfigError, FeedbackLoss, Recipe, ShapeError, Trainer
from diva_rs.step.draws import sample_keys

SAMPLES = 5
FIELDS = {"precision": "fp64", "draws": 2, "choose": 4, "anchor": 0.2}


def spread(view):
    """Reads embeddings alone: every pair of the batch counts."""
    pooled = torch.nn.functional.normalize(view.pooled, dim=1)
    return (pooled @ pooled.T).square().mean() + (pooled * view.original).sum(1).std()


def contrast(view):
    """Reads predictions and tokens too: those of one image against those of the others."""
    error = (view.predictions - view.targets).flatten(2).mean(1)
    near = torch.logsumexp(-torch.cdist(error, error), dim=1).mean()
    return near + view.tokens[:, 1:].var() * (1 + view.timesteps.double().mean() / 1000)


SPREAD, CONTRAST = {"spread": (0.3, spread)}, {"pairs": (0.7, contrast)}
TERMS = {"embeddings": SPREAD, "predictions": CONTRAST, "both": {**SPREAD, **CONTRAST}}


def trainer_of(terms, **fields):
    recipe = Recipe(**{**FIELDS, **fields})
    return Trainer(small_clip(torch.float64), small_teacher(torch.float64), recipe, terms=terms)


def check(trainer, outcome, expected, grads):
    assert list(outcome.losses) == list(expected) == list(trainer.loss_names)
    for name, value in expected.items():
        assert abs(float(outcome.losses[name]) - value) <= 1e-10 * max(abs(value), 1), name
    assert worst(gradients(trainer), grads) <= 1e-10


@pytest.mark.parity
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize(
    ("micro_batch", "denoiser_batch"), [(m, d) for m in (None, 1, 2, 3) for d in (None, 3)]
)
def test_a_term_has_the_gradient_of_plain_autograd(terms, backend, micro_batch, denoiser_batch):
    sizes = {"micro_batch": micro_batch, "denoiser_batch": denoiser_batch}
    trainer = trainer_of(terms, backend=backend, **sizes)
    expected = AutogradStep(trainer, terms).run(images(SAMPLES))
    check(trainer, trainer.train(images(SAMPLES)), *expected)


@pytest.mark.parity
@pytest.mark.parametrize(
    "fields",
    [
        {"gradient_checkpointing": True, "denoiser_checkpointing": True},
        {"condition": "class", "text": "add", "choose": None},
        {"text": "concat", "micro_batch": 2},
        {
            "condition": "window",
            "window": 4,
            "choose": None,
            "micro_batch": 4,
            "gradient_checkpointing": True,
        },
    ],
    ids=["recompute", "class", "concat", "window"],
)
def test_conditions_and_recomputation(fields):
    trainer = trainer_of(TERMS["both"], backend="native", **fields)
    expected = AutogradStep(trainer, TERMS["both"]).run(images(SAMPLES))
    check(trainer, trainer.train(images(SAMPLES)), *expected)


@pytest.mark.parity
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_feedback_loss_takes_terms(micro_batch):
    recipe = Recipe(**FIELDS, micro_batch=micro_batch)
    parts = small_clip(torch.float64), small_teacher(torch.float64), recipe
    feedback, twin = FeedbackLoss(*parts, terms=TERMS["both"]), trainer_of(TERMS["both"])
    losses, grads = AutogradStep(twin, TERMS["both"]).run(images(SAMPLES))
    (2 * feedback(images(SAMPLES))).backward()
    assert {name: float(value) for name, value in feedback.losses.items()} == pytest.approx(losses, rel=1e-10)
    named = {
        **feedback.step_modules.parameters,
        **dict(feedback.projector.named_parameters(prefix="projector")),
    }
    ours = {name: value.grad / 2 for name, value in named.items() if value.grad is not None}
    assert worst(ours, grads) <= 1e-10


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_predictions_are_computed_for_terms_that_read_them_only(micro_batch):
    def passes(terms):
        trainer = trainer_of(terms, backend="torch", micro_batch=micro_batch)
        calls = []
        trainer.teacher.unet.register_forward_pre_hook(lambda *_: calls.append(1))
        trainer.train(images(4))
        return len(calls)

    without = passes(None)
    assert passes(SPREAD) == without
    # In one micro-batch the predictions of the step are the term's; in two they are computed before.
    assert passes(CONTRAST) == (without if micro_batch is None else 2 * without)


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_term_sees_the_whole_batch_once(micro_batch):
    seen = []

    def look(view):
        seen.append((view.pooled.shape, view.tokens.shape, view.predictions.shape, view.timesteps.shape))
        return view.pooled.sum() * 0

    trainer_of({"look": (1.0, look)}, micro_batch=micro_batch).train(images(4))
    assert seen == [((4, 20), (4, 17, 32), (4, 2, 4, 8, 8), (4, 2))]


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("face", [Trainer, FeedbackLoss])
def test_a_term_sees_the_samples_keys_and_the_epoch(face, micro_batch):
    seen = []

    def look(view):
        seen.append((view.keys.dtype, view.keys.tolist(), view.epoch))
        return view.pooled.sum()

    recipe = Recipe(**FIELDS, micro_batch=micro_batch)
    models = small_clip(torch.float64), small_teacher(torch.float64)
    step = face(*models, recipe, terms={"look": (1.0, look)})
    run = step.train if isinstance(step, Trainer) else step
    ids = ["a", "b", "c"]
    run(images(3), ids)
    step.set_epoch(4)
    run(images(2))
    run(images(2))
    numbers = sample_keys(ids).tolist()
    assert seen == [(np.uint64, numbers, 0), (np.uint64, [0, 1], 4), (np.uint64, [2, 3], 4)]


def test_gradients_of_batches_and_terms_add_up():
    whole = trainer_of(None)
    for batch in (images(3, seed=1), images(2, seed=2)):
        whole.train(batch)
    constant = trainer_of({"mine": (0.5, lambda view: torch.ones((), dtype=torch.float64))})
    outcomes = [constant.train(batch) for batch in (images(3, seed=1), images(2, seed=2))]
    assert all(float(outcome.losses["mine"]) == 0.5 for outcome in outcomes)
    assert worst(gradients(constant), gradients(whole)) <= 1e-12  # a constant has no gradient
    assert constant.metrics["loss"] - whole.metrics["loss"] == pytest.approx(0.5)
    assert float(constant.apply().losses["mine"]) == 0.5


@pytest.mark.parametrize("name", ["loss", "anchor", "lr", "a b", ""])
def test_a_name_must_be_free(name):
    with pytest.raises(ConfigError, match="terms has the name"):
        trainer_of({name: (1.0, spread)})


@pytest.mark.parametrize("given", [spread, (1.0,), (spread, 1.0), (1.0, "spread")])
def test_a_term_is_a_weight_and_a_function(given):
    with pytest.raises(ConfigError, match="give"):
        trainer_of({"mine": given})


def test_a_term_returns_one_number_and_its_error_comes_back():
    trainer = trainer_of({"mine": (1.0, lambda view: view.pooled.sum(1))})
    with pytest.raises(ShapeError, match="mine"):
        trainer.train(images(2))
    trainer = trainer_of({"mine": (1.0, lambda view: view.pooled.no_such_method())})
    with pytest.raises(AttributeError, match="no_such_method"):
        trainer.train(images(2))
    assert trainer.pending == 0 and not gradients(trainer)
