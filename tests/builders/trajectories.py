"""One run of 50 steps, made in several ways that must not differ: tests/run/test_trajectories.py.

What it starts from is the same on every machine: weights and text are NumPy's random bits, the images are
rendered in integers, and the draws and crops are keyed by the seed and the images' names.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import diva_rs
from builders.small import SIDE, WIDTH, scheduler, small_clip, small_vae
from diva_rs.data import folder_loader
from diva_rs.microworld import World, render
from diva_rs.run.callbacks import Callback

STEPS, BATCH, IMAGES = 50, 8, 96  # a pass is 12 steps: the run crosses its end four times
DTYPES = {"float64": torch.float64, "float32": torch.float32}
PRECISIONS = {"float64": "fp64", "float32": "fp32"}
NUMBERS = ("loss", "denoising", "grad_norm")  # the anchor's part alone is rounding noise at the first step
FIELDS = {
    "draws": 1,
    "density": 0.5,
    "anchor": 0.1,
    "optimizer": "adamw",
    "lr": 1e-3,
    "eps": 1e-6,  # a smaller one makes steps of the rounding errors of gradients that are zero
    "warmup": 5,
    "steps": STEPS,
    "batch": BATCH,
    "log_every": 1,
}


class Trajectory(NamedTuple):
    """What a run leaves: one row of numbers per step, and the trained weights."""

    history: list[dict[str, float]]
    weights: dict[str, Tensor]

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """The numbers of that name, (50,)."""
        return np.array([row[name] for row in self.history])


def pictures(root: Path) -> Path:
    """A folder of the microworld's first scenes."""
    root.mkdir()
    world = World("train", IMAGES)
    for number in range(IMAGES):
        Image.fromarray(np.asarray(render(world.scene(number)))).save(root / f"{number}.png")
    return root


def keyed(module: nn.Module, seed: int, dtype: torch.dtype) -> nn.Module:
    """``module`` with weights that are the same on every processor. PyTorch's normals differ in their last
    bits from one instruction set to another."""
    rng = np.random.default_rng(seed)
    for parameter in module.parameters():
        spread = (3.0 / parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.1
        centre = 1.0 if parameter.dim() == 1 and bool((parameter == 1).all()) else 0.0  # a norm's scale
        parameter.data = torch.from_numpy(rng.uniform(centre - spread, centre + spread, parameter.shape))
    return module.to(dtype)


def unet() -> nn.Module:
    """The smallest SD-style UNet: attention to the condition in the middle alone."""
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        attention_head_dim=2,
        cross_attention_dim=WIDTH,
        use_linear_projection=True,
    )


def train(
    photos: Path, dtype: str, loaded: int = BATCH, workers: int = 0, callbacks: Any = (), **fields: Any
) -> Trajectory:
    """`post_train` over batches of ``loaded`` images; what is logged and what was trained."""
    clip = keyed(small_clip(), 0, DTYPES[dtype])
    text = np.random.default_rng(3).uniform(-1.7, 1.7, (1, 40, WIDTH))
    teacher = diva_rs.Teacher(
        keyed(unet(), 1, DTYPES[dtype]),
        vae=keyed(small_vae(), 2, DTYPES[dtype]),
        scheduler=scheduler(),
        text_condition=torch.from_numpy(text).to(DTYPES[dtype]),
    )
    loader = folder_loader(photos, batch=loaded, size=SIDE, workers=workers)
    settings = {**FIELDS, "precision": PRECISIONS[dtype], **fields}
    result = diva_rs.post_train(clip, teacher, loader, progress=False, callbacks=callbacks, **settings)
    weights = {f"clip.{name}": value.clone() for name, value in clip.visual.state_dict().items()}
    weights |= {f"projector.{name}": value.clone() for name, value in result.projector.state_dict().items()}
    history = [{name: float(row[name]) for name in NUMBERS} for row in result.history]
    return Trajectory(history, weights)


class _CtrlC(Callback):
    """Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step: int, metrics: Any) -> None:
        if step == self.step:
            raise KeyboardInterrupt


def resumed(photos: Path, dtype: str) -> Trajectory:
    """Ended after step 25, and gone on with by new objects."""
    place = photos.parent / f"resumed-{dtype}"
    first = train(photos, dtype, callbacks=[_CtrlC(STEPS // 2)], output_dir=place)
    assert len(first.history) == STEPS // 2
    return train(photos, dtype, output_dir=place)


# The ways to make the run. "8x1" is the one that the others are held against: a step is one batch of eight.
ROWS: dict[str, Callable[[Path, str], Trajectory]] = {
    "8x1": train,
    "1x8 accumulated": lambda photos, dtype: train(photos, dtype, loaded=1),
    "2x4 accumulated": lambda photos, dtype: train(photos, dtype, loaded=2),
    "1x8 micro-batches": lambda photos, dtype: train(photos, dtype, micro_batch=1),
    "2x4 micro-batches": lambda photos, dtype: train(photos, dtype, micro_batch=2),
    "resumed at step 25": resumed,
    "2 workers": lambda photos, dtype: train(photos, dtype, workers=2),
    "4 workers": lambda photos, dtype: train(photos, dtype, workers=4),
}
