"""Runs over several ranks that end early, are resumed, or skip steps."""

import os
import signal
from pathlib import Path
from typing import Any

import torch

import diva_rs
from builders.rank_train import At, Counted, copied, loader, train
from builders.small import images


def other_teacher(place: Path, world: int) -> None:
    """Every rank has another diffusion model."""
    from builders import small

    rank = int(os.environ["RANK"])
    unet = small.small_unet
    small.small_unet = lambda dtype: unet(dtype, seed=rank)
    train()


def _refuse() -> None:
    raise ValueError("no image behind this door")


def raising(place: Path, world: int) -> None:
    """Rank 1's dataset raises in step 7; a checkpoint is written every 4."""
    train(loader(data=Counted(40, _refuse)), output_dir=place / "raising", checkpoint_every=4)


def killed(place: Path, world: int) -> None:
    """Rank 1 is killed in the middle of step 6; a checkpoint is written every 4."""
    data = Counted(33, lambda: os.kill(os.getpid(), signal.SIGKILL))
    train(loader(data=data), output_dir=place / "killed", checkpoint_every=4)


def resumed(place: Path, world: int) -> dict[str, Any]:
    """The run of `killed` goes on, in a copy of its folder."""
    folder = copied(place / "killed", place / f"resumed-{world}")
    return train(output_dir=folder, checkpoint_every=4)


def begun(place: Path, world: int) -> dict[str, Any]:
    """A run that Ctrl-C ends in its second pass, after step 7."""
    stop = At(7, lambda: os.kill(os.getpid(), signal.SIGINT))
    return train(callbacks=[stop], output_dir=place / "begun")


def continued(place: Path, world: int) -> dict[str, Any]:
    """The run of `begun` goes on, in a copy of its folder."""
    return train(output_dir=copied(place / "begun", place / f"continued-{world}"))


def interrupted(place: Path, world: int) -> dict[str, Any]:
    """Ctrl-C on rank 0 alone."""
    stop = At(3, lambda: os.kill(os.getpid(), signal.SIGINT))
    return train(callbacks=[stop])


def terminated(place: Path, world: int) -> None:
    """A launcher ends both ranks, after step 3 and while the first image of step 4 is read."""

    def end() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    train(loader(data=Counted(19, end)), callbacks=[At(3, end)], output_dir=place / "terminated")


def _spoil(steps: range, **fields: Any) -> dict[str, Any]:
    """Five steps of two images per rank, in some of which rank 1's denoiser predicts NaN."""
    from builders import small

    rank, make, step = int(os.environ["RANK"]), small.small_unet, diva_rs.Trainer.train
    calls: list[int] = []

    def unet(dtype: torch.dtype) -> Any:
        made = make(dtype)
        spoilt = rank == 1
        made.register_forward_hook(
            lambda module, inputs, output: (
                (output[0] * torch.nan,) if spoilt and len(calls) in steps else None
            )
        )
        return made

    def counted(self: Any, *args: Any, **given: Any) -> Any:
        calls.append(1)
        return step(self, *args, **given)

    small.small_unet, diva_rs.Trainer.train = unet, counted  # type: ignore[method-assign]
    batches = [
        {
            "images": images(2, seed=10 * rank + i, dtype=torch.float64),
            "ids": [f"{rank}-{i}a", f"{rank}-{i}b"],
        }
        for i in range(5)
    ]
    return train(batches, batch=None, steps=5, **fields)


def spoilt(place: Path, world: int) -> dict[str, Any]:
    """Rank 1's third step is not finite."""
    return _spoil(range(3, 4))


def spoilt_on(place: Path, world: int) -> None:
    """From its third step on rank 1 is not finite, and one update in a row may be skipped."""
    _spoil(range(3, 9), max_skipped=1)
