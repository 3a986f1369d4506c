"""The folder of MMVP-VLM as it is published, in all its spellings.

``Questions.csv`` (Question ID, Type, Statement) beside a folder of images, ``<images>/<Type>/<id>.jpg``. The
images folder and the type folders are spelled differently from release to release and by the tools that
unpack them: spaces or underscores, any case, long or short pattern names. All are found.
"""

import csv
import io
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from diva_rs._base.arguments import as_path
from diva_rs._base.files import read_text
from diva_rs._base.settings import hint
from diva_rs.data.decode import EXTENSIONS
from diva_rs.errors import DataError, shown
from diva_rs.evaluation.mmvp_result import PATTERNS

_LONGEST = 1 << 24  # bytes of Questions.csv; the benchmark's has 20 thousand
_IMAGE_FOLDERS = ("MLLM_VLM Images", "MLLM_VLM_Images", "MMVP_VLM_Images")

# Names that a pattern has beside its own, as types in the file and as folders.
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


@dataclass(frozen=True)
class Question:
    """One row of Questions.csv; ``row`` counts the lines of the file from 1, the header included."""

    row: int
    id: int
    type: str
    statement: str


@dataclass(frozen=True)
class QuestionPair:
    """Two consecutive rows with their images, and the pattern that their place gives them."""

    pattern: str
    questions: tuple[Question, Question]
    images: tuple[Path, Path]


def read_pairs(root: str | os.PathLike[str]) -> list[QuestionPair]:
    """Every pair of the benchmark in ``root``, with images that are there.

    Raises:
        DataError: a missing folder, file or image, a malformed row, an odd number of rows, a pair of ids that
            are not partners, an unknown type, a number of pairs that nine patterns cannot share; names the
            file and the row.
    """
    root = as_path(root, "root").expanduser()
    if not root.is_dir():
        raise DataError(f"{root} is no folder: give the one that holds Questions.csv")
    file = _find(root, ("Questions.csv",), "file")
    questions = _read(file)
    if len(questions) % 2:
        raise DataError(
            f"{file}: {len(questions)} questions, an odd number: row {questions[-1].row} has no partner "
            "(two consecutive rows are a pair)"
        )
    couples = list(zip(questions[::2], questions[1::2], strict=True))
    share, rest = divmod(len(couples), len(PATTERNS))
    if rest or not share:
        raise DataError(
            f"{file}: {len(couples)} pairs cannot be shared equally by {len(PATTERNS)} patterns "
            "(the benchmark has 135, 15 each): rows are missing"
        )
    for first, second in couples:
        _check_partners(file, first, second)
    _warn_of_order(file, couples, share)
    folders = _TypeFolders(_find(root, _IMAGE_FOLDERS, "folder"))
    return [
        QuestionPair(
            PATTERNS[place // share],
            couple,
            # The official code looks for both images under the first row's type.
            (
                folders.image(file, couple[0], couple[0].type),
                folders.image(file, couple[1], couple[0].type),
            ),
        )
        for place, couple in enumerate(couples)
    ]


def pattern_of(type_name: str) -> str | None:
    """The pattern that a type or folder name stands for, None for an unknown one.

    >>> pattern_of("camera_perspective"), pattern_of("Colour & Appearance"), pattern_of("Smell")
    ('Viewpoint and Perspective', 'Color and Appearance', None)
    """
    return _PATTERN_OF_KEY.get(_key(type_name))


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold().replace("&", "and"))


_PATTERN_OF_KEY = {
    _key(name): pattern for pattern, others in _OTHER_NAMES.items() for name in (pattern, *others)
}


def _find(root: Path, names: tuple[str, ...], kind: str) -> Path:
    wanted = {re.sub(r"[^a-z0-9.]", "", name.casefold()) for name in names}
    entries = sorted(root.iterdir())
    for entry in entries:
        fits = entry.is_dir() if kind == "folder" else entry.is_file()
        if fits and re.sub(r"[^a-z0-9.]", "", entry.name.casefold()) in wanted:
            return entry
    there = ", ".join(entry.name for entry in entries[:8]) or "nothing"
    raise DataError(f"{root} holds no {kind} {' or '.join(names)}; there is {there}")


def _read(file: Path) -> list[Question]:
    questions: list[Question] = []
    seen: dict[int, int] = {}
    try:
        with io.StringIO(read_text(file, _LONGEST).removeprefix("\ufeff"), newline="") as text:
            reader = csv.reader(text, strict=True)
            header = next(reader, None)
            if header is None:
                raise DataError(f"{file} is empty: the header Question ID,Type,Statement is needed")
            if header and header[0].strip().isdecimal():
                raise DataError(
                    f"{file}, row 1 is a question: the header Question ID,Type,Statement is missing"
                )
            for fields in reader:
                if not any(field.strip() for field in fields):
                    continue
                question = _question(file, reader.line_num, fields)
                if question.id in seen:
                    raise DataError(
                        f"{file}, row {question.row}: question id {question.id} is in row "
                        f"{seen[question.id]} as well"
                    )
                seen[question.id] = question.row
                questions.append(question)
    except OSError as err:
        raise DataError(f"{file} cannot be read: {err.strerror or err}") from err
    except UnicodeDecodeError as err:
        raise DataError(f"{file} is not UTF-8 text: {err}") from err
    except csv.Error as err:
        raise DataError(f"{file}, row {reader.line_num}: malformed CSV ({err})") from err
    return questions


def _question(file: Path, row: int, fields: list[str]) -> Question:
    if len(fields) != 3:
        raise DataError(
            f"{file}, row {row}: {len(fields)} fields, expected 3 (Question ID, Type, Statement; a statement "
            "with a comma stands in quotes)"
        )
    number, type_name, statement = (field.strip() for field in fields)
    if not re.fullmatch("0*[1-9][0-9]{0,17}", number):
        raise DataError(f"{file}, row {row}: question id {shown(number)}, expected a whole number from 1")
    if pattern_of(type_name) is None:
        near = hint(type_name, PATTERNS) or f": the types are {', '.join(PATTERNS)} and their short names"
        raise DataError(f"{file}, row {row}: unknown type {shown(type_name)}{near}")
    if not statement:
        raise DataError(f"{file}, row {row}: the statement is empty")
    return Question(row, int(number), type_name, statement)


def _check_partners(file: Path, first: Question, second: Question) -> None:
    # Parity tells which image of a pair a statement belongs to, so two ids that are not partners would be
    # scored against the wrong images.
    if (first.id + 1) // 2 != (second.id + 1) // 2:
        raise DataError(
            f"{file}, rows {first.row} and {second.row}: question ids {first.id} and {second.id} are no pair "
            "(an odd id and the next one): a row before them is missing or out of place"
        )


def _warn_of_order(file: Path, couples: list[tuple[Question, Question]], share: int) -> None:
    for place, (first, _) in enumerate(couples):
        if pattern_of(first.type) != PATTERNS[place // share]:
            warnings.warn(
                f"{file}, row {first.row} has the type {first.type!r}, but by its place it counts for "
                f"{PATTERNS[place // share]!r}: as in the official code patterns go by place. The average is "
                "not affected",
                UserWarning,
                stacklevel=4,
            )
            return


class _TypeFolders:
    """The type folders under the images folder, and the images in them."""

    def __init__(self, images: Path) -> None:
        self.images = images
        self.folders = [entry for entry in sorted(images.iterdir()) if entry.is_dir()]

    def image(self, file: Path, question: Question, type_name: str) -> Path:
        where = f"{file}, row {question.row}"
        found = [folder for folder in self.folders if _key(folder.name) == _key(type_name)] or [
            folder for folder in self.folders if pattern_of(folder.name) == pattern_of(type_name)
        ]
        if not found:
            there = ", ".join(folder.name for folder in self.folders) or "nothing"
            raise DataError(
                f"{where}: {self.images} has no folder for the type {type_name!r}; there is {there}"
            )
        for ending in ("jpg", *sorted(EXTENSIONS)):
            for spelled in (ending, ending.upper()):
                path = found[0] / f"{question.id}.{spelled}"
                if path.is_file():
                    return path
        raise DataError(f"{where}: {found[0] / f'{question.id}.jpg'} is missing")
