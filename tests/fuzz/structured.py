"""Damage that keeps a file's format: hostile values behind a valid syntax."""

import gzip
import io
import json
import random
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.damage import DAMAGE, Damage

_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 0.5, -0.0, 3, 1000, 65536, 2**31, 2**40, 2**63, 2**64, -(2**63), 10**4000,
    float("nan"), float("inf"), float("-inf"), 1e308, "", "0", "a" * 100_000, "\ud800", "\0",
    "../../etc/passwd", "/dev/zero", "cuda:99",
    [], {}, [[]], [None], [0], [-1, 2**62], [2**40] * 3, ["a"], {"a": 1}, {"": None},
    "DiffusionPipeline", "AutoModel", "__class__", "os.system", "float8_e4m3fn", "object",
]  # fmt: skip


_ENTRY: dict[str, list[Any]] = {  # of a tensor in the header of a safetensors file
    "shape": [[2**60], [2**32, 2**32], [0, 2**62], [-1, -1], [], [1] * 1000, "x", [0.5]],
    "data_offsets": [[0, 0], [0, 2**63], [-8, 0], [0], None],
    "dtype": ["F64", "F4", "F8_E4M3", "F8_E8M0", "U64", "C64", "BOOL", "object", 7, ""],
}


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
    kind = rng.choice([*_ENTRY, "same place", "other name", "no entry", "metadata", "values"])
    if kind in _ENTRY:
        entry[kind] = rng.choice([*_ENTRY[kind], [total, 0], [0, total]])
    elif kind == "same place":
        entry.update(header[rng.choice(names)])
    elif kind == "other name":
        header[rng.choice(["", "\0", "x" * 10_000, "a/../b", "__metadata__"])] = entry
    elif kind == "no entry":
        header.pop(rng.choice(names))
    elif kind == "metadata":
        header["__metadata__"] = rng.choice([{"a": 1}, [], "x", {"a": "b" * 100_000}, {"format": "pickle"}])
    else:  # numbers that are not finite, in place
        values = np.frombuffer(body[: len(body) // 4 * 4], "<f4").copy()
        values[rng.randrange(len(values))] = rng.choice([np.nan, np.inf, -np.inf, 3e38])
        return data[: 8 + length] + values.tobytes()
    text = json.dumps(header).encode()
    if rng.random() < 0.2:  # one name twice
        text = b'{"' + names[0].encode() + b'":' + json.dumps(entry).encode() + b"," + text[1:]
    declared = rng.choice([len(text)] * 8 + [2**60, 2**63, len(text) + total, 0])
    return declared.to_bytes(8, "little") + text + body


def png_size(data: bytes, rng: random.Random) -> bytes:
    """Another size, depth or kind in the first chunk, with a true checksum."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    sides = [0, 1, 13_000, 30_000, 2**16, 2**31 - 1, 2**32 - 1]
    size, kind = (
        [rng.choice(sides), rng.choice(sides)],
        [rng.choice([1, 8, 16, 3]), rng.choice([0, 2, 3, 6, 5])],
    )
    header = b"IHDR" + struct.pack(">IIBBBBB", *size, *kind, 0, 0, 1)
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def png_chunk(data: bytes, rng: random.Random) -> bytes:
    """A compressed text, profile or pixel block that grows a thousandfold."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    zeros = zlib.compress(bytes(30_000_000))
    texts = [(b"zTXt", b"a\0\0" + zeros), (b"iCCP", b"a\0\0" + zeros)]
    kind, body = rng.choice([*texts, (b"IDAT", zeros), (b"eXIf", b"MM\0*" + b"\xff" * 100)])
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + chunk + data[33:]


def tar_member(data: bytes, rng: random.Random) -> bytes:
    """A member that leads elsewhere, or declares what it is not, before the good ones."""
    blob = io.BytesIO()
    names = ["../../x.jpg", "/etc/x.jpg", "a.jpg", "x" * 300 + ".jpg", "\udcff.jpg", ".", ""]
    links = [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
    info = tarfile.TarInfo(rng.choice(names))
    info.type = rng.choice([*[tarfile.REGTYPE] * 3, *links])
    info.linkname = rng.choice(["/etc/passwd", "../../x", info.name, ""])
    body = rng.choice([b"", rng.randbytes(700)])
    info.size = len(body)
    kind = rng.choice(["plain", "pax", "sparse", "long name", "size", "negative", "sparse 1.0"])
    if kind == "pax":
        name = rng.choice(["size", "path", "mtime", "GNU.sparse.size", "hdrcharset"])
        info.pax_headers = {name: rng.choice(["-512", "9" * 30, "0" * 40_000, "x", ""])}
    if kind == "sparse 1.0":
        sparse = {"major": "1", "minor": "0", "realsize": str(2**50)}
        info.pax_headers = {f"GNU.sparse.{name}": value for name, value in sparse.items()}
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
_STRUCTURED: dict[str, list[Damage]] = {
    ".json": _JSON,
    ".jsonl": _JSON,
    ".toml": [nested],
    ".safetensors": [safetensors_header],
    ".png": [png_size, png_size, png_chunk],
    ".tar": [tar_member] * 20 + [tar_bomb],
}


def damages(path: Path) -> list[Damage]:
    """What may be done to a file of this name, about as much that keeps its format as that does not."""
    own = _STRUCTURED.get(path.suffix, [])
    return DAMAGE + own * (len(DAMAGE) // len(own)) if own else DAMAGE


def _places(value: Any) -> Any:
    """(container, key) of everything in a document."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])
