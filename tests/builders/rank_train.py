"""A run of `post_train` on one of several ranks, and what the runs of `rank_runs` share."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import diva_rs
import diva_rs._base.checkpoint
import diva_rs._base.files
import diva_rs.run.evaluator
from builders.small import images, small_clip, small_teacher
from diva_rs.run.callbacks import Callback

RUN = {
    "precision": "fp64",
    "draws": 2,
    "density": 0.5,
    "anchor": 0.1,
    "optimizer": "adamw",
    "lr": 1e-3,
    "warmup": 3,
    "batch": 12,
    "micro_batch": 2,
    "steps": 10,
    "log_every": 1,
}


def loader(data: TensorDataset | None = None) -> DataLoader[Any]:
    """60 images in shuffled batches of 2, divided among the ranks as a script would do it."""
    data = TensorDataset(images(60, dtype=torch.float64)) if data is None else data
    world, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("RANK", 0)))
    sampler: DistributedSampler[Any] = DistributedSampler(data, num_replicas=world, rank=rank, seed=5)
    return DataLoader(data, batch_size=2, sampler=sampler)


def train(batches: Any = None, seed: int = 0, teacher: Any = True, **fields: Any) -> dict[str, Any]:
    """A run of `post_train`: its weights, losses and report."""
    clip, unet = small_clip(torch.float64, seed=seed), teacher or None
    unet = small_teacher(torch.float64) if unet is True else unet
    batches = loader() if batches is None else batches
    result = diva_rs.post_train(clip, unet, batches, progress=False, **{**RUN, **fields})
    weights = {f"clip.{name}": value.clone() for name, value in clip.visual.state_dict().items()}
    for part, module in (("projector", result.projector), ("denoiser", result.denoiser)):
        state = {} if module is None else module.state_dict()
        weights |= {f"{part}.{name}": value.clone() for name, value in state.items()}
    history = [{name: float(value) for name, value in row.items()} for row in result.history]
    names = ("steps", "samples", "ranks", "interrupted", "stopped", "evaluation")
    report = {name: result.report[name] for name in names if name in result.report}
    return {"weights": weights, "history": history, "report": report}


class At(Callback):
    """Calls ``act`` after a step, on the rank that has this callback: rank 0."""

    def __init__(self, step: int, act: Callable[[], Any]) -> None:
        self.step, self.act = step, act

    def on_step(self, step: int, metrics: Any) -> None:
        if step == self.step:
            self.act()


class Counted(TensorDataset):
    """The images of `loader`; ``act`` is called when rank 1 reads its image number ``at``."""

    def __init__(self, at: int, act: Callable[[], Any]) -> None:
        super().__init__(images(60, dtype=torch.float64))
        self.at, self.act, self.count = at, act, 0

    def __getitem__(self, index: Any) -> Any:
        self.count += 1
        if self.count == self.at and os.environ.get("RANK") == "1":
            self.act()
        return super().__getitem__(index)


def written_from_now() -> list[str]:
    """The paths that this process writes from now on."""
    written: list[str] = []
    replacing = diva_rs._base.files.replacing

    def noted(path: Path) -> Any:
        written.append(str(path))
        return replacing(path)

    for module in (diva_rs._base.files, diva_rs._base.checkpoint, diva_rs.run.evaluator):
        module.replacing = noted  # type: ignore[attr-defined]
    return written


def copied(folder: Path, other: Path) -> Path:
    """A copy of a run's folder, which is rank 0's alone."""
    if os.environ.get("RANK", "0") == "0":
        shutil.copytree(folder, other)
    return other
