"""The parts of an image file that say nothing about its pixels: how it is turned, and a copy without them.

Pillow refuses a file for damage in a text, a profile or a camera's notes. Such damage changes no pixel.
"""

import struct
import zlib
from contextlib import suppress
from typing import Any, BinaryIO

_ORIENTATION = 0x0112
_KEPT = {b"JFIF\0": 16, b"Exif\0\0": 8, b"Adobe": 14}  # segments of a JPEG file, with their least length
# The tags of a TIFF file, all below 533, that are words or the size of the print; those above are profiles,
# notes and extensions.
_WORDS = frozenset([*range(269, 273), 282, 283, 285, 286, 287, 296, 297, 305, 306, 315, 316])


def upright(image: Any) -> Any:
    """A PIL image turned as its EXIF or XMP data says; as it is where these are damaged or say nothing."""
    turn = None
    with suppress(Exception):  # Pillow parses hostile bytes here
        turn = image.getexif().get(_ORIENTATION)
    # FLIP_LEFT_RIGHT, ROTATE_180, FLIP_TOP_BOTTOM, TRANSPOSE, ROTATE_270, TRANSVERSE, ROTATE_90
    method = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(turn) if isinstance(turn, int) else None
    return image if method is None else image.transpose(method)


def bare(file: BinaryIO, most: int) -> bytes | None:
    """An image file of at most ``most`` bytes without its metadata; None if its format is not known."""
    file.seek(0)
    head = file.read(16)
    for start, copy in _FORMATS.items():
        if head.startswith(start) or head[4:].startswith(start):
            with suppress(struct.error, IndexError):
                return copy(head + file.read(most))
    return None


def _png(data: bytes) -> bytes:
    """The critical chunks, and the EXIF data if it is whole."""
    kept, place = [data[:8]], 8
    while place + 8 <= len(data) and data[place + 4 : place + 8] != b"IEND":
        (length,) = struct.unpack_from(">I", data, place)
        chunk = data[place : place + length + 12]
        whole = chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
        if chunk[4:5].isupper() or (chunk[4:8] == b"eXIf" and whole):
            kept.append(chunk)
        place += length + 12
    return b"".join([*kept, b"\0\0\0\0IEND\xaeB`\x82"])


def _jpeg(data: bytes) -> bytes:
    """Of comments and application data, those alone that are EXIF data or name the colours."""
    kept, place = [data[:2]], 2
    while data[place] == 0xFF and data[place + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, place + 2)
        segment = data[place : place + length + 2]
        extra = 0xE0 <= segment[1] <= 0xEF or segment[1] == 0xFE
        if not extra or any(
            segment[4:].startswith(start) and length >= most for start, most in _KEPT.items()
        ):
            kept.append(segment)
        place += length + 2
    return b"".join([*kept, data[place:]])


def _webp(data: bytes) -> bytes:
    """Without profile and XMP data, and without what is cut off."""
    kept, place, exif = [], 12, 0
    while place + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, place + 4)
        chunk = data[place : place + 8 + length]
        place += 8 + length + length % 2
        if len(chunk) == 8 + length and chunk[:4] not in (b"ICCP", b"XMP "):
            kept.append(chunk + bytes(length % 2))
            exif |= 8 * (chunk[:4] == b"EXIF")
    if kept[0].startswith(b"VP8X"):  # its flags name the chunks: of animation 2, EXIF 8, transparency 16
        kept[0] = kept[0][:8] + bytes([kept[0][8] & 18 | exif]) + kept[0][9:]
    picture = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(picture)) + picture


def _tiff(data: bytes) -> bytes:
    """With the tags of the first directory that describe pixels alone."""
    order = "<" if data[:1] == b"I" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    entries = [data[start + 2 + 12 * i :][:12] for i in range(count)]
    tags = [struct.unpack_from(f"{order}H", entry)[0] for entry in entries]
    kept = [entry for tag, entry in zip(tags, entries, strict=True) if tag < 533 and tag not in _WORDS]
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    return data[:start] + directory + data[start + len(directory) :]


def _avif(data: bytes) -> bytes:
    """With other types for the items that are EXIF and XMP data."""
    end = data.find(b"mdat")
    head = data[:end].replace(b"Exif", b"skip").replace(b"mime", b"skip")
    return head + data[end:]


_FORMATS = {
    b"\x89PNG": _png,
    b"\xff\xd8": _jpeg,
    b"RIFF": _webp,
    b"II*\0": _tiff,
    b"MM\0*": _tiff,
    b"ftyp": _avif,
}
