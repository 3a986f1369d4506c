"""MMVP-VLM as it is published: ``Questions.csv`` beside a folder of images, ``<images>/<Type>/<id>.jpg``.

Releases, and the tools that unpack them, spell the folders differently: with spaces or underscores, in any
case, with long or short names of the patterns. All are found.
"""

import csv
import io
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from diva_rs._base.files import as_path
from diva_rs._base.settings import hint
from diva_rs.data.decode import EXTENSIONS
from diva_rs.errors import DataError, shown
from diva_rs.evaluation.items import Benchmark, Item, Picture, pair_tasks
from diva_rs.evaluation.reading import text_of

NAME, KIND, LOOKS_FOR = "mmvp-vlm", "pairs", "Questions.csv"
PROMPT = "a photo of "
_IMAGE_FOLDERS = ("MLLM_VLM Images", "MLLM_VLM_Images", "MMVP_VLM_Images")

# The patterns, in the order in which the official code gives them to blocks of 15 pairs of rows, with their
# other names, as types in the file and as folders.
_OTHER_NAMES = {
    "Orientation and Direction": ("Orientation", "Direction"),
    "Presence of Specific Features": ("Presence", "Specific Features"),
    "State and Condition": ("State", "Condition"),
    "Quantity and Count": ("Quantity", "Count"),
    "Positional and Relational Context": ("Spatial", "Positional", "Position", "Relational"),
    "Color and Appearance": ("Color", "Colour", "Colour and Appearance", "Appearance"),
    "Structural Characteristics": ("Structural Character", "Structural", "Structure"),
    "Texts": ("Text",),
    "Viewpoint and Perspective": ("Camera Perspective", "Viewpoint", "Perspective", "Camera"),
}
PATTERNS = tuple(_OTHER_NAMES)


class Question(NamedTuple):
    """One row of Questions.csv; ``row`` counts the lines of the file from 1, the header included."""

    row: int
    id: int
    type: str
    statement: str


class QuestionPair(NamedTuple):
    """Two consecutive rows with their images, and the pattern that their place gives them."""

    pattern: str
    questions: tuple[Question, Question]
    pictures: tuple[Picture, Picture]  # the question's id keys the tokens that are drawn

    @property
    def captions(self) -> tuple[str, str]:
        """The two statements as the model reads them."""
        first, second = self.questions
        return PROMPT + first.statement, PROMPT + second.statement


def matches(root: Path) -> bool:
    """Whether there is a Questions.csv."""
    return any(file.name.casefold() == "questions.csv" for file in root.iterdir())


def read(root: Path, images: Path | None) -> Benchmark:
    """The pairs; the image score follows the official code, in which a tie picks the second image."""
    items = []
    for place, pair in enumerate(read_pairs(root), 1):
        first, second = pair.questions
        # The statement with the odd id is the one of the first image.
        rows = pair.captions if first.id % 2 else pair.captions[::-1]
        where = f"{root}, rows {first.row} and {second.row} of Questions.csv"
        items.append(Item(str(place), pair.pattern, rows, pair.pictures, where))
    tasks = pair_tasks(items, _official)
    ordered = tuple(tasks[rule] for rule in ("image", "text", "group"))
    # Two at a time, as in `mmvp_vlm`.
    return Benchmark("MMVP-VLM", ordered, str(root), similarity=similarity, batch=2)


def similarity(texts: Tensor, images: Tensor) -> Tensor:
    """The logits of the official code."""
    return 100 * texts @ images.T


def first_shares(logits: Tensor) -> tuple[float, float]:
    """(2, 2) -> for each statement the softmax share of the first image; it is picked above one half."""
    one, two = logits.softmax(dim=-1)[:, 0].tolist()
    return one, two


def _official(logits: Tensor) -> bool:
    first, second = first_shares(logits)
    return first > 0.5 and not second > 0.5


def read_pairs(root: str | os.PathLike[str]) -> list[QuestionPair]:
    """Every pair of the benchmark in ``root``; errors name the file and the row that are not as published."""
    root = as_path(root)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the one that holds Questions.csv")
    file = _find(root, ("Questions.csv",), "file")
    questions = list(_questions(file))
    if len(questions) % 2:
        odd = f"{len(questions)} questions, an odd number"
        raise DataError(f"{file}: {odd}: row {questions[-1].row} has no partner")
    couples = list(zip(questions[::2], questions[1::2], strict=True))
    share, rest = divmod(len(couples), len(PATTERNS))
    if rest or not share:
        shares = f"shared equally by {len(PATTERNS)} patterns: the benchmark has 135"
        raise DataError(f"{file}: {len(couples)} pairs cannot be {shares}")
    folder = _find(root, _IMAGE_FOLDERS, "folder")
    pairs, warned = [], False
    for place, (first, second) in enumerate(couples):
        # Parity says which image of a pair a statement belongs to, so two ids that are not partners would be
        # scored against the wrong images.
        if (first.id + 1) // 2 != (second.id + 1) // 2:
            raise DataError(
                f"{file}, rows {first.row} and {second.row}: question ids {first.id} and {second.id} are not "
                "a pair (an odd id and the next one): a row before them is missing or out of place"
            )
        pattern = PATTERNS[place // share]
        if _pattern_of(first.type) != pattern and not warned:
            warned = True
            warnings.warn(
                f"{file}, row {first.row} has the type {first.type!r}, but by its place it counts for "
                f"{pattern!r}: as in the official code, the place decides. The average is not affected",
                UserWarning,
                stacklevel=3,
            )
        # The official code looks for both images under the first row's type.
        one, other = (_picture(folder, file, question, first.type) for question in (first, second))
        pairs.append(QuestionPair(pattern, (first, second), (one, other)))
    return pairs


def _pattern_of(type_name: str) -> str | None:
    """The pattern of a type or folder name, None for an unknown one."""
    return _PATTERN_OF_KEY.get(_key(type_name))


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold().replace("&", "and"))


_PATTERN_OF_KEY = {
    _key(name): pattern for pattern, others in _OTHER_NAMES.items() for name in (pattern, *others)
}


def _find(root: Path, names: tuple[str, ...], kind: str) -> Path:
    wanted, entries = {_key(name) for name in names}, sorted(root.iterdir())
    for entry in entries:
        if _key(entry.name) in wanted and (entry.is_dir() if kind == "folder" else entry.is_file()):
            return entry
    raise DataError(f"{root} holds no {kind} {' or '.join(names)}; it holds {_listed(entries)}")


def _listed(entries: list[Path]) -> str:
    return ", ".join(entry.name for entry in entries[:9]) or "nothing"


def _questions(file: Path) -> Iterator[Question]:
    known: dict[int, int] = {}
    reader = csv.reader(io.StringIO(text_of(file), newline=""), strict=True)
    try:
        header = next(reader, None)
        if header is None or (header and header[0].strip().isdecimal()):
            raise DataError(f"{file}, row 1: the header Question ID,Type,Statement is missing")
        for fields in reader:
            if any(field.strip() for field in fields):
                question = _question(f"{file}, row {reader.line_num}", reader.line_num, fields)
                first = known.setdefault(question.id, question.row)
                if first != question.row:
                    twice = f"question id {question.id} is in row {first} as well"
                    raise DataError(f"{file}, row {question.row}: {twice}")
                yield question
    except csv.Error as err:
        raise DataError(f"{file}, row {reader.line_num}: malformed CSV ({err})") from err


def _question(where: str, row: int, fields: list[str]) -> Question:
    if len(fields) != 3:
        raise DataError(
            f"{where}: {len(fields)} fields, expected 3 with commas between them, as published; a statement "
            "with a comma needs quotes"
        )
    number, type_name, statement = (field.strip() for field in fields)
    if not re.fullmatch("0*[1-9][0-9]{0,17}", number):
        raise DataError(f"{where}: question id {shown(number)}, expected a whole number from 1")
    if _pattern_of(type_name) is None:
        near = hint(type_name, PATTERNS) or f": the types are {', '.join(PATTERNS)} and their short names"
        raise DataError(f"{where}: unknown type {shown(type_name)}{near}")
    if not statement:
        raise DataError(f"{where}: the statement is empty")
    return Question(row, int(number), type_name, statement)


def _picture(images: Path, file: Path, question: Question, type_name: str) -> Picture:
    """The image of a question, below the folder of a type."""
    where = f"{file}, row {question.row}"
    folders = [entry for entry in sorted(images.iterdir()) if entry.is_dir()]
    found = [folder for folder in folders if _pattern_of(folder.name) == _pattern_of(type_name)]
    if not found:
        there = _listed(folders)
        raise DataError(f"{where}: {images} has no folder for the type {type_name!r}; it holds {there}")
    # A folder of the very name comes before one of another name.
    folder = min(found, key=lambda folder: _key(folder.name) != _key(type_name))
    for ending in ("jpg", *sorted(EXTENSIONS)):
        for path in (folder / f"{question.id}.{ending}", folder / f"{question.id}.{ending.upper()}"):
            if path.is_file():
                name = f"{path} (question {question.id}, row {question.row})"
                return Picture(str(path), name, path, question.id)
    raise DataError(f"{where}: {folder / f'{question.id}.jpg'} is missing")
