"""Every place that reads files is known: a new one needs damaged files and pickles in the fuzz too."""

import ast
from collections import Counter
from pathlib import Path

import diva_rs
from fuzz.readers import READERS

PACKAGE = Path(diva_rs.__file__).parent
# What a call that reads a file ends in, whatever it is called on.
READS = {
    *(
        "load",
        "load_file",
        "load_model",
        "loads_file",
        "safe_open",
        "from_pretrained",
        "open_memmap",
        "memmap",
    ),
    *(
        "fromfile",
        "read_text",
        "read_bytes",
        "read_lines",
        "open_regular",
        "open",
        "Unpickler",
        "read_pickle",
        "read_csv",
    ),
    *("loadtxt", "genfromtxt", "create_model", "create_model_and_transforms", "load_checkpoint", "ZipFile"),
}
RUNS_CODE = {"exec", "eval", "compile", "__import__"}  # as functions of their own, not as methods
# File of the package -> how many such calls it has, and which readers of the fuzz go through them; in
# brackets why none does.
KNOWN: dict[str, tuple[int, tuple[str, ...]]] = {
    "_files.py": (7, ("weights", "config", "report", "open_clip folder")),
    "benchmarks/machine.py": (1, ("(what the system says of its processor)",)),
    "benchmarks/memory.py": (1, ("(what the system says of this process)",)),
    "benchmarks/run.py": (1, ("(its own lines of JSON, damaged in tests/unit/test_bench.py)",)),
    "callbacks.py": (1, ("run folder",)),
    "checkpoint.py": (5, ("checkpoint", "weights")),
    "cli/__init__.py": (1, ("(opens the null device)",)),
    "cli/export.py": (1, ("(reads what it has just written)",)),
    "cli/models.py": (3, ("transformers CLIP", "open_clip folder", "PyTorch weights")),
    "cli/options.py": (1, ("config",)),
    "cli/scored.py": (1, ("(transformers' own loader, of JSON alone)",)),
    "cli/train.py": (2, ("latents",)),
    "data/decode.py": (3, ("images", "shard")),
    "data/latent_cache.py": (1, ("latents",)),
    "data/latent_store.py": (5, ("latents",)),
    "data/shards.py": (2, ("shard",)),
    "demo/microworld.py": (1, ("(open_clip's own loader, of the weights that it has just written)",)),
    "demo/photographs.py": (2, ("(photographs and weights of installed packages)",)),
    "diffusion/loading.py": (5, ("teacher", "tokenizer")),
    "evaluation/benchmark.py": (1, ("(a number in clip-benchmark's own folder)",)),
    "evaluation/mmvp_folder.py": (1, ("MMVP",)),
    "evaluation/mmvp_vlm.py": (1, ("MMVP",)),
    "evaluation/report/html.py": (1, ("(the package's own style sheet)",)),
    "evaluation/report/pictures.py": (1, ("(bytes that are embedded as they are)",)),
    "evaluation/report/run.py": (2, ("report",)),
    "manifest.py": (2, ("checkpoint",)),
    "microworld/pretrained.py": (1, ("(one JSON file, damaged in tests/unit/test_microworld_study.py)",)),
    "microworld/study/runs.py": (
        2,
        ("(its own lines and settings as JSON, damaged in tests/unit/test_microworld_study.py)",),
    ),
    "run_folder.py": (4, ("run folder",)),
    "watch.py": (1, ("evaluations",)),
    "weights.py": (2, ("torch.save",)),
}


def reading_calls() -> dict[str, list[str]]:
    """File of the package -> the calls in it that read a file or run code."""
    found: dict[str, list[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                bare, name = isinstance(node.func, ast.Name), ast.unparse(node.func).rpartition(".")[2]
                writes = any(
                    isinstance(given, ast.Constant) and given.value in ("w", "wb", "x", "a")
                    for given in node.args
                )
                if (name in READS and not writes) or (bare and name in RUNS_CODE):
                    found.setdefault(file.relative_to(PACKAGE).as_posix(), []).append(ast.unparse(node)[:90])
    return found


def test_a_new_reader_of_files_is_not_missed():
    found = reading_calls()
    counts = Counter({file: len(calls) for file, calls in found.items()})
    listed = Counter({file: number for file, (number, _) in KNOWN.items()})
    other = {file: found.get(file, []) for file in counts | listed if counts[file] != listed[file]}
    assert not other, f"other calls that read files than are listed here: {other}"


def test_the_listed_readers_are_there():
    for file, (_, readers) in KNOWN.items():
        assert readers, file
        assert all(reader in READERS or reader.startswith("(") for reader in readers), file
