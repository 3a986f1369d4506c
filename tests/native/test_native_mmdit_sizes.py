"""Native Flux and SD3 transformers of published sizes: all on the meta device, blocks of two in numbers."""

from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from builders.changes import error
from builders.dits import through
from builders.figures import note
from builders.mmdits import inputs, native_mmdit, theirs, widths
from diva_rs import Teacher
from diva_rs.native import native_denoiser

pytestmark = pytest.mark.parity

FLUX = diffusers.FluxTransformer2DModel
SD3 = diffusers.SD3Transformer2DModel
_SD3: dict[str, Any] = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}
PUBLISHED: dict[str, tuple[type[nn.Module], dict[str, Any], tuple[int, int]]] = {
    "FLUX.1-schnell": (FLUX, {}, (128, 128)),
    "GenHancer": (FLUX, {"guidance_embeds": True, "num_layers": 2, "num_single_layers": 4}, (28, 28)),
    "SD3-medium": (SD3, _SD3, (128, 128)),
    "SD3.5-medium": (
        SD3,
        _SD3 | {"pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))},
        (128, 96),
    ),
    "SD3.5-large": (
        SD3,
        _SD3
        | {
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "qk_norm": "rms_norm",
        },
        (128, 128),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_on_meta(name: str) -> None:
    cls, config, size = PUBLISHED[name]
    with torch.device("meta"):
        model = cls(**config)
        noisy = torch.empty(1, 16, *size)
        leaf = torch.empty(1, 77, sum(widths(model)), requires_grad=True)
        prediction = native_mmdit(model).predict(noisy, torch.empty(1), leaf)
    assert prediction.shape == noisy.shape
    assert torch.autograd.grad(prediction.sum(), leaf)[0].shape == leaf.shape


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", ["FLUX.1-schnell", "SD3-medium"])
def test_blocks_of_the_published_width(name: str) -> None:
    cls, config, _ = PUBLISHED[name]
    torch.manual_seed(0)
    # One block of each kind: SD3's last one ends the text, those before it do not.
    model = cls(**config | ({"num_layers": 1, "num_single_layers": 1} if cls is FLUX else {"num_layers": 2}))
    model.eval().requires_grad_(False)
    noisy, timesteps, condition = (tensor[:1] for tensor in inputs(model, (32, 24), 77))
    exact = through(theirs(model), noisy, timesteps, condition)
    parts = ("prediction", "gradient at the condition")
    ours = through(native_mmdit(model).predict, noisy, timesteps, condition)
    for part, found, expected in zip(parts, ours, exact, strict=True):
        note(f"{name}, a block of each kind", f"{part}, float32", error(found, expected), 1e-5)
        assert error(found, expected) <= 1e-5
    # As a step makes it: rounded from the given network, under inputs in float32.
    teacher = Teacher(model).to_precision("bf16")
    library = through(theirs(teacher.unet), noisy.bfloat16(), timesteps, condition.bfloat16())
    ours = through(native_denoiser(teacher).predict, noisy, timesteps, condition)
    for part, found, other, expected in zip(parts, ours, library, exact, strict=True):
        own = error(other, expected)
        note(
            f"{name}, a block of each kind",
            f"{part}, bf16",
            error(found, expected),
            min(2e-2, 1.5 * own),
            own,
        )
        assert error(found, expected) <= min(2e-2, 1.5 * own)
