"""What a reader used and what it left out."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from diva_rs.data.decode import EXTENSIONS

logger = logging.getLogger("diva_rs.data")

_SNIFFED = 8  # entries of each reason whose first bytes are looked at
_REASONS = 12  # that a line names
# Endings of pictures, and of files full of pictures, that the readers do not decode.
_PICTURES = frozenset(
    ["heic", "heif", "hif", "jxl", "jp2", "j2k", "tga", "psd", "ico", "exr", "dds", "pbm", "pnm", "raw"]
).union(
    ["dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf", "tar", "tgz", "gz", "zip", "7z", "rar", "zst"],
    ["parquet", "arrow", "tfrecord", "h5", "hdf5", "lmdb", "mdb", "npy", "npz"],
)
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"\xff\x0a", b"\0\0\0\x0cJXL ")
_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"WEBP")  # in bytes 8 to 12


@dataclass(frozen=True)
class LeftOut:
    """How many entries were left out for one reason, and the name of the first."""

    count: int
    example: str


@dataclass
class Accounting:
    """The number of images that a reader used, and the entries that it left out, counted by reason.

    ``left_out`` maps a reason, worded to follow a number, to its `LeftOut`. ``pictures`` contains the reasons
    under which something was left out that looks like a picture. Accountings of two readers can be added.

    >>> accounting = Accounting(used=2)
    >>> accounting.leave_out("without an ending", "picture0")
    >>> accounting.leave_out("with the ending .heic", "IMG_0.HEIC", count=5, picture=True)
    >>> str(accounting)
    '2 images used, 6 left out: 5 with the ending .heic (IMG_0.HEIC), 1 without an ending (picture0)'
    >>> accounting.to_dict()["left_out"]["without an ending"]
    {'count': 1, 'example': 'picture0'}
    """

    used: int = 0
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    pictures: set[str] = field(default_factory=set)

    @property
    def total(self) -> int:
        """The number of all entries, used and left out."""
        return self.used + sum(left.count for left in self.left_out.values())

    def leave_out(self, reason: str, example: str, count: int = 1, picture: bool = False) -> None:
        """Count ``count`` further entries under a reason; ``picture``: one of them looks like a picture."""
        before = self.left_out.get(reason, LeftOut(0, example))
        self.left_out[reason] = LeftOut(before.count + count, before.example)
        if picture:
            self.pictures.add(reason)

    def is_image(self, name: str, head: Callable[[], bytes | None]) -> bool:
        """Whether a file's name is that of an image that is read; otherwise the file is counted as left out.

        ``head`` gives the file's first bytes, which show a picture under another name; None if unreadable.
        """
        reason = _reason(name)
        if reason is None:
            return True
        self.leave_out(reason, name, picture=_ending(name) in _PICTURES)
        if reason not in self.pictures and self.left_out[reason].count <= _SNIFFED and _is_picture(head()):
            self.pictures.add(reason)
        return False

    def __add__(self, other: "Accounting") -> "Accounting":
        both = Accounting(self.used + other.used, dict(self.left_out), self.pictures | other.pictures)
        for reason, left in other.left_out.items():
            both.leave_out(reason, left.example, left.count)
        return both

    def __str__(self) -> str:
        used = f"{self.used} image{'' if self.used == 1 else 's'} used"
        if not self.left_out:
            return f"{used}, none left out"
        # Pictures first, then the most frequent.
        ordered = sorted(self.left_out, key=lambda why: (why not in self.pictures, -self.left_out[why].count))
        parts = [f"{self.left_out[why].count} {why} ({self.left_out[why].example})" for why in ordered]
        if len(parts) > _REASONS:
            parts[_REASONS:] = [f"others for {len(parts) - _REASONS} more reasons"]
        return f"{used}, {self.total - self.used} left out: {', '.join(parts)}"

    def to_dict(self) -> dict[str, Any]:
        """``used``, and ``left_out`` with the count and the example of each reason, for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "pictures"}

    def log(self, what: str) -> None:
        """Log one line: a warning if something was left out that looks like a picture, otherwise INFO."""
        logger.log(logging.WARNING if self.pictures else logging.INFO, "%s: %s", what, self)


def _ending(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[2].lower()


def _reason(name: str) -> str | None:
    """Why a file of this name is not read; None if it is."""
    base = name.rpartition("/")[2]
    ending = _ending(base)
    # "._1.jpg" beside "1.jpg" is what macOS archives leave: metadata, not an image.
    if base.startswith("."):
        return "hidden"
    if "." not in base:
        return "without an ending"
    if ending in EXTENSIONS:
        return None
    # Numbers and long endings are parts of names: each would be a reason of one entry.
    usual = ending.isalnum() and len(ending) <= 8 and not ending.isdigit()
    return f"with the ending .{ending}" if usual else "with an unknown ending"


def _is_picture(head: bytes | None) -> bool:
    return head is None or head.startswith(_SIGNATURES) or head[8:12] in _BRANDS
