"""Damage to the bytes of a file of any format."""

import random
import re
import struct
from collections.abc import Callable

Damage = Callable[[bytes, random.Random], bytes]

_SIZES = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63 - 1, 2**64 - 1]
_WORDS = [
    b"NaN", b"Infinity", b"-1", b"1e999", b"null", b"true", b"[]", b"{}", b'""', b"9" * 5000, b"\xff\xfe",
]  # fmt: skip
_NUMBERS = [b"-1", b"0", b"4294967296", b"1152921504606846976", b"9" * 4400, b"1e308", b"-0.0"]


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def bits_flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        changed[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def bytes_overwritten(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 2, 16])):
        changed[_place(data, rng)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return bytes(changed)


def length_field(data: bytes, rng: random.Random) -> bytes:
    """A huge, zero or negative integer of 2, 4 or 8 bytes in either byte order."""
    code = rng.choice("HIQ")
    packed = struct.pack(rng.choice("<>") + code, rng.choice(_SIZES) % (1 << (8 * struct.calcsize(code))))
    at = _place(data, rng)
    return data[:at] + packed + data[at + len(packed) :]


def number_replaced(data: bytes, rng: random.Random) -> bytes:
    """A number written in digits becomes another one."""
    return _replaced(data, rb"-?\d+(?:\.\d+)?", rng, _NUMBERS)


def word_replaced(data: bytes, rng: random.Random) -> bytes:
    return _replaced(data, rb'"[^"\n]{0,80}"|[A-Za-z_]+', rng, _WORDS)


def part_removed(data: bytes, rng: random.Random) -> bytes:
    low, high = sorted((_place(data, rng), _place(data, rng)))
    return data[:low] + data[high:]


def part_repeated(data: bytes, rng: random.Random) -> bytes:
    low, high = sorted((_place(data, rng), _place(data, rng)))
    return data[:high] + data[low:high] * rng.choice([1, 1, 2, 10]) + data[high:]


def line_repeated(data: bytes, rng: random.Random) -> bytes:
    """A line, and with it perhaps a key, occurs twice."""
    lines = data.splitlines(keepends=True)
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
    return b"".join(lines)


def filled(data: bytes, rng: random.Random) -> bytes:
    """A lost block reads as zeros, as after a power cut."""
    at, length = _place(data, rng), rng.choice([16, 512, 4096])
    return data[:at] + (b"\0" * length)[: len(data) - at] + data[at + length :]


def appended(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice([b"\0", b"\0" * 4096, data, rng.randbytes(100), b"}", b"\n"])


def noise(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice([1, 8, 100, len(data)]))


def other_encoding(data: bytes, rng: random.Random) -> bytes:
    return data.decode("latin-1").encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"]))


DAMAGE: list[Damage] = [
    truncated, bits_flipped, bits_flipped, bytes_overwritten, length_field, length_field, number_replaced,
    number_replaced, word_replaced, part_removed, part_repeated, line_repeated, filled, appended, noise,
    other_encoding,
]  # fmt: skip


def _place(data: bytes, rng: random.Random) -> int:
    """Half of the places are in the first 64 bytes, where headers are."""
    return rng.randrange(len(data) if rng.random() < 0.5 else min(len(data), 64))


def _replaced(data: bytes, pattern: bytes, rng: random.Random, by: list[bytes]) -> bytes:
    found = list(re.finditer(pattern, data[:20_000]))
    if not found:
        return bits_flipped(data, rng)
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(by) + data[match.end() :]
