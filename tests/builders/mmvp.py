"""A folder in the layout of MMVP-VLM whose images carry their question id, and a model that reads it.

Images are flat colours that spell the id; a statement holds its own id as a word. So a model can be told
which pairs it shall have right, and what it scores is known before it runs.
"""

import csv
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

# As the published file spells its types, in the order of the official patterns.
TYPES = (
    *("Orientation", "Presence", "State", "Quantity", "Spatial", "Color"),
    *("Structural Character", "Text", "Camera Perspective"),
)
SIDE = 8


def mmvp_folder(
    root: Path,
    images: str = "MLLM_VLM Images",
    folders: Mapping[str, str] | None = None,
    types: Mapping[str, str] | None = None,
    pairs: int = 15,
) -> Path:
    """Write the benchmark; ``folders`` and ``types`` give other spellings of `TYPES`. Returns its root."""
    rows = []
    for place, name in enumerate(TYPES):
        folder = root / images / (folders or {}).get(name, name)
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(2 * pairs * place + 1, 2 * pairs * (place + 1) + 1):
            colour = (number % 16 * 16 + 8, number // 16 * 8 + 4, 128)
            # Lossless inside: what counts is the file's name and place, which stay the published ones.
            Image.new("RGB", (SIDE, SIDE), colour).save(folder / f"{number}.jpg", format="PNG")
            rows.append([number, (types or {}).get(name, name), f"thing, number {number}"])
    write_questions(root, rows)
    return root


def write_questions(root: Path, rows: list[list[object]]) -> Path:
    """Questions.csv with the published header."""
    file = root / "Questions.csv"
    with open(file, "w", newline="") as opened:
        csv.writer(opened).writerows([["Question ID", "Type", "Statement"], *rows])
    return file


def read_questions(root: Path) -> list[list[object]]:
    """The rows without the header."""
    with open(root / "Questions.csv", newline="") as opened:
        return list(csv.reader(opened))[1:]


def preprocess(image: Image.Image) -> Tensor:
    """(3, 8, 8) in [0, 1]."""
    values = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return values.reshape(image.height, image.width, 3).permute(2, 0, 1) / 255


def tokenize(texts: list[str]) -> Tensor:
    """(B, 1): the id that each statement ends with."""
    assert all(text.startswith("a photo of thing, number ") for text in texts)
    return torch.tensor([[int(text.split()[-1])] for text in texts])


class PlantedCLIP(nn.Module):
    """Embeds an image by the id that its colour spells and a statement by its own: right on ``right`` alone.

    ``right`` holds pair numbers from 0 (ids 2 n + 1 and 2 n + 2). On the other pairs the two images are
    swapped, half swapped (both statements pick the first image, or both the second) or tied, by turns.
    """

    def __init__(self, right: Collection[int], ids: int = 270, wrong: str | None = None) -> None:
        super().__init__()
        self.right, self.ids, self.wrong = frozenset(right), ids, wrong
        self.register_buffer("anchor", torch.zeros(1))
        self.seen_training: list[bool] = []

    def encode_image(self, pixels: Tensor) -> Tensor:
        self.seen_training.append(self.training)
        red, green = (255 * pixels[:, :2, 0, 0]).round().long().unbind(1)
        return torch.stack([self._image(int(number)) for number in green // 8 * 16 + red // 16])

    def encode_text(self, tokens: Tensor) -> Tensor:
        return torch.eye(self.ids + 1)[tokens[:, 0]]

    def _image(self, number: int) -> Tensor:
        pair, own = (number - 1) // 2, number
        partner = number + 1 if number % 2 else number - 1
        vector = torch.zeros(self.ids + 1)
        if pair in self.right:
            vector[own] = 1.0
            return vector
        kind = self.wrong or ("swapped", "first", "second", "tied")[pair % 4]
        if kind == "swapped":
            vector[partner] = 1.0
        elif kind == "tied":
            vector[own] = vector[partner] = 1.0
        else:
            # Both statements lie along the one image, and away from the other.
            liked = (number % 2 == 1) == (kind == "first")
            vector[own] = vector[partner] = 1.0 if liked else -1.0
        return vector
