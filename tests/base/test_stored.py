"""Weights from files of any kind: what can be loaded is, all else is one line that says what to do."""

import argparse
import json

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from diva_rs._base.stored import read_stored
from diva_rs.errors import WeightsError

pytestmark = pytest.mark.hostile

WEIGHTS = {"a.weight": torch.arange(4.0).reshape(2, 2), "n": torch.tensor(3)}


def same(found, expected=WEIGHTS):
    return found.keys() == expected.keys() and all(torch.equal(found[k], v) for k, v in expected.items())


WRAPPED = {
    "plain": WEIGHTS,
    "open_clip": {"epoch": 3, "state_dict": WEIGHTS, "optimizer": {"state": {}, "param_groups": []}},
    "model": {"model": WEIGHTS, "ema": WEIGHTS},
    "another name": {"net": WEIGHTS, "step": 3},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", WRAPPED)
def test_what_training_scripts_save(name, legacy, tmp_path):
    torch.save(WRAPPED[name], tmp_path / "x.bin", _use_new_zipfile_serialization=not legacy)
    assert same(read_stored(tmp_path / "x.bin").weights)


@pytest.mark.parametrize("ending", ["safetensors", "bin", "pt"])
def test_the_ending_does_not_count(ending, tmp_path):
    save_file(WEIGHTS, tmp_path / f"a.{ending}")
    torch.save(WEIGHTS, tmp_path / f"b.{ending}")
    assert all(same(read_stored(tmp_path / f"{name}.{ending}").weights) for name in "ab")


def test_several_files_with_an_index(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": "1.safetensors", "n": "2.safetensors"}}))
    save_file({"a.weight": WEIGHTS["a.weight"]}, tmp_path / "1.safetensors")
    with pytest.raises(WeightsError, match=r"names 2 files, and 2\.safetensors is not beside it"):
        read_stored(index)
    save_file({"n": WEIGHTS["n"]}, tmp_path / "2.safetensors")
    assert same(read_stored(index).weights)
    index.write_text('{"weight_map": 3}')
    with pytest.raises(WeightsError, match="is not an index of weight files"):
        read_stored(index)


class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.ModuleList([nn.Linear(2, 3).half(), nn.LayerNorm(2)])
        self.register_buffer("n", torch.tensor(3))
        self.sizes = [1, 2]

    def forward(self, x):
        return self.a[1](x) + len(self.sizes)


@pytest.mark.filterwarnings("ignore:.*jit:DeprecationWarning")
def test_a_torchscript_archive(tmp_path):
    module = Module()
    torch.jit.save(torch.jit.script(module), tmp_path / "x.pt")
    assert same(read_stored(tmp_path / "x.pt").weights, module.state_dict())


def torch_file(content, path):
    torch.save(content, path)
    return path.read_bytes()


# Name -> the bytes of the file, and the reason.
BROKEN = {
    "empty": (lambda path: b"", r"is empty: download it again"),
    "pointer": (lambda path: b"version https://git-lfs.github.com/spec/v1\nsize 3\n", "git lfs pull"),
    "page": (lambda path: b"<!DOCTYPE html>\n<html><body>404</body></html>", r"is text \('<!DOCTYPE html"),
    "answer": (lambda path: b"Entry not found", r"is text \('Entry not found'\), as a server sends"),
    "gguf": (lambda path: b"GGUF\x03\0\0\0" + bytes(99), "is a GGUF file"),
    "part of safetensors": (lambda path: save(WEIGHTS)[:-5], "cannot be read as safetensors"),
    "part of torch": (lambda path: torch_file(WEIGHTS, path)[:-200], "is damaged or incomplete: download"),
    "objects": (
        lambda path: torch_file({"args": argparse.Namespace(), "model": WEIGHTS}, path),
        r"holds Python objects \(argparse\.Namespace\) beside tensors: save model\.state_dict\(\) alone$",
    ),
    "a module": (lambda path: torch_file(nn.Linear(2, 2), path), r"holds Python objects \(torch\.nn\."),
    "two models": (
        lambda path: torch_file({"student": WEIGHTS, "teacher": WEIGHTS}, path),
        r"holds several state dicts \(student, teacher\)",
    ),
    "a list": (lambda path: torch_file([1], path), "holds a list, not a state dict"),
    "noise": (lambda path: bytes(range(256)), "cannot be read as weights"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_loaded_is_one_line(name, tmp_path):
    make, words = BROKEN[name]
    path = tmp_path / "x.bin"
    path.write_bytes(make(path))
    with pytest.raises(WeightsError, match=words) as caught:
        read_stored(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and "weights_only" not in text and "arbitrary" not in text
