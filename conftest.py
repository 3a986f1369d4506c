"""The environment that the tests run in, and the imports of examples in docstrings."""

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

collect_ignore_glob = ["tests/*/conftest.py"]  # no examples, and one module name for all of them
if find_spec("triton") is None:
    collect_ignore_glob += ["python/diva_rs/native/recap.py", "tests/builders/fused_recap.py"]


@pytest.fixture(autouse=True)
def _imports_of_examples(request, doctest_namespace):
    if not isinstance(request.node, DoctestItem):
        return
    import torch

    import diva_rs

    # As the pages of the reference say: examples begin with these imports, and import or make the rest.
    torch.manual_seed(0)
    doctest_namespace.update({name: getattr(diva_rs, name) for name in diva_rs.__all__})
    doctest_namespace.update(torch=torch, diva_rs=diva_rs, tempfile=tempfile)


@pytest.fixture
def ctrl_c():
    """A function that sends Ctrl-C to this process, which receives it as in the foreground.

    A process that a shell starts in the background inherits an ignored SIGINT.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)
