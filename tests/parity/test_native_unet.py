"""The native UNet against diffusers' own: prediction and gradient of the condition, of every kind."""

from typing import Any

import pytest
import torch
from torch import Tensor

from builders.diffusion import TEXT_WIDTH, UNETS, tiny_unet
from builders.unets import VARIANTS, Case, error, stirred
from diva_rs.diffusion.sdxl import AddedCondition
from diva_rs.native.inspect import NotNative
from diva_rs.native.unet import native_unet

# Kinds of UNets that run through their Python module, and why.
NOT_NATIVE = {"pixel-wide-text": "TextTimeEmbedding"}

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_prediction_and_gradient_equal_those_of_diffusers(name: str, dtype: torch.dtype) -> None:
    case = Case(name, dtype)
    for mine, reference in zip(case.both(case.ours), case.both(case.theirs), strict=True):
        assert mine.dtype == reference.dtype == dtype
        assert error(mine, reference) <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", VARIANTS)
def test_bf16_is_as_near_to_float32_as_that_of_diffusers(name: str) -> None:
    case, half = Case(name, torch.float32), Case(name, torch.bfloat16)
    exact = case.both(case.theirs)
    ours, theirs = half.both(half.ours), half.both(half.theirs)
    for mine, other, reference in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert error(mine, reference) <= 1.5 * error(other, reference)
    # No absolute bound on the gradient: that of diffusers itself is up to 4e-2 off in such small networks.
    assert error(ours[0], exact[0]) <= 2e-2


def test_every_kind_of_unet_is_native_or_says_why_not() -> None:
    assert {kind for kind, _, _ in VARIANTS.values()} | NOT_NATIVE.keys() == UNETS.keys()
    for kind, reason in NOT_NATIVE.items():
        with pytest.raises(NotNative, match=reason):
            native_unet(tiny_unet(kind))


def test_everything_runs_on_the_meta_device() -> None:
    for name in VARIANTS:
        case = Case(name, torch.float32)
        unet = case.unet.to("meta")
        added = None if case.added is None else AddedCondition(unet.config, {}, lambda: 8)
        native = native_unet(unet, text=case.text.to("meta"), added=added)
        condition = case.condition.to("meta").requires_grad_()
        prediction = native.predict(case.noisy.to("meta"), case.timesteps.to("meta"), condition)
        assert prediction.device.type == "meta" and prediction.shape == case.noisy.shape
        prediction.sum().backward()
        assert condition.grad is not None and condition.grad.shape == condition.shape


def test_weights_are_shared_and_never_learn() -> None:
    case = Case("sd1")
    before = case.both(case.ours)
    with torch.no_grad():
        case.unet.up_blocks[1].attentions[0].transformer_blocks[0].attn2.to_v.weight.mul_(2)
    after = case.both(case.ours)
    assert error(after[0], before[0]) > 1e-3
    assert error(after[0], case.both(case.theirs)[0]) <= 1e-10
    case.unet.zero_grad(set_to_none=True)
    assert all(parameter.requires_grad for parameter in case.unet.parameters())
    case.both(case.ours)
    assert all(parameter.grad is None for parameter in case.unet.parameters())


def saved(predict: Any, condition: Tensor) -> list[torch.Size]:
    shapes: list[torch.Size] = []

    def pack(tensor: Tensor) -> Tensor:
        shapes.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        predict(condition)
    return shapes


def test_nothing_is_saved_before_the_first_cross_attention() -> None:
    # The trainable module of the caller must not make autograd keep anything by itself.
    case = Case("sd1")
    assert saved(case.theirs, case.condition) and not saved(case.ours, case.condition)
    # Without attention on the way down and in the middle, all that is kept is of the last up block's size.
    changes = {"down_block_types": ("DownBlock2D",) * 2, "mid_block_type": None}
    unet = stirred(tiny_unet("sd1", **changes)).eval()
    native = native_unet(unet)
    noisy, timesteps = torch.randn(2, 4, 12, 12), torch.tensor([3, 981])
    condition = torch.randn(2, 5, TEXT_WIDTH, requires_grad=True)
    shapes = saved(lambda condition: native.predict(noisy, timesteps, condition), condition)
    images = [tuple(shape[2:]) for shape in shapes if len(shape) == 4 and shape[-1] not in (1, 3)]
    assert (12, 12) in images and (6, 6) not in images
    frozen = saved(lambda c: unet.requires_grad_(False)(noisy, timesteps, c).sample, condition)
    assert sum(shape.numel() for shape in shapes) <= sum(shape.numel() for shape in frozen)


def test_inputs_of_other_dtypes_are_cast_inside_the_graph() -> None:
    case = Case("sd1", torch.bfloat16)
    condition = case.condition.float().requires_grad_()
    prediction = case.native.predict(case.noisy.double(), case.timesteps.double(), condition)
    assert prediction.dtype == torch.bfloat16
    torch.testing.assert_close(prediction, case.ours(case.condition), rtol=0, atol=0)
    prediction.float().sum().backward()
    assert condition.grad is not None and condition.grad.dtype == torch.float32 and condition.grad.any()
