"""Pickles that run code when they are loaded, in every wrapping that a reader of weights may open."""

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Payload:
    """Unpickling it creates a folder: the proof that code was run."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def payloads(marker: Path) -> dict[str, bytes]:
    """Name -> bytes of a file that creates the folder ``marker`` when it is unpickled."""
    evil = Payload(marker)
    plain = pickle.dumps(evil)
    array = io.BytesIO()
    np.save(array, np.array([evil], object), allow_pickle=True)
    return {
        "pickle": plain,
        "pickle of protocol 0": pickle.dumps(evil, protocol=0),
        "gzip": gzip.compress(plain),
        "torch": _torch(evil),
        "torch, before zip": _torch(evil, _use_new_zipfile_serialization=False),
        "torch, among weights": _torch({"visual.proj": torch.zeros(2, 2), "optimizer": evil}),
        "npy": array.getvalue(),
        "tar": _tar({"a.pkl": plain, "a.jpg": plain, "b.pth": _torch(evil)}),
        "safetensors, pickle as metadata": _safetensors(plain),
        "JSON": json.dumps({"py/reduce": ["os.mkdir", [str(marker)]], "__reduce__": plain.hex()}).encode(),
        "TorchScript": _script(),
    }


def _torch(content: Any, **options: Any) -> bytes:
    blob = io.BytesIO()
    torch.save(content, blob, **options)
    return blob.getvalue()


def _tar(members: dict[str, bytes]) -> bytes:
    blob = io.BytesIO()
    with tarfile.open(fileobj=blob, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return blob.getvalue()


def _safetensors(plain: bytes) -> bytes:
    header = json.dumps({"__metadata__": {"pickle": plain.hex()}}).encode()
    return len(header).to_bytes(8, "little") + header + plain


def _script() -> bytes:
    """An archive as torch.jit.save writes it, with code instead of data."""
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w") as archive:
        archive.writestr("archive/constants.pkl", b"\x80\x02).")
        archive.writestr("archive/data.pkl", b"c__torch__\nM\n)\x81.")
        code = b"class M(Module):\n  def forward(self):\n    return 1\n"
        archive.writestr("archive/code/__torch__.py", code)
        archive.writestr("archive/version", b"3\n")
    return blob.getvalue()
