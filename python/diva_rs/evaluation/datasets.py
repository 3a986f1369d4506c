"""Data sets of clip-benchmark: found or downloaded, or a DataError with the reason."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from diva_rs._base.files import open_regular
from diva_rs._base.optional import require
from diva_rs.data import Accounting
from diva_rs.data.loader import on_the_host
from diva_rs.data.tars import check_end
from diva_rs.errors import ConfigError, DataError
from diva_rs.evaluation.embedder import Embedder
from diva_rs.evaluation.scores import SuiteResult

# In a suite, but in no release of clip-benchmark.
_ABSENT = {"birdsnap": "clip-benchmark does not have it: build it as a webdataset (wds/birdsnap)"}
# What clip-benchmark would fetch with wget even with download=False, relative to the data set's root.
_NEEDED = {
    "imagenetv2": ("ImageNetV2-matched-frequency",),
    "mscoco_captions": ("val2014", "coco_{split}_karpathy.json"),
    "flickr30k": ("flickr30k_{split}_karpathy.txt",),
    "flickr8k": ("flickr8k_{split}_karpathy.txt",),
}
# clip-benchmark's names of the tasks.
_TASKS = {"zero-shot": "zeroshot_classification", "retrieval": "zeroshot_retrieval"}


@dataclass(frozen=True)
class Settings:
    """How data sets are read."""

    split: str = "test"
    batch: int = 64  # images at a time
    workers: int = 2  # processes that read images
    download: bool = False  # whether clip-benchmark may run wget, gdown or kaggle for missing data sets
    webdataset: bool = False  # whether the names of a suite mean webdataset folders, as "wds/<name>" does
    recall: Sequence[int] = (1, 5, 10)  # the k of recall@k, for retrieval; the first one is the score
    confidence: float = 0.95  # of the intervals
    progress: bool = True  # whether clip-benchmark's progress bars are shown
    # Is given the result so far after every data set: a suite that is interrupted then loses none.
    done: Callable[[SuiteResult], Any] | None = None


class Opened:
    """A data set that was found: the loader that clip-benchmark takes, which counts its images."""

    def __init__(self, name: str, dataset: Any, loader: Any) -> None:
        self.name, self.dataset, self.loader, self.images = name, dataset, loader, 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            self.images += len(batch[0])
            yield batch


def open_dataset(
    name: str, embedder: Embedder, root: str | os.PathLike[str], settings: Settings, task: str
) -> Opened:
    """The data set of that name in clip-benchmark; DataError if it is missing and may not be downloaded."""
    builder = require("clip_benchmark.datasets.builder", extra="eval")
    if name in _ABSENT:
        raise DataError(_ABSENT[name])
    place = place_of(root, name)
    webdataset = name.startswith("wds/")
    if not settings.download and "://" not in place:
        if not Path(place).is_dir():
            raise DataError(f"there is no folder {place} (download=True lets clip-benchmark fetch it)")
        for part in ("{split}/nshards.txt",) if webdataset else _NEEDED.get(name, ()):
            file = Path(place, part.format(split=settings.split))
            if not file.exists():
                raise DataError(f"{file} is missing")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"WebDataset\(shardshuffle")  # it is off on purpose
        ways = {"split": settings.split, "download": settings.download, "task": _TASKS[task]}
        dataset = builder.build_dataset(name, place, embedder.transform, **ways)
    if type(dataset).__name__ == "ImageFolder":
        # It numbers classes by its sub-folders, which clip-benchmark names by a fixed list.
        folders, classes = len(dataset.class_to_idx), len(dataset.classes)
        if folders != classes:
            root = dataset.root
            raise DataError(f"{root} has {folders} class folders, but the data set has {classes} classes")
        _count(dataset).log(f"{task} on {name}")
    rest: dict[str, Any] = {"worker_init_fn": on_the_host, "num_workers": settings.workers}
    if not webdataset:
        collate = builder.get_dataset_collate_fn(name)
        return Opened(name, dataset, DataLoader(dataset, settings.batch, collate_fn=collate, **rest))
    # webdataset raises an error if there are more workers than shards.
    rest["num_workers"] = min(settings.workers, _shards(Path(place, settings.split)))
    return Opened(name, dataset, DataLoader(dataset.batched(settings.batch), None, **rest))


def _shards(folder: Path) -> int:
    """How many shards clip-benchmark reads; DataError if others lie beside them. 1 for an address."""
    count = folder / "nshards.txt"
    if not count.is_file():
        return 1
    named, there = int(count.read_text()), len(list(folder.glob("*.tar")))
    if named != there:
        raise DataError(f"{count} says {named} shards, and {there} are there: the others would not be scored")
    for number in range(named):
        check_end(folder / f"{number}.tar")
    return named


def _count(dataset: Any) -> Accounting:
    """The images of torchvision's ImageFolder, and the files that it leaves out."""
    used = {os.path.realpath(path) for path, _ in dataset.samples}
    accounting = Accounting(len(used))
    for folder, _, files in os.walk(dataset.root, followlinks=True):
        for path in (Path(folder, name) for name in sorted(files)):
            if os.path.realpath(path) in used or not path.is_file():
                continue
            name = path.relative_to(dataset.root).as_posix()
            if accounting.is_image(name, partial(_head, path)):
                accounting.leave_out(f"with the ending {path.suffix.lower()}", name, picture=True)
    return accounting


def _head(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(16)


def place_of(root: str | os.PathLike[str], name: str) -> str:
    """Where a data set lies: in the folder of its name, below ``root``, or ``root`` itself.

    Braces are filled in. Never in a folder of another name: an image folder of other data would be scored.

    >>> place_of("data/{dataset_cleaned}/v2", "wds/vtab/resisc45"), place_of("data", "vtab/resisc45")
    ('data/vtab-resisc45/v2', 'data/vtab-resisc45')
    """
    text, short = os.path.expanduser(os.fspath(root)), name.removeprefix("wds/")
    cleaned = short.replace("/", "-")
    if "{" in text:
        try:
            return text.format(dataset=short, dataset_cleaned=cleaned)
        except (KeyError, IndexError, ValueError) as err:
            known = "{dataset} and {dataset_cleaned}"
            raise ConfigError(f"root={text!r}: only {known} are filled in") from err
    return text if "://" in text or Path(text).name == cleaned else str(Path(text, cleaned))
