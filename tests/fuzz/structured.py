"""Damage that keeps a file's format: hostile values where the reader has come to trust the syntax."""

import gzip
import io
import json
import random
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.damage import DAMAGE

_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 0.5, -0.0, 3, 1000, 65536, 2**31, 2**40, 2**63, 2**64, -(2**63), 10**4000,
    float("nan"), float("inf"), float("-inf"), 1e308, "", "0", "a" * 100_000, "\ud800", "\0",
    "../../etc/passwd", "/dev/zero", "cuda:99",
    [], {}, [[]], [None], [0], [-1, 2**62], [2**40] * 3, ["a"], {"a": 1}, {"": None},
    "DiffusionPipeline", "AutoModel", "__class__", "os.system", "float8_e4m3fn", "object",
]  # fmt: skip


def json_value(data: bytes, rng: random.Random) -> bytes:
    """One value of the document is another one; or its key is missing, renamed, or there twice."""
    try:
        document = json.loads(data)
    except ValueError:
        return data
    places = list(_places(document))
    if not places:
        return json.dumps(rng.choice(_VALUES)).encode()
    for _ in range(rng.choice([1, 1, 1, 3])):
        parent, key = rng.choice(places)
        kind = rng.random()
        if key not in (parent if isinstance(parent, dict) else range(len(parent))):
            continue
        if kind < 0.75:
            parent[key] = rng.choice(_VALUES)
        elif kind < 0.85:
            del parent[key]
        elif isinstance(parent, dict):
            parent[rng.choice(["", "x" * 1000, "__class__", f"{key} ", "../x"])] = parent[key]
    text = json.dumps(document)
    if kind > 0.95 and isinstance(document, dict) and len(text) > 2:  # every key twice: the last one counts
        text = json.dumps({name: rng.choice(_VALUES) for name in document})[:-1] + ", " + text[1:]
    return text.encode()


def nested(data: bytes, rng: random.Random) -> bytes:
    """Brackets within brackets, deeper than any stack."""
    depth = rng.choice([100, 2000, 100_000])
    open_, close = rng.choice([("[", "]"), ('{"a":', "}"), ("{a=", "}"), ("a.", "")])
    text = open_ * depth + "1" + close * depth
    start = rng.choice(["", "a = ", "x = [", '{"config": ', '{"counters": {}, "recipe": '])
    return (start + text + rng.choice(["", "}", " = 1\n"])).encode()


def safetensors_header(data: bytes, rng: random.Random) -> bytes:
    """A header that is well formed and lies."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    entry = header[rng.choice(names)]
    total = len(body)
    kind = rng.randrange(8)
    if kind == 0:
        entry["shape"] = rng.choice(
            [[2**60], [2**32, 2**32], [0, 2**62], [-1, -1], [], [1] * 1000, "x", [0.5]]
        )
    elif kind == 1:
        entry["data_offsets"] = rng.choice([[0, 0], [0, 2**63], [total, 0], [-8, 0], [0, total], [0], None])
    elif kind == 2:
        entry["dtype"] = rng.choice(
            ["F64", "F4", "F8_E4M3", "F8_E8M0", "U64", "C64", "BOOL", "object", 7, ""]
        )
    elif kind == 3:  # two tensors in one place
        entry.update(header[rng.choice(names)])
    elif kind == 4:
        header[rng.choice(["", "\0", "x" * 10_000, "a/../b", "__metadata__"])] = entry
    elif kind == 5:
        header.pop(rng.choice(names))
    elif kind == 6:
        header["__metadata__"] = rng.choice([{"a": 1}, [], "x", {"a": "b" * 100_000}, {"format": "pickle"}])
    else:  # values that are no numbers, in place
        body = np.frombuffer(body[: len(body) // 4 * 4], "<f4").copy()
        body[rng.randrange(len(body))] = rng.choice([np.nan, np.inf, -np.inf, 3e38])
        return data[: 8 + length] + body.tobytes()
    text = json.dumps(header).encode()
    if rng.random() < 0.2:  # one name twice
        text = b'{"' + names[0].encode() + b'":' + json.dumps(entry).encode() + b"," + text[1:]
    declared = rng.choice([len(text)] * 8 + [2**60, 2**63, len(text) + total, 0])
    return declared.to_bytes(8, "little") + text + body


def npy_header(data: bytes, rng: random.Random) -> bytes:
    """A header that is well formed and lies about type, order or shape."""
    blob = io.BytesIO(data)
    version = np.lib.format.read_magic(blob)
    shape, order, dtype = np.lib.format.read_array_header_1_0(blob)
    body = data[blob.tell() :]
    header: dict[str, Any] = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": order,
        "shape": shape,
    }
    kind = rng.randrange(4)
    if kind == 0:
        header["shape"] = rng.choice([(2**40,), (2**62, 4), (-1,), (), (0, 2**60), shape[::-1], "x", (1.5,)])
    elif kind == 1:
        header["descr"] = rng.choice(
            ["|O", "<f8", "<U1000000", "|V1", "x", [("a", "|O")], [], 5, ">f4", "<M8[D]"]
        )
    elif kind == 2:
        header["fortran_order"] = rng.choice([True, None, 2, "no"])
    else:
        header[rng.choice(["extra", "__class__"])] = "x" * rng.choice([1, 60_000])
    text = (
        repr(header) if rng.random() < 0.9 else rng.choice(["[" * 9000, "()" * 20, "{" + "-" * 9000])
    ).encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text) % 65536) + text + body


def npy_values(data: bytes, rng: random.Random) -> bytes:
    """Whole rows of hostile numbers behind a true header."""
    start = 10 + int.from_bytes(data[8:10], "little")
    body = bytearray(data[start:])
    for _ in range(rng.choice([1, 5, 20])):
        if len(body) < 8:
            break
        at = rng.randrange(len(body) // 8) * 8
        body[at : at + 8] = rng.choice([2**63, 2**63 - 1, 2**64 - 1, 2**40, 0, 5]).to_bytes(8, "little")
    return data[:start] + bytes(body)


def png_size(data: bytes, rng: random.Random) -> bytes:
    """Another size, depth or kind in the first chunk, with a true checksum."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    sides = [0, 1, 13_000, 30_000, 2**16, 2**31 - 1, 2**32 - 1]
    header = b"IHDR" + struct.pack(
        ">IIBBBBB",
        rng.choice(sides),
        rng.choice(sides),
        rng.choice([1, 8, 16, 3]),
        rng.choice([0, 2, 3, 6, 5]),
        0,
        0,
        1,
    )
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def png_chunk(data: bytes, rng: random.Random) -> bytes:
    """A compressed text, profile or pixel block that grows a thousandfold."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    zeros = zlib.compress(bytes(30_000_000))
    kind, body = rng.choice(
        [
            (b"zTXt", b"a\0\0" + zeros),
            (b"iCCP", b"a\0\0" + zeros),
            (b"IDAT", zeros),
            (b"eXIf", b"MM\0*" + b"\xff" * 100),
        ]
    )
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + chunk + data[33:]


def tar_member(data: bytes, rng: random.Random) -> bytes:
    """A member that leads elsewhere, or declares what it is not, before the good ones."""
    blob = io.BytesIO()
    info = tarfile.TarInfo(
        rng.choice(["../../x.jpg", "/etc/x.jpg", "a.jpg", "x" * 300 + ".jpg", "\udcff.jpg", ".", ""])
    )
    info.type = rng.choice(
        [tarfile.REGTYPE] * 3
        + [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
    )
    info.linkname = rng.choice(["/etc/passwd", "../../x", info.name, ""])
    body = rng.choice([b"", rng.randbytes(700)])
    info.size = len(body)
    kind = rng.choice(["plain", "pax", "sparse", "long name", "size", "negative", "sparse 1.0"])
    if kind == "pax":
        info.pax_headers = {
            rng.choice(["size", "path", "mtime", "GNU.sparse.size", "hdrcharset"]): rng.choice(
                ["-512", "9" * 30, "0" * 40_000, "x", ""]
            )
        }
    if kind == "sparse 1.0":
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.realsize": str(2**50),
        }
        body = rng.choice([b"1\n0\n1125899906842624\n", b"999999999\n", b"x", b""])
        info.size = len(body)
    header = bytearray(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
    last = len(header) - 512
    if kind == "sparse":
        header[last + 156 : last + 157] = b"S"
        header[last + 386 : last + 410] = b"00000000000\0" + b"00000000001\0"
        header[last + 483 : last + 495] = b"\x80" + (2**50).to_bytes(11, "big")
    elif kind == "long name":
        header[last + 156 : last + 157] = rng.choice([b"L", b"K", b"x", b"g", b"X"])
    elif kind == "size":
        header[last + 124 : last + 136] = b"\x80" + rng.choice([2**40, 2**60, 2**63]).to_bytes(11, "big")
    elif kind == "negative":
        header[last + 124 : last + 136] = b"\xff" * 10 + rng.choice([b"\xfe\x00", b"\x00\x00", b"\xff\xff"])
    header[last + 148 : last + 156] = b" " * 8
    header[last + 148 : last + 156] = b"%06o\0 " % sum(header[last:])
    blob.write(bytes(header) + body + bytes(-len(body) % 512) + data)
    whole = blob.getvalue()
    return gzip.compress(whole) if rng.random() < 0.2 else whole


def tar_bomb(data: bytes, rng: random.Random) -> bytes:
    """A few kilobytes that decompress to a member, a name or a header of 300 MB."""
    size = 300_000_000
    info = tarfile.TarInfo(rng.choice(["a.jpg", "a.json"]))
    info.size, info.type = size, rng.choice([tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
    blob = io.BytesIO()
    with gzip.open(blob, "wb", compresslevel=1) as packed:
        packed.write(info.tobuf())
        for _ in range(size // 1_000_000 + 1):
            packed.write(rng.choice([b"\0", b"\0", b"9"]) * 1_000_000)
    return blob.getvalue()


_JSON = [json_value] * 6 + [nested]
_STRUCTURED: dict[str, list[Callable[[bytes, random.Random], bytes]]] = {
    ".json": _JSON,
    ".jsonl": _JSON,
    ".toml": [nested],
    ".safetensors": [safetensors_header],
    ".npy": [npy_header, npy_values],
    ".png": [png_size, png_size, png_chunk],
    ".tar": [tar_member] * 20 + [tar_bomb],
}


def damages(path: Path) -> list[Callable[[bytes, random.Random], bytes]]:
    """What may be done to a file of this name, about as much that keeps its format as that does not."""
    own = _STRUCTURED.get(path.suffix, [])
    return DAMAGE + own * (len(DAMAGE) // len(own)) if own else DAMAGE


def _places(value: Any) -> Any:
    """(container, key) of everything in a document."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])
