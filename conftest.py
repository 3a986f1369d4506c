"""The environment that the tests run in, and the names that examples in docstrings use."""

import importlib
import os
import signal
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from _pytest.doctest import DoctestItem

# Settings that would change what is tested: those of a launcher, of trackers and hubs, of this package.
_FOREIGN = ("DIVA_RS_", "HF_", "TRANSFORMERS_", "WANDB_", "TORCHELASTIC_", "ACCELERATE_", "MASTER_")
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
for _name in list(os.environ):
    if _name.startswith(_FOREIGN) or _name in _RANKS:
        del os.environ[_name]
# No window, and one font cache for all test processes, in a place that can be written without a HOME.
os.environ["MPLBACKEND"] = "agg"
os.environ.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir()) / f"matplotlib-of-tests-{os.getuid()}"))
if "PYTEST_XDIST_WORKER" in os.environ:
    # Test processes side by side share the cores; torch reads this once, when it is imported.
    _share = (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(_share, 1)))

# Name in an example -> module under tests/builders that makes it. Folders are made in `tmp_path`.
_MODELS = {
    **dict.fromkeys(("clip", "teacher", "unet", "result", "preprocess", "tokenizer"), "builders.examples"),
    "judged": "builders.judged",
}
_FOLDERS = {
    "mmvp_folder": "builders.mmvp",
    "shapes_folder": "builders.benchmarks",
    "captions_folder": "builders.benchmarks",
    "photos_folder": "builders.benchmarks",
    "sugarcrepe_folder": "builders.detail",
}

collect_ignore_glob = ["tests/*/conftest.py"]  # no examples, and one module name for all of them
if find_spec("triton") is None:
    collect_ignore_glob += ["python/diva_rs/native/recap.py", "tests/builders/fused_recap.py"]


@pytest.fixture(autouse=True)
def _names_for_examples(request, doctest_namespace):
    if not isinstance(request.node, DoctestItem):
        return
    import torch

    import diva_rs

    torch.manual_seed(0)
    doctest_namespace.update({name: getattr(diva_rs, name) for name in diva_rs.__all__})
    doctest_namespace.update(torch=torch, diva_rs=diva_rs)
    # Building models costs time that most examples do not need: only the names that an example mentions.
    text = "".join(example.source for example in request.node.dtest.examples)
    for name, module in {**_MODELS, **_FOLDERS}.items():
        if name in text:
            make = getattr(importlib.import_module(module), name)
            given = [request.getfixturevalue("tmp_path")] if name in _FOLDERS else []
            doctest_namespace[name] = make(*given)


@pytest.fixture
def ctrl_c():
    """A function that sends Ctrl-C to this process, which receives it as in the foreground.

    A process that a shell starts in the background inherits an ignored SIGINT.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)
