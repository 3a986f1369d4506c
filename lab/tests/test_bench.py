"""The benchmark: its contestants do the same work, and its records are complete. No time is asserted."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diva_rs.errors import ConfigError, DataError, DeviceError
from lab.benchmarks import kernels
from lab.benchmarks.contestants import NAMES, make
from lab.benchmarks.memory import memory
from lab.benchmarks.models import Models, quiet
from lab.benchmarks.overview import PARTS, Part, overview
from lab.benchmarks.plot import figure, svg
from lab.benchmarks.run import Options, append, read, run
from lab.benchmarks.sizes import find
from lab.benchmarks.table import ratio, section
from lab.benchmarks.targets import targets
from lab.benchmarks.timing import take_turns
from lab.cli import main

BOTH = {"indexed last": {"wall": [2.0], "cpu": [2.0]}, "ours": {"wall": [1.0], "cpu": [1.0]}}
SHAPES = {shape.name: {"patches": 1, "choose": 1, "contestants": BOTH} for shape in kernels.SHAPES}
CHOICES = ({}, {"batched": True}, {"channels_last": True})


@pytest.fixture(scope="module")
def models():
    with quiet():
        yield Models(find("tiny"))


def found(contestant, models):
    loss = contestant.step(models.images(), models.draws())
    return loss, {name: p.grad.clone() for name, p in contestant.parameters().items() if p.grad is not None}


@pytest.fixture(scope="module")
def official(models):
    return found(make("official", models), models)


WAYS = [("plain", choices) for choices in CHOICES] + [(name, {}) for name in NAMES[2:]]


@pytest.mark.parametrize("name, choices", WAYS, ids=str)
def test_contestants_compute_the_same_loss_and_gradient(models, official, name, choices):
    loss, gradients = found(make(name, models, **choices), models)
    assert abs(loss - official[0]) <= 1e-5 * official[0]
    assert gradients.keys() == official[1].keys() and len(gradients) > 20
    for key, gradient in gradients.items():
        assert (gradient - official[1][key]).norm() <= 1e-5 * official[1][key].norm(), key


def test_contestants_see_the_draws(models):
    """The comparison above would mean nothing if the draws that are given were not used."""
    ours, plain = make("ours", models), make("plain", models)
    for contestant in (ours, plain):
        first = contestant.step(models.images(), models.draws(seed=1))
        again = contestant.step(models.images(), models.draws(seed=1))
        other = contestant.step(models.images(), models.draws(seed=2))
        assert first == again != other


def test_turns_alternate_and_are_all_counted():
    calls = []
    times = take_turns({name: lambda n=name: calls.append(n) for name in "ab"}, rounds=3)
    assert calls == list("ab" * 4)  # one round warms up
    assert all(len(times[name].wall) == len(times[name].cpu) == 3 for name in "ab")


def test_a_run_is_appended_and_its_page_has_every_contestant(tmp_path):
    record = run("tiny", "fp32", rows=["step"], options=Options(rounds=2, compile=False))
    page = append(record, tmp_path)
    append({**record, "date": "later"}, tmp_path)
    assert [one["date"] for one in read(tmp_path)] == [record["date"], "later"]
    assert read(tmp_path)[0] == json.loads(json.dumps(record))
    times = record["rows"]["step"]["contestants"]
    assert tuple(times) == NAMES and all(len(one["wall"]) == 2 for one in times.values())
    text = page.read_text()
    assert text.index("later") < text.index(record["date"]) and section(record) in text
    for name in NAMES:
        line = next(line for line in section(record).splitlines() if line.startswith(f"| {name} "))
        median = statistics.median(times[name]["wall"])
        assert f"{1e3 * median:.1f} " in line and f"{ratio(times, name, 'ours'):.2f}x" in line
    tried = record["rows"]["step"]["plain_tried"]
    assert [one["choice"] for one in tried] == ["batched", "channels_last"]
    assert all(one["kept"] == (one["with"] < one["without"]) for one in tried)


def test_the_other_rows_measure_what_they_say(tmp_path):
    rows = ["peak", "growth", "recap", "draws"]
    record = run("tiny", "fp32", rows, Options(rounds=1, compile=False))
    told, found = section(record), record["rows"]
    append(
        {**record, "size": "microworld", "rows": {**found, "recap": {"batch": 16, "shapes": SHAPES}}},
        tmp_path,
    )
    flops = found["peak"]["flops"]
    assert flops["cached"] < flops["needed"] < flops["official"]
    # The vision tower runs forward and backward once, whatever N is.
    tower = found["growth"]["tower"]
    assert list(tower) == ["1", "2", "4", "8"] and all(one["calls"] == [2] for one in tower.values())
    assert list(found["growth"]["side"]) == ["8", "16", "24"] and list(found["growth"]["batch"]) == list(
        "1248"
    )
    for word in ("GFLOP", "its calls", "indexed first", "| torch ", "How a step grows"):
        assert word in told, word
    assert "its calls" in (tmp_path / "bench.md").read_text()


def test_rows_of_bf16_tell_what_is_counted_and_chosen():
    record = run("tiny", "bf16", ["launches", "products"], Options(rounds=1, compile=False))
    counts, found = record["rows"]["launches"], record["rows"]["products"]
    ours, plain, batched = (counts[name]["step"] for name in ("ours", "plain", "plain, batched"))
    assert ours["launches"] < plain["launches"] > batched["launches"] and ours["casts"] > 0
    assert set(found["contestants"]) == {"bf16", "fp32"}
    told = section(record)
    for word in (
        f"| {found['chosen']}, chosen ",
        "| step, plain, batched ",
        "multiplied by bf16 instructions",
    ):
        assert word in told, word
    assert not run("tiny", "fp32", ["products"], Options(rounds=1, compile=False))["rows"]["products"]


def test_all_sizes_leave_out_what_the_minutes_do_not_allow():
    told = []
    parts = (
        Part("tiny", "fp32", ("peak", "step"), 1, 0, 2000),  # torch.compile would take too long
        Part("tiny", "bf16", ("step",), 1, 2000),
        Part("tiny", "bf16", (), 1, 0),
    )
    records = list(overview(1000, parts, told.append))
    assert [(record["precision"], list(record["rows"])) for record in records] == [
        ("fp32", ["peak", "step"]),
        ("bf16", []),
    ]
    step = records[0]["rows"]["step"]
    assert [one["choice"] for one in step["plain_tried"]] == ["batched", "channels_last"]
    assert set(step["contestants"]) == set(NAMES) and set(records[0]["rows"]["peak"]["gemm"]) == {
        "fp32",
        "bf16",
    }
    left_out = [line for line in told if "left out" in line]
    assert len(left_out) == 1 and left_out[0].startswith("tiny, bf16 is left out: 2000 minutes, ")
    assert sum(part.minutes + part.compiles for part in PARTS) <= 27


def test_aims_are_compared_with_the_newest_figures():
    def record(date, **rows):
        return {"size": "published", "precision": "bf16", "date": date, "rows": rows}

    seconds = zip(NAMES, (3.0, 1.1, 1.0, 0.5), strict=True)
    step = {"contestants": {name: {"wall": [one], "cpu": [one]} for name, one in seconds}}
    memory = {"gib": {"plain": {"peak": 2.0}, "ours": {"peak": 1.0}}}
    lines = targets([record("old", step=step, memory=memory), record("new", step=step)])
    cells = [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines[4:]]
    assert cells[0] == ["≥ 1.60x", "3.00x", "yes", "new"] and cells[1] == ["≥ 1.20x", "1.10x", "no", "new"]
    assert ["≤ 0.90x", "0.50x", "yes", "old"] in cells and cells[-1] == ["≥ 3.00x", "-", "not measured", "-"]


def test_every_reader_gives_both_inputs_of_every_image():
    record = run("tiny", "fp32", ["reader", "optimizer"], Options(rounds=1))
    assert "| foreach " in section(record)
    found = record["rows"]["reader"]
    assert found["cache"]["bytes"] > 80 * 4 * 64 * 64 * 4
    [names] = found["sizes"].values()
    assert {"torchvision", "webdataset", "ours, folder", "ours, shards", "ours, one batch"} <= names.keys()
    assert all(f"| {name} " in section(record) for name in names)


def test_the_ways_of_the_bridge_give_the_same_gradients():
    ways = kernels.Bridges(kernels.TINY[0], batch=3, draws=2).ways()
    reference = ways.pop("indexed last")()
    for name, way in ways.items():
        for one, other in zip(flat(way()), flat(reference), strict=True):
            assert (one - other).norm() <= 1e-5 * other.norm(), name


def flat(gradients):
    return [gradients[0], *gradients[1]]


def test_the_picture_has_every_contestant_and_size():
    step = {name: {"wall": [0.5, 0.7, 0.6], "cpu": [1.0] * 3} for name in NAMES}
    growth = {"draws": {n: {"ours": {"wall": [float(n)]}} for n in "12"}}
    growth["tower"] = {n: {"wall": [0.1]} for n in "12"}
    records = [
        {"size": size, "precision": "bf16", "rows": {"step": {"contestants": step}, "growth": growth}}
        for size in ("half", "published")
    ]
    bars, lines = figure(records).axes
    assert [label.get_text() for label in bars.get_yticklabels()] == ["half, bf16", "published, bf16"]
    assert len(bars.patches) == 2 * len(NAMES) and {text.get_text() for text in bars.texts} == {"600 ms"}
    assert lines.lines[0].get_ydata().tolist() == [1, 2]
    assert svg(figure(records)) == svg(figure(records)) and figure([]) is None


@pytest.mark.slow  # starts eight processes
def test_memory_and_ranks_are_measured_in_processes_of_their_own():
    record = run("tiny", "fp32", ["memory", "ranks"], Options(rounds=1))
    gib, ranks = record["rows"]["memory"]["gib"], record["rows"]["ranks"]
    assert tuple(gib) == NAMES and all(0.1 < one["before"] <= one["peak"] < 8 for one in gib.values())
    assert ranks["sent"] > 0 and min(*ranks["one"], *ranks["two"]) > 0
    assert "two ranks" in section(record)


def test_a_process_that_fails_is_named():
    with pytest.raises(
        DeviceError, match=r"ours at size nothing ended with code 1: .*size='nothing' is unknown"
    ):
        memory("nothing", "fp32", names=("ours",))


def test_what_is_no_record_is_named(tmp_path):
    (tmp_path / "bench.jsonl").write_text('{"format": "other"}\n')
    with pytest.raises(DataError, match="line 1: its format is 'other'"):
        read(tmp_path)
    (tmp_path / "bench.jsonl").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"bench\.jsonl cannot be read"):
        read(tmp_path)
    (tmp_path / "bench.jsonl").write_text("no json\n")
    with pytest.raises(DataError, match="line 1: not a record"):
        read(tmp_path)


@pytest.mark.parametrize(
    "words, told",
    [
        (["--size", "publishd"], "did you mean 'published'"),
        (["--rounds", "0"], "--rounds: '0': an integer of at least 1"),
        (["--size", "tiny", "--rows", "stp"], "did you mean 'step'"),
        (["--size", "tiny", "--precision", "fp16"], "--precision=fp16"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(capsys, words, told):
    assert main(["bench", *words]) == 2
    assert told in capsys.readouterr().err


SCRIPT = Path(__file__).parents[2] / "benches" / "gpu.sh"


def gpu_sh(*words):
    return subprocess.run(
        ["bash", SCRIPT, *words], capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable}
    )


def test_the_gpu_script_runs_dry(tmp_path):
    done = gpu_sh("--dry", "--graph", "--channels-last", "--tf32", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    [record] = read(tmp_path)
    assert record["options"] == ["graph", "channels_last", "tf32"] and list(record["rows"]) == [
        "step",
        "recap",
        "draws",
    ]
    assert "test_a_step_never_waits_for_the_device[cuda]" in done.stdout
    assert "CUDA graph of ours: not captured: a CUDA graph needs CUDA." in done.stdout


@pytest.mark.parametrize(
    "words, told",
    [
        (["--dri"], "unknown argument --dri"),
        (["--size"], "--size needs a name"),
        pytest.param(
            [],
            "sees no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_mistakes_with_the_gpu_script(words, told):
    done = gpu_sh(*words)
    assert done.returncode != 0 and told in done.stderr


def test_an_unknown_contestant_or_size():
    with pytest.raises(ConfigError, match="contestant 'theirs' is unknown"):
        make("theirs", None)
    with pytest.raises(ConfigError, match="one of tiny"):
        find("x")
