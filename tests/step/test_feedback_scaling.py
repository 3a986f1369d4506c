"""FeedbackLoss under autocast and gradient scaling: float32's gradient, at any size of the loss."""

import types

import pytest
import torch

from builders.small import images, small_clip, small_teacher
from diva_rs import FeedbackLoss, Recipe

pytestmark = pytest.mark.parity

FP16, BF16 = torch.float16, torch.bfloat16


def made(weight, **fields):
    recipe = Recipe(draws=2, density=0.5, draw_weights=(weight, weight), anchor=0.01 * weight, **fields)
    # Of the batch's tokens and embeddings, so that it is a term of the whole batch.
    spread = (weight, lambda view: view.pooled.var() + view.tokens.square().mean())
    return FeedbackLoss(small_clip(), small_teacher(), recipe, terms={"spread": spread})


def gradient(feedback):
    return torch.cat([p.grad.double().flatten() for p in feedback.trained_parameters()])


def scaled(feedback, dtype, scale):
    """The gradient as a loop with GradScaler finds it: the scale is taken out again."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    optimizer = torch.optim.SGD(feedback.trained_parameters(), lr=0.0)
    with torch.autocast("cpu", dtype=dtype):
        loss = feedback(images(4), ids=range(4))
    assert loss.dtype == torch.float32
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    return gradient(feedback)


def relative_error(found, weight, **fields):
    exact = made(weight, **fields)
    exact(images(4), ids=range(4)).backward()
    assert torch.isfinite(found).all()
    return float((found - gradient(exact)).norm() / gradient(exact).norm())


@pytest.mark.parametrize(
    "dtype, weight, scale",
    [(FP16, 1.0, 65536.0), (FP16, 1e-4, 32768.0), (FP16, 1e3, 1.0), (BF16, 1.0, 1.0), (BF16, 1e-12, 1.0),
     (BF16, 1e12, 1.0)],
)  # fmt: skip
@pytest.mark.parametrize(
    "fields",
    [{}, {"micro_batch": 2}, {"backend": "torch", "micro_batch": 3}],
    ids=["whole", "parts", "torch"],
)
def test_the_gradient_is_that_of_float32(dtype, weight, scale, fields):
    found = scaled(made(weight, **fields), dtype, scale)
    assert relative_error(found, weight, **fields) < (1e-2 if dtype == FP16 else 5e-2)


def test_as_accelerate_wraps_it_for_fp16():
    convert = pytest.importorskip("accelerate").utils.convert_outputs_to_fp32
    feedback = made(1e-4)
    cast = torch.autocast("cpu", dtype=FP16)(feedback.forward.__func__)
    feedback.forward = types.MethodType(convert(cast), feedback)
    loss = feedback(images(4), ids=range(4))
    (loss * 65536.0).backward()
    assert relative_error(gradient(feedback) / 65536.0, 1e-4) < 1e-2
