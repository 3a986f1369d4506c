"""Native UNets of the published sizes: all on the meta device, two against diffusers with random weights."""

from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from builders.changes import error
from builders.figures import note
from builders.unets import native_unet, stirred_slightly
from diva_rs import Teacher
from diva_rs.diffusion.families.text_time import TextTime
from diva_rs.native import native_denoiser

pytestmark = pytest.mark.parity

_SD = {"sample_size": 64, "cross_attention_dim": 768}
_SD2 = {
    "sample_size": 64,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
_UNCLIP = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2048, "sample_size": 96}
# Published configurations: (what differs from diffusers' defaults, parameters)
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "sd-1.4": (_SD, 859_520_964),
    "sd-2-1-base": (_SD2, 865_910_724),
    "sd-2-1-unclip": ({**_SD2, **_UNCLIP}, 865_910_724 + 2048 * 1280 + 1280 + 1280 * 1280 + 1280),
    "sdxl-base": (
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        2_567_463_684,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_load_and_run_on_the_meta_device(name: str) -> None:
    config, count = PUBLISHED[name]
    with torch.device("meta"):
        unet: Any = diffusers.UNet2DConditionModel(**config)
        assert sum(parameter.numel() for parameter in unet.parameters()) == count
        added = TextTime(unet.config, {}, lambda: 8) if "addition_embed_type" in config else None
        native = native_unet(unet, text=torch.empty(1, 77, unet.config.cross_attention_dim), added=added)
        condition = torch.empty(1, 77, native.condition_width, requires_grad=True)
        side = unet.config.sample_size
        prediction = native.predict(torch.empty(1, 4, side, side), torch.empty(1), condition)
        assert prediction.shape == (1, 4, side, side)
        prediction.sum().backward()
        assert condition.grad is not None


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", ["sd-1.4", "sd-2-1-base"])
def test_published_sizes_equal_diffusers(name: str) -> None:
    torch.manual_seed(0)
    unet: Any = (
        stirred_slightly(diffusers.UNet2DConditionModel(**PUBLISHED[name][0])).eval().requires_grad_(False)
    )
    noisy, timesteps, weight = torch.randn(1, 4, 32, 32), torch.tensor([500]), torch.randn(1, 4, 32, 32)
    condition = torch.randn(1, 77, unet.config.cross_attention_dim)

    def both(predict: Any, dtype: torch.dtype) -> Iterator[Tensor]:
        leaf = condition.to(dtype, copy=True).requires_grad_()
        prediction = predict(noisy.to(dtype), timesteps, leaf)
        (prediction * weight.to(prediction.dtype)).sum().backward()
        assert leaf.grad is not None
        yield prediction.detach()
        yield leaf.grad

    def theirs(*inputs: Tensor) -> Tensor:
        return unet(*inputs).sample  # type: ignore[no-any-return]

    exact = list(both(theirs, torch.float32))
    parts = ("prediction", "gradient at the condition")
    for part, mine, reference in zip(
        parts, both(native_unet(unet).predict, torch.float32), exact, strict=True
    ):
        note(f"{name} UNet", f"{part}, float32", error(mine, reference), 1e-5)
        assert error(mine, reference) <= 1e-5
    # As a step makes it: rounded from the given network, under inputs in float32.
    teacher = Teacher(unet).to_precision("bf16")
    ours = list(both(native_denoiser(teacher).predict, torch.float32))
    unet = teacher.unet
    half = list(both(theirs, torch.bfloat16))
    for part, mine, other, reference in zip(parts, ours, half, exact, strict=True):
        own = error(other, reference)
        note(f"{name} UNet", f"{part}, bf16", error(mine, reference), min(2e-2, 1.5 * own), own)
    for mine, other, reference in zip(ours, half, exact, strict=True):
        assert error(mine, reference) <= min(2e-2, 1.5 * error(other, reference))
