"""The benchmark: its contestants do the same work, and its records are whole. No time is asserted."""

import json
import statistics

import pytest

from diva_rs.benchmarks.contestants import NAMES, make
from diva_rs.benchmarks.models import Models, quiet
from diva_rs.benchmarks.run import Options, append, read, run
from diva_rs.benchmarks.sizes import find
from diva_rs.benchmarks.table import ratio, section
from diva_rs.benchmarks.timing import take_turns
from diva_rs.cli import main
from diva_rs.errors import ConfigError, DataError

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


def test_what_is_no_record_is_named(tmp_path):
    (tmp_path / "bench.jsonl").write_text('{"format": "other"}\n')
    with pytest.raises(DataError, match="line 1: its format is 'other'"):
        read(tmp_path)
    (tmp_path / "bench.jsonl").write_text("no json\n")
    with pytest.raises(DataError, match="line 1: it is no record"):
        read(tmp_path)


@pytest.mark.parametrize(
    "words, told",
    [
        (["--size", "publishd"], "did you mean 'published'"),
        (["--rounds", "0"], "--rounds 0"),
        (["--size", "tiny", "--rows", "stp"], "did you mean 'step'"),
        (["--size", "tiny", "--precision", "fp16"], "precision='fp16'"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(capsys, words, told):
    assert main(["bench", *words]) == 2
    assert told in capsys.readouterr().err


def test_an_unknown_contestant_or_size():
    with pytest.raises(ConfigError, match="there is no contestant"):
        make("theirs", None)
    with pytest.raises(ConfigError, match="one of tiny"):
        find("x")
