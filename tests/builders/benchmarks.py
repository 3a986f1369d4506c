"""Small data sets in clip-benchmark's own formats, of flat colours whose classes and captions name them."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from webdataset import TarWriter

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 210), "grey": (128, 128, 128)}
TEMPLATES = ("a photo of a {c} square.", "a {c} picture.")


def image(colour: str, side: int = 12, shade: int = 0) -> Image.Image:
    """A flat image; ``shade`` darkens it a little, so that no two need be equal."""
    red, green, blue = COLOURS[colour]
    return Image.new("RGB", (side, side), (red - shade, green - shade, blue - shade))


def shapes_folder(root: Path, labels: Sequence[int] = (0, 1, 2, 3, 3, 2, 1, 0), shards: int = 2) -> Path:
    """A webdataset of classification: ``root/shapes``; image i has the colour and class ``labels[i]``."""
    samples = [{"png": png(list(COLOURS)[k], i), "cls": str(k).encode()} for i, k in enumerate(labels)]
    folder = webdataset(root / "shapes", samples, shards)
    (folder / "classnames.txt").write_text("\n".join(COLOURS) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    return root


def tags_folder(root: Path, rows: Sequence[Sequence[int]]) -> Path:
    """A multi-label webdataset, ``root/tags``: image i has the classes that ``rows[i]`` marks with 1."""
    samples = []
    for i, row in enumerate(rows):
        stored = io.BytesIO()
        np.save(stored, np.array(row))
        samples.append({"png": png(list(COLOURS)[list(row).index(1)], i), "npy": stored.getvalue()})
    folder = webdataset(root / "tags", samples, shards=1)
    (folder / "dataset_type.txt").write_text("multilabel\n")
    (folder / "classnames.txt").write_text("\n".join(COLOURS) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text(TEMPLATES[0] + "\n")
    return root


def captions_folder(root: Path, colours: Sequence[str] = tuple(COLOURS)) -> Path:
    """A webdataset of retrieval, ``root/captions``: two captions to an image."""
    samples = [
        {"png": png(colour, i), "txt": f"a {colour} square\nthe colour {colour}".encode()}
        for i, colour in enumerate(colours)
    ]
    folder = webdataset(root / "captions", samples, shards=1)
    (folder / "dataset_type.txt").write_text("retrieval\n")
    return root


def photos_folder(root: Path, per_class: int = 2) -> Path:
    """An image folder with a sub-folder for each of two classes."""
    for name, colour in (("cat", "red"), ("wild_dog", "blue")):
        (root / "photos" / name).mkdir(parents=True)
        for number in range(per_class):
            image(colour, shade=number).save(root / "photos" / name / f"{number}.png")
    return root / "photos"


def webdataset(folder: Path, samples: Sequence[dict[str, bytes]], shards: int) -> Path:
    """``folder/test/<n>.tar`` and the number of shards beside them."""
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text(f"{shards}\n")
    each = -(-len(samples) // shards)
    for shard in range(shards):
        with TarWriter(str(folder / "test" / f"{shard}.tar")) as archive:
            for number, sample in enumerate(samples[each * shard : each * (shard + 1)]):
                archive.write({"__key__": f"s{each * shard + number:07d}", **sample})
    return folder


def png(colour: str, shade: int) -> bytes:
    stored = io.BytesIO()
    image(colour, shade=shade).save(stored, format="PNG")
    return stored.getvalue()


def preprocess(picture: Image.Image) -> Tensor:
    """(3, 2, 2) in [0, 1]."""
    values = torch.from_numpy(np.asarray(picture.convert("RGB").resize((2, 2)), dtype=np.float32).copy())
    return values.permute(2, 0, 1) / 255


def tokenize(texts: Sequence[str]) -> Tensor:
    """(B, 1): which colour a text names."""
    return torch.tensor(
        [[next(k for k, name in enumerate(COLOURS) if f" {name}" in f" {text}")] for text in texts]
    )


class ColourCLIP(nn.Module):
    """Embeds images and texts by the colour they show or name; ``confused`` takes one for another."""

    def __init__(self, confused: dict[str, str] | None = None) -> None:
        super().__init__()
        names = list(COLOURS)
        self.seen = [names.index((confused or {}).get(name, name)) for name in names]
        self.register_buffer("means", torch.tensor([COLOURS[name] for name in names]) / 255)

    def encode_image(self, pixels: Tensor) -> Tensor:
        nearest = torch.cdist(pixels.mean(dim=(2, 3)), self.means).argmin(dim=1)
        return torch.eye(len(COLOURS))[[self.seen[int(k)] for k in nearest]]

    def encode_text(self, tokens: Tensor) -> Tensor:
        return 3 * torch.eye(len(COLOURS))[tokens[:, 0]]
