"""Native DiTs of the published sizes: all on the meta device, one against diffusers with random weights."""

import diffusers
import pytest
import torch
from torch import nn

from builders.changes import error
from builders.dits import inputs, native_dit, theirs, through
from builders.figures import note
from diva_rs import Teacher
from diva_rs.native import native_denoiser

pytestmark = pytest.mark.parity

PUBLISHED = {"DiT-XL-2-256": 32, "DiT-XL-2-512": 64}


def published(name: str) -> nn.Module:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=16,
        attention_head_dim=72,
        in_channels=4,
        out_channels=8,
        sample_size=PUBLISHED[name],
    ).eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_on_meta(name: str) -> None:
    with torch.device("meta"):
        dit = published(name)
        noisy, leaf = torch.empty(2, 4, *[PUBLISHED[name]] * 2), torch.empty(2, 77, 1152, requires_grad=True)
        prediction = native_dit(dit).predict(noisy, torch.empty(2, dtype=torch.int64), leaf)
    assert prediction.shape == noisy.shape
    assert torch.autograd.grad(prediction.sum(), leaf)[0].shape == leaf.shape


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_published_size() -> None:
    torch.manual_seed(0)
    dit = published("DiT-XL-2-256")
    args = inputs(dit, length=77)
    noisy, timesteps, condition = (tensor[:1] for tensor in args)
    native = native_dit(dit)
    exact = through(theirs(dit), noisy, timesteps, condition)
    parts = ("prediction", "gradient at the condition")
    ours = through(native.predict, noisy, timesteps, condition)
    for part, found, expected in zip(parts, ours, exact, strict=True):
        note("DiT-XL/2", f"{part}, float32", error(found, expected), 1e-5)
        assert error(found, expected) <= 1e-5
    del native
    # As a step makes it: rounded from the given network, under inputs in float32.
    teacher = Teacher(dit).to_precision("bf16")
    library = through(theirs(teacher.unet), noisy.bfloat16(), timesteps, condition.bfloat16())
    ours = through(native_denoiser(teacher).predict, noisy, timesteps, condition)
    for part, found, other, expected in zip(parts, ours, library, exact, strict=True):
        own = error(other, expected)
        note("DiT-XL/2", f"{part}, bf16", error(found, expected), min(2e-2, 1.5 * own), own)
        assert error(found, expected) <= min(2e-2, 1.5 * own)
