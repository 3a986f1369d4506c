"""The teacher on another device than the student, with values.

PyTorch's "lazy" device is a second one on any machine: it computes on the CPU, but holds its tensors apart,
and an operation that mixes both raises.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diva_rs
from builders import small
from builders.diffusion import tiny_dit
from diva_rs import Recipe, Trainer
from diva_rs.native import choose, native_denoiser

pytestmark = pytest.mark.parity

TOLERANCE = {"fp64": 1e-10, "fp32": 1e-5}
RECIPES: dict[str, dict[str, Any]] = {
    "add": {},
    "concat": {"text": "concat", "condition": "all", "denoiser_batch": 4},
    "checkpointing": {"denoiser_checkpointing": True, "micro_batch": 1},
    "sampled-posterior": {"latent": "sample", "text": "mean", "loss": "l1", "min_snr": 5.0},
}


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[torch.device]:
    import torch._lazy.ts_backend

    torch._lazy.ts_backend.init()
    # Its own split gives parts whose gradients are on the CPU: parts by slices instead.
    library = torch.library.Library("aten", "IMPL")
    library.impl("split.Tensor", split, "AutogradLazy")
    library.impl("split_with_sizes", split_with_sizes, "AutogradLazy")
    yield torch.empty(0, device="lazy").device
    library._destroy()


def split(x: Tensor, size: int, dim: int = 0) -> list[Tensor]:
    return [x.narrow(dim, at, min(size, x.shape[dim] - at)) for at in range(0, x.shape[dim], size)]


def split_with_sizes(x: Tensor, sizes: Sequence[int], dim: int = 0) -> list[Tensor]:
    starts = itertools.accumulate(sizes, initial=0)
    return [x.narrow(dim, at, size) for at, size in zip(starts, sizes, strict=False)]


def stirred_clip(dtype: torch.dtype) -> nn.Module:
    clip = small.small_clip(dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # from zeros and ones, where a gradient could be lost unseen
        for parameter in clip.visual.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(dtype))
    return clip


def stepped(teacher: diva_rs.Teacher, recipe: Recipe) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, gradients and updated weights of two batches and one update."""
    dtype = torch.float64 if recipe.precision == "fp64" else torch.float32
    torch.manual_seed(0)
    trainer = Trainer(stirred_clip(dtype), teacher, recipe)
    loss = trainer.accumulate({"images": small.images(2, dtype=dtype), "ids": [3, 4]})
    trainer.accumulate({"images": small.images(2, seed=9, dtype=dtype), "ids": [5, 6]})
    gradients = small.gradients(trainer)
    trainer.apply()
    tensors = {**trainer.parameters(), **gradients, "loss": loss}
    assert {tensor.device.type for tensor in tensors.values()} == {"cpu"}
    return float(loss), gradients, {name: p.detach().clone() for name, p in trainer.parameters().items()}


@pytest.mark.parametrize(("name", "precision"), [*((name, "fp64") for name in RECIPES), ("add", "fp32")])
def test_a_step_is_that_of_one_device(name: str, precision: str, elsewhere: torch.device) -> None:
    recipe = Recipe(backend="native", precision=precision, **RECIPES[name])
    teacher = small.small_teacher(torch.float64 if precision == "fp64" else torch.float32)
    here, there = stepped(teacher, recipe), stepped(teacher.on(elsewhere), recipe)
    assert abs(here[0] - there[0]) <= TOLERANCE[precision] * here[0]
    for mine, expected in zip(there[1:], here[1:], strict=True):
        assert small.worst(mine, expected) <= TOLERANCE[precision]


def test_a_step_in_bf16_is_as_near_to_float32_as_that_of_one_device(elsewhere: torch.device) -> None:
    """Kernels of the two devices round differently, so neither is held against the other."""
    teacher, recipe = small.small_teacher(), Recipe(backend="native", precision="bf16")
    exact = stepped(teacher, recipe.replace(precision="fp32"))
    here, there = stepped(teacher, recipe), stepped(teacher.on(elsewhere), recipe)
    assert abs(there[0] - exact[0]) <= 1e-3 * exact[0]
    assert 0 < small.worst(there[1], exact[1]) <= 1.5 * small.worst(here[1], exact[1])


@pytest.mark.parametrize("label", ["replace", "join"])
def test_a_dit_elsewhere(label: str, elsewhere: torch.device) -> None:
    dit = tiny_dit().double()
    teacher = diva_rs.Teacher(
        dit, vae=small.small_vae(torch.float64), scheduler=small.scheduler(), label=label
    )
    recipe = Recipe(backend="native", precision="fp64", text="none")
    here, there = stepped(teacher, recipe), stepped(teacher.on(elsewhere), recipe)
    assert here[0] == pytest.approx(there[0], rel=1e-10) and small.worst(there[1], here[1]) <= 1e-10


def test_what_crosses_to_the_teacher_and_back(
    elsewhere: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A denoiser is asked and answers where CLIP is, and keeps what it computes where it is itself."""
    teacher = small.small_teacher().on(elsewhere).to_precision("bf16")
    network, crossed, kept = native_denoiser(teacher), [], set()

    def record(name: str, tensor: Tensor) -> Tensor:
        crossed.append((name, tensor.device.type, tensor.dtype))
        return tensor

    def keep(tensor: Tensor) -> Tensor:
        kept.add(tensor.device.type)
        return tensor

    def asked(noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        for name, tensor in (("noisy", noisy), ("timesteps", timesteps), ("condition", condition)):
            record(name, tensor)
        condition.register_hook(lambda gradient: record("gradient", gradient))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            return record("prediction", network.predict(noisy, timesteps, condition))

    monkeypatch.setattr(choose, "native_denoiser", lambda teacher, checkpoint: asked)
    stepped(teacher, Recipe(backend="native", precision="fp32", draws=1))
    order = ("noisy", "timesteps", "condition", "prediction", "gradient")
    one = [(name, "cpu", torch.int64 if name == "timesteps" else torch.float32) for name in order]
    assert crossed == one * 2 and kept == {"lazy"}


def test_the_second_device_refuses_what_lies_on_the_first(elsewhere: torch.device) -> None:
    """The instrument itself: a tensor that did not cross would be seen."""
    there = copy.deepcopy(small.small_unet()).to(elsewhere)
    with pytest.raises(RuntimeError, match="lazy"):
        there.conv_in(torch.zeros(1, 4, 8, 8))
    with pytest.raises(RuntimeError, match=r"lazy|device"):
        torch.zeros(2, 3) @ torch.zeros(3, 2, device=elsewhere)
