"""Images per second of one core, from JPEG files to both inputs: CLIP's crop at 224 and the VAE's at 512.

Every contestant reads the same files in this process, on one thread, and gives float32 batches of both inputs
on the host. Contestants whose library is not installed are left out.
"""

import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import InterpolationMode, v2

from diva_rs._base.optional import require
from diva_rs.data import LatentCache, clip_input, folder_loader, shard_loader, vae_input
from diva_rs.data.pixels import OPENAI_MEAN, OPENAI_STD
from diva_rs.recipes.recipe import Recipe
from lab.benchmarks.timing import take_turns
from lab.photographs import Photographs

CLIP, VAE = 224, 512
HALF = (0.5, 0.5, 0.5)
SIZES = ((640, 480), (1024, 768), (2048, 1536))
Batches = Iterable[tuple[Tensor, ...]]


def reader(
    rounds: int, images: int = 16, batch: int = 8, sizes: tuple[Any, ...] = SIZES, rows: int = 4096
) -> dict[str, Any]:
    """Seconds of each contestant for a pass over so many JPEG files of each size, and of a latent cache."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"images": images, "sizes": {}}
    try:
        for size in sizes:
            with tempfile.TemporaryDirectory() as root:
                files = make_files(Path(root), images, size)
                readers = {name: make(files, batch) for name, make in contestants().items()}
                calls = {name: partial(_passed, batches) for name, batches in readers.items()}
                times = take_turns(calls, rounds)
            found["sizes"]["x".join(map(str, size))] = {name: t.to_dict() for name, t in times.items()}
        found["cache"] = cache(rounds, rows)
    finally:
        torch.set_num_threads(before)
    return found


def make_files(root: Path, images: int, size: tuple[int, int]) -> Path:
    """JPEG files of photographs of one size (width, height) in ``root/jpeg``, and the same in a tar file."""
    windows = Photographs(crops=-(-images // 8)).windows[:images]
    (root / "jpeg").mkdir()
    with tarfile.open(root / "0.tar", "w") as shard:
        for number, window in enumerate(windows):
            path = root / "jpeg" / f"{number:04}.jpg"
            window.resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
            shard.add(path, path.name)
    return root


def contestants() -> dict[str, Callable[[Path, int], Batches]]:
    """Name -> a function of `make_files`'s folder and the batch, which gives the batches of both inputs."""
    found: dict[str, Callable[[Path, int], Batches]] = {
        "torchvision": _torchvision,
        "torchvision on tensors": partial(_tensors, decode=_torchvision_decode),
        "webdataset": _webdataset,
        "simplejpeg": partial(_tensors, decode=_simplejpeg_decode),
        "dali": _dali,
        "ours, folder": partial(_ours, make=lambda root: partial(folder_loader, root / "jpeg")),
        "ours, shards": partial(_ours, make=lambda root: partial(shard_loader, root / "0.tar")),
        "ours, one batch": _batches,
    }
    needs = {"simplejpeg": "simplejpeg", "dali": "nvidia.dali", "webdataset": "webdataset"}
    return {name: make for name, make in found.items() if name not in needs or _installed(needs[name])}


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it is missing
        return False


def _passed(batches: Batches) -> None:
    for *clip, vae in batches:
        assert all(one.shape[1:] == (3, CLIP, CLIP) for one in clip) and vae.shape[1:] == (3, VAE, VAE)
        assert all(one.dtype == torch.float32 for one in (*clip, vae))


class _Ours:
    """The package's loader, then the two conversions that a step makes, on the host too."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.recipe = loader, Recipe()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for item in self.loader:
            images = item["images"]
            yield (
                clip_input(images, self.recipe, (CLIP, CLIP)),
                vae_input(images, self.recipe, (VAE, VAE)),
            )


def _ours(root: Path, batch: int, make: Callable[[Path], Any]) -> Batches:
    return _Ours(make(root)(batch=batch, size=VAE, workers=0))


class _Batches:
    """The package's loader alone: where there is a GPU, a step makes both inputs of this one batch on it."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for item in self.loader:
            yield (item["images"],)


def _batches(root: Path, batch: int) -> Batches:
    return _Batches(folder_loader(root / "jpeg", batch=batch, size=VAE, workers=0))


class _Files(Dataset[Any]):
    def __init__(self, root: Path, read: Callable[[Path], Any], views: Callable[[Any], Any]) -> None:
        self.files, self.read, self.views = sorted((root / "jpeg").iterdir()), read, views

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        return self.views(self.read(self.files[index]))


class _Views:
    """Both inputs by torchvision's transforms, of a PIL image or of a uint8 tensor (3, H, W)."""

    def __init__(self) -> None:
        bicubic = InterpolationMode.BICUBIC
        self.crop = v2.RandomResizedCrop(VAE, (0.9, 1.0), interpolation=bicubic)
        floats = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        resized = [v2.Resize(CLIP, bicubic), *floats, v2.Normalize(OPENAI_MEAN, OPENAI_STD)]
        self.clip, self.vae = v2.Compose(resized), v2.Compose([*floats, v2.Normalize(HALF, HALF)])

    def __call__(self, image: Any) -> tuple[Tensor, Tensor]:
        crop = self.crop(image)
        return self.clip(crop), self.vae(crop)


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _torchvision(root: Path, batch: int) -> Batches:
    return DataLoader(_Files(root, _open, _Views()), batch)


def _tensors(root: Path, batch: int, decode: Callable[[Path], Tensor]) -> Batches:
    return DataLoader(_Files(root, decode, _Views()), batch)


def _torchvision_decode(path: Path) -> Tensor:
    return decode_jpeg(read_file(str(path)), ImageReadMode.RGB)  # type: ignore[no-any-return]


def _simplejpeg_decode(path: Path) -> Tensor:
    simplejpeg = require("simplejpeg")
    return torch.from_numpy(simplejpeg.decode_jpeg(path.read_bytes())).permute(2, 0, 1)


def _webdataset(root: Path, batch: int) -> Batches:
    shards = (
        require("webdataset", extra="data")
        .WebDataset(str(root / "0.tar"), shardshuffle=False)
        .decode("pil")
        .to_tuple("jpg")
    )
    return shards.map(lambda sample: _Views()(sample[0])).batched(batch)  # type: ignore[no-any-return]


class _Dali:
    """NVIDIA DALI's CPU operators, on one thread."""

    def __init__(self, root: Path, batch: int) -> None:
        dali, fn, types = (require(f"nvidia.dali{part}") for part in ("", ".fn", ".types"))
        files = sorted(map(str, (root / "jpeg").iterdir()))
        # Otherwise batches are read ahead, in the CPU time of the contestant that follows.
        at_once = {"exec_async": False, "exec_pipelined": False, "prefetch_queue_depth": 1}
        self.batches = -(-len(files) // batch)

        @dali.pipeline_def(batch_size=batch, num_threads=1, device_id=None, **at_once)  # type: ignore[untyped-decorator]
        def pipeline() -> Any:
            data, _ = fn.readers.file(files=files)
            image = fn.decoders.image_random_crop(
                data, random_area=[0.9, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
            )
            crop = fn.resize(image, size=[VAE, VAE], interp_type=types.INTERP_CUBIC, antialias=True)
            small = fn.resize(crop, size=[CLIP, CLIP], interp_type=types.INTERP_CUBIC, antialias=True)
            scale = partial(fn.crop_mirror_normalize, dtype=types.FLOAT, output_layout="CHW")
            means, stds = ([255 * value for value in values] for values in (OPENAI_MEAN, OPENAI_STD))
            return scale(small, mean=means, std=stds), scale(crop, mean=[127.5] * 3, std=[127.5] * 3)

        self.pipeline = pipeline()
        self.pipeline.build()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.batches):
            clip, vae = (torch.from_numpy(part.as_array()) for part in self.pipeline.run())
            yield clip, vae


def _dali(root: Path, batch: int) -> Batches:
    return _Dali(root, batch)


def cache(rounds: int, rows: int, batch: int = 64) -> dict[str, Any]:
    """Seconds to read a latent cache in shuffled batches, against its files read from end to end in blocks.

    Both come from the page cache of the system: what is compared is the work beside the disk's.
    """
    images = torch.rand(rows, 3, 1, 1)

    class Wide:
        image_size = (1, 1)

        def encode(self, pixels: Tensor) -> Tensor:
            return pixels.mean(1, keepdim=True).expand(-1, 4, 64, 64) + torch.zeros(len(pixels), 4, 64, 64)

        def describe(self) -> str:
            return "a constant"

    with tempfile.TemporaryDirectory() as root:
        built = LatentCache.build(
            [images[at : at + 256] for at in range(0, rows, 256)], Wide(), root + "/latents"
        )
        order = np.random.default_rng(0).permutation(len(built))
        parts = np.array_split(order, -(-len(order) // batch))
        files = sorted(Path(root, "latents").glob("latents-*"))

        def blocks() -> None:
            memory = bytearray(1 << 22)
            for file in files:
                with open(file, "rb", buffering=0) as opened:
                    while opened.readinto(memory):
                        pass

        def read(cache: LatentCache) -> None:
            for part in parts:
                cache.read(part)

        calls = {
            "blocks": blocks,
            "cache, first pass": lambda: read(LatentCache.open(built.folder)),
            "cache": lambda: read(built),
        }
        times = take_turns(calls, rounds)
        size = sum(file.stat().st_size for file in files)
    return {"bytes": size, "contestants": {name: t.to_dict() for name, t in times.items()}}
