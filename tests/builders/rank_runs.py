"""Runs over several ranks on one machine: `python -m builders.rank_runs FOLDER NAME...`.

The parent imports once and forks the ranks of each run, which find each other by the variables that torchrun
sets. Rank r of a run leaves what it returned in FOLDER/NAME.r.pt, and what it wrote in FOLDER/NAME.r.log.
"""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tarfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import diva_rs
import diva_rs._base.checkpoint
import diva_rs._base.files
import diva_rs.run.evaluator
from builders import genhancer as genhancers
from builders.dcr import stages
from builders.judged import judged
from builders.rank import two_ranks
from builders.small import images, small_clip, small_teacher
from builders.texts import tokenize
from builders.unclip import unclip_teacher
from diva_rs.captions import CaptionTerm, KeepTerm
from diva_rs.data import decode, folder, folder_loader, shard_loader
from diva_rs.run.callbacks import Callback

LIMIT = 60.0  # seconds within which the loss of a rank must have ended the others
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


def photos(root: Path, count: int) -> Path:
    """A folder of ``count`` images of one colour each."""
    root.mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", (40, 40), (20 * i, 255 - 20 * i, 7 * i)).save(root / f"{i}.png")
    return root


def decoded_names() -> list[str]:
    """The names of the images that the readers decode from now on."""
    names: list[str] = []

    def noted(source: Any, name: str, *rest: Any) -> Any:
        names.append(Path(name).name)
        return decode.decode(source, name, *rest)

    folder.decode = noted
    return names


def from_folder(place: Path, world: int) -> dict[str, Any]:
    """One pass over eleven images: one rank has six of them."""
    names = decoded_names()
    batches = folder_loader(place / "photos", batch=4, size=32, workers=0, scale=None)
    return {**train(batches, batch=8, steps=None), "decoded": names}


def from_shards(place: Path, world: int) -> dict[str, Any]:
    """One pass over shards of five, three and one images."""
    names = decoded_names()
    batches = shard_loader(str(place / "{0..2}.tar"), batch=2, size=32, workers=0, scale=None)
    return {**train(batches, batch=None, steps=None), "decoded": names}


def unequal(place: Path, world: int, **fields: Any) -> dict[str, Any]:
    """Batches of unequal sizes, one more for rank 0 than for rank 1. CLIP trains from step 2 on."""
    fields = {"batch": None, "steps": None, "projector_warmup": 1, **fields}
    sizes = (3, 1, 2, 5, 4, 1, 2)
    batches = [images(size, seed=size + i, dtype=torch.float64) for i, size in enumerate(sizes)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    named = [
        {"images": batch, "ids": list(range(start, start + len(batch)))}
        for batch, start in zip(batches, starts, strict=True)
    ]
    if world > 1:
        return train(named[int(os.environ["RANK"]) :: world], **fields)
    pairs = [torch.cat(batches[i : i + 2]) for i in range(0, len(batches), 2)]  # what two ranks take together
    return train(pairs, **fields)


def captions(place: Path, world: int) -> dict[str, Any]:
    """As `unequal`, on judgements of all images but three, and without a diffusion model."""
    clip = small_clip(torch.float64)
    terms = {
        "captions": (0.3, CaptionTerm(judged(18, missing=(1, 7, 13)), clip, tokenize)),
        "keep": (1.0, KeepTerm(clip, tokenize, ["a cat", "a dog"])),
    }
    return unequal(place, world, teacher=False, denoising=0, terms=terms, projector_warmup=0)


def un2clip(place: Path, world: int) -> dict[str, Any]:
    """un2CLIP's step: a pooled condition without a projector."""
    fields = {"recipe": "un2clip-openai-vit-l-14-224", "image_size": None, "density": None, "warmup": 0}
    return train(teacher=unclip_teacher(torch.float64), **fields)


def dcr(place: Path, world: int) -> dict[str, Any]:
    """DCR's two stages: negatives are the others of three images that lie on one rank."""
    recipe = diva_rs.Recipe.named("dcr-openai-vit-l-14-224")
    fields = {"recipe": recipe, "stages": stages(recipe, 3, 3, lr=1e-3), "contrast_group": 3, "low_rank": 4}
    fields |= {"image_size": None, "density": None, "warmup": 0, "anchor": 0.0, "steps": None, "batch": 6}
    batches = [images(3, seed=seed, dtype=torch.float64) for seed in range(4)]
    starts = range(0, 12, 3)
    named = [
        {"images": batch, "ids": list(range(start, start + 3))}
        for batch, start in zip(batches, starts, strict=True)
    ]
    if world > 1:
        return train(named[int(os.environ["RANK"]) :: world], **fields)
    pairs = [
        {"images": torch.cat([one["images"], other["images"]]), "ids": [*one["ids"], *other["ids"]]}
        for one, other in zip(named[::2], named[1::2], strict=True)
    ]
    return train(pairs, **fields)


def genhancer(place: Path, world: int) -> dict[str, Any]:
    """Two stages of three steps: slots of two widths, low rank, and a denoiser that trains."""
    fields = {"recipe": genhancers.recipe(), "density": None, "draws": 1, "warmup": 0, "steps": 6}
    return train(teacher=genhancers.teacher(torch.float64), **fields)


def own_batches(place: Path, world: int) -> dict[str, Any]:
    """A loader that gives each rank other batches already, without ids."""
    rank = int(os.environ.get("RANK", 0))
    parts = [[images(2, seed=10 * r + i, dtype=torch.float64) for i in range(4)] for r in range(2)]
    if world > 1:
        return train(parts[rank], batch=None, steps=4)
    # Sample i of rank r is number 2 i + r.
    turns = [torch.stack(pair, dim=1).flatten(0, 1) for pair in zip(*parts, strict=True)]
    return train(turns, batch=None, steps=4)


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


def with_files(place: Path, world: int) -> dict[str, Any]:
    """A run with a folder: what rank 1 writes is noted."""
    written = written_from_now()
    return {**train(output_dir=place / f"files-{world}", steps=5), "written": written}


def guarded(place: Path, world: int) -> dict[str, Any]:
    """How far the weights have moved is measured every two steps, and the guard ends the run for it."""
    start = [value.clone() for value in small_clip(torch.float64).visual.parameters()]
    moved: list[float] = []

    def distance(clip: Any) -> float:
        pairs = zip(clip.visual.parameters(), start, strict=True)
        moved.append(float(sum((now - then).square().sum() for now, then in pairs).sqrt()))
        return moved[-1]

    watched = {"evaluate": {"moved": distance}, "eval_every": 2, "best": "moved"}
    written = written_from_now()
    found = train(output_dir=place / f"guarded-{world}", guard={"moved": ("max", 0.3)}, **watched)
    return {**found, "written": written, "moved": moved}


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


def copied(folder: Path, other: Path) -> Path:
    """A copy of a run's folder, which is rank 0's alone."""
    if os.environ.get("RANK", "0") == "0":
        shutil.copytree(folder, other)
    return other


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


def counted(place: Path, world: int) -> dict[str, Any]:
    """The sizes of all tensors that are added up over the ranks, in order."""
    sent: list[int] = []
    add_up = diva_rs.distributed.Ranks.add_up

    def noted(self: Any, tensor: torch.Tensor) -> None:
        sent.append(tensor.numel())
        add_up(self, tensor)

    diva_rs.distributed.Ranks.add_up = noted  # type: ignore[method-assign]
    found = train(steps=5)
    diva_rs.distributed.Ranks.add_up = add_up  # type: ignore[method-assign]
    return {**found, "sent": sent}


RUNS: dict[str, Callable[[Path, int], Any]] = {
    # Ten steps, of six batches each.
    "straight": lambda place, world: train(),
    "low_rank": lambda place, world: train(low_rank=2, low_rank_bias=True, lr=1e-2),
    # 50 steps of two batches in float64.
    "fifty": lambda place, world: train(batch=4, steps=50),
    # Every rank begins with another CLIP, or has another learning rate.
    "other_weights": lambda place, world: train(seed=int(os.environ.get("RANK", 0)), steps=2),
    "other_recipe": lambda place, world: train(lr=0.1 + int(os.environ["RANK"])),
    # A DataLoader that gives every rank all images, and a list that every rank has.
    "undivided": lambda place, world: train(
        DataLoader(TensorDataset(images(60, dtype=torch.float64)), batch_size=2, shuffle=True)
    ),
    "same_batches": lambda place, world: train([images(2, seed=i, dtype=torch.float64) for i in range(4)]),
    **{
        run.__name__: run
        for run in (
            counted, from_folder, from_shards, unequal, captions, dcr, un2clip, genhancer, own_batches,
            with_files, guarded, interrupted, begun, continued, killed, resumed, raising, terminated,
            other_teacher, spoilt, spoilt_on, two_ranks,
        )
    },
}  # fmt: skip


def rank(name: str, number: int, world: int, port: int, place: Path) -> None:
    """What one forked process does: `RUNS[name]`, with its output in files."""
    warnings.simplefilter("ignore")
    log = os.open(place / f"{name}-{world}.{number}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if world > 1:
        known = {"RANK": number, "WORLD_SIZE": world, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in known.items()})
    code = 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell's children ignore it
    try:
        torch.save(RUNS[name](place, world), place / f"{name}-{world}.{number}.pt")
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def go(name: str, world: int, place: Path) -> dict[str, Any]:
    """Fork the ranks of a run; their exit codes, and the seconds from the first end to the last."""
    fork = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ranks = [fork.Process(target=rank, args=(name, number, world, port, place)) for number in range(world)]
    for process in ranks:
        process.start()
    ends: dict[int, float] = {}
    while len(ends) < world and (not ends or time.monotonic() < min(ends.values()) + LIMIT):
        for number, process in enumerate(ranks):
            if number not in ends and process.exitcode is not None:
                ends[number] = time.monotonic()
        time.sleep(0.02)
    for process in ranks:
        if process.exitcode is None:
            process.kill()
    codes = [process.exitcode for process in ranks]
    return {"codes": codes, "seconds": max(ends.values()) - min(ends.values())}


def main() -> None:
    """The runs named on the command line, as NAME-WORLD, one after the other."""
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    photos(place / "photos", 11)
    for number, count in enumerate((5, 3, 1)):
        with tarfile.open(place / f"{number}.tar", "w") as shard:
            for i in range(count):
                shard.add(place / "photos" / f"{i}.png", f"{number}{i}.png")
    found = {}
    for run in sys.argv[2:]:
        name, world = run.rsplit("-", 1)
        found[run] = go(name, int(world), place)
    (place / "runs.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
