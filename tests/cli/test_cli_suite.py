"""``diva-rs eval suite`` and ``diva-rs compare``: what is found, kept, resumed and named."""

import csv
import json
import re

import pytest
import torch

from builders import detail
from builders.benchmarks import photos_folder
from builders.cli import SCORED, message
from builders.evaluations import mmvp
from builders.mmvp import mmvp_folder
from diva_rs._base.checkpoint import load_weights, save_weights
from diva_rs.cli import main, suite
from diva_rs.cli.models import load_scored
from diva_rs.evaluation import mmvp_vlm, pairs


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    """Three benchmarks in one folder, beside a folder that holds none."""
    root = tmp_path_factory.mktemp("benchmarks")
    mmvp_folder(root / "MMVP_VLM", pairs=1)
    detail.naturalbench(root / "naturalbench", ["group", "text", "none"])
    detail.pairs_jsonl(root / "mine", ["group", "none", "tied"])
    (root / "others").mkdir()
    return root


@pytest.fixture
def run(capsys, tmp_path, weights, benchmarks):
    """Runs the suite on both models into ``scores``; returns exit code, output and suite.json."""

    def call(*argv, code=0, clip=None, data=benchmarks):
        clip = clip or f"{SCORED}:{weights}/*/clip.safetensors"
        out = tmp_path / "scores"
        fixed = ("--device", "cpu", "--no-progress", "--out", out)
        done = main(["eval", "suite", "--clip", clip, "--data", str(data), *map(str, (*fixed, *argv))])
        told = capsys.readouterr()
        assert done == code, told.err
        return told.out, json.loads((out / "suite.json").read_text())

    return call


def test_everything_in_the_folder_for_every_model_of_a_pattern(run, tmp_path, weights, benchmarks):
    photos = photos_folder(tmp_path)
    (photos / "cat" / "notes.txt").write_text("of the cat")
    told, content = run("--retention", photos)
    specs = [f"{SCORED}:{weights}/{place}/clip.safetensors" for place in ("after", "before")]
    assert list(content["models"]) == specs and content["failed"] == {}
    for spec in specs:
        model = load_scored(spec, torch.device("cpu"))
        mmvp, mine = mmvp_vlm(*model, benchmarks / "MMVP_VLM"), pairs(*model, benchmarks / "mine")
        found = {row["name"]: row["scores"] for row in content["models"][spec]}
        assert list(found) == ["MMVP-VLM", "mine", "NaturalBench-Retrieval", "zero-shot"]
        assert found["MMVP-VLM"]["image"]["right"] == mmvp.right
        assert found["mine"]["group"]["counts"] == json.loads(json.dumps(mine.counts))
    lines = told.splitlines()
    columns = ["score", "model", "right of asked", "95% interval", "%", "retention", "seconds", "images/s"]
    assert re.split(r" {2,}", lines[0]) == columns
    assert len(lines[1:-3]) == 2 * (3 + 3 + 3 + 1)
    assert lines[-3].startswith(f"{photos}: 4 images used, 1 left out")
    assert all(re.search(r" (after|before) .* 2 of 4, 50\.0 %", line) for line in lines[1:19])
    rows = list(csv.DictReader(next(tmp_path.glob("scores/*before*/mine-pairs.csv")).open(newline="")))
    assert len(rows) == 9 and {row["rule"] for row in rows} == {"group", "text", "image"}


def test_an_interrupted_suite_keeps_what_is_finished(run, monkeypatch, tmp_path, weights, benchmarks):
    whole = run()[1]
    scored, calls = suite.score_benchmark, []

    def score(benchmark, bank):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(benchmark.name)
        return scored(benchmark, bank)

    monkeypatch.setattr(suite, "score_benchmark", score)
    # Nothing changed: nothing is scored.
    assert run()[1] == whole and calls == []
    # Another half is another score; the interrupted one is finished by the next call.
    with pytest.raises(AssertionError, match=r"the same command resumes\n.*interrupted"):
        run("--half", "validation", data=benchmarks / "MMVP_VLM")
        run("--half", "test", data=benchmarks / "MMVP_VLM")
    assert len(calls) == 2
    monkeypatch.setattr(suite, "score_benchmark", scored)
    _, content = run("--half", "test", data=benchmarks / "MMVP_VLM")
    assert {row["is_test_set"] for rows in content["models"].values() for row in rows} == {True}
    # Other weights under the same name are scored again.
    before = weights / "before" / "clip.safetensors"
    kept = load_weights(before)
    save_weights(before, load_weights(weights / "after" / "clip.safetensors"))
    try:
        again = run()[1]["models"]
        # Another activation with the same weights is another model.
        save_weights(before, kept, {"vision": {"activation": ["quick_gelu"]}})
        quick = run()[1]["models"]
    finally:
        save_weights(before, kept)
    assert [row["seconds"] for rows in quick.values() for row in rows] != [
        row["seconds"] for rows in whole["models"].values() for row in rows
    ]
    after, changed = ([row["scores"] for row in rows] for rows in again.values())
    assert after == changed != [row["scores"] for row in list(whole["models"].values())[1]]


def test_what_fails_is_named_and_costs_no_other(run, tmp_path, weights, benchmarks):
    data = tmp_path / "data"
    mmvp_folder(data / "MMVP_VLM", pairs=1)
    detail.pairs_jsonl(data / "mine", ["group", "none"])
    (data / "mine" / "3.png").unlink()
    detail.pairs_jsonl(data / "broken", ["group", "none"])
    (data / "broken" / "0.png").write_bytes(b"no image")
    (data / "pointers").mkdir()
    (data / "pointers" / "test.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    (weights / "cut").mkdir(exist_ok=True)
    save_weights(weights / "cut" / "clip.safetensors", {"visual.proj": torch.zeros(1)})
    try:
        told, content = run(data=data, code=1)
    finally:
        (weights / "cut" / "clip.safetensors").unlink()
        (weights / "cut").rmdir()
    assert [len(rows) for rows in content["models"].values()] == [1, 1]
    failed = re.findall(r"^failed: (\S+?)(?:, (\S+))?: ", told, re.MULTILINE)
    assert ("mine-pairs", "") in failed and sum(name == "broken-pairs" for _, name in failed) == 2
    assert any("/cut/" in model for model, _ in failed) and len(failed) == len(content["failed"]) == 5
    assert "test.parquet cannot be read: it is a pointer of Git LFS" in told
    assert told.count("retention not measured") == 2 * 3


def test_models_that_weights_alone_do_not_name(run, capsys, tmp_path, weights, benchmarks):
    data = benchmarks / "mine"
    before = f"{SCORED}:{weights}/before/clip.safetensors"
    # The others are weights of the first model; a checkpoint of a run holds what it trains.
    checkpoint = tmp_path / "step-00000001"
    checkpoint.mkdir()
    trained = {k: v for k, v in load_weights(weights / "after" / "clip.safetensors").items() if "visual" in k}
    save_weights(checkpoint / "parameters.safetensors", {**trained, "projector.weight": torch.zeros(2, 2)})
    others = run("--compare", f"{weights}/[ab]*", clip=before, data=data)[1]["models"]
    assert list(others) == [before, f"{weights}/after", f"{weights}/before"]
    assert len(list(tmp_path.glob("scores/*"))) == 1 + 3
    steps = run(clip=f"{before}:{tmp_path}/step-*", data=data)[1]["models"]
    assert list(steps) == [f"{before}:{checkpoint}"]
    argv = ["eval", "suite", "--data", str(data), "--device", "cpu", "--out", str(tmp_path / "o"), "--clip"]
    for clip, words in (
        (f"{weights}/nowhere/*", "nothing matches"),
        (f"{SCORED}:{tmp_path}/step-*", f"--clip '{SCORED}:TAG:PATTERN'"),
        (f"{weights}/[ab]*", "give --clip 'MODEL:PATTERN'"),
    ):
        main([*argv, clip])
        told = capsys.readouterr()
        assert words in told.out + told.err, clip
    assert "hold no known benchmark" in message(
        capsys, [*argv[:3], str(benchmarks / "others"), "--clip", before]
    )


def test_compare_by_category(run, capsys, tmp_path, weights, benchmarks):
    run()
    sides = [next((tmp_path / "scores").glob(f"*{place}*")) for place in ("before", "after")]
    assert main(["compare", *map(str, sides)]) == 0
    told = capsys.readouterr().out
    first, second = (
        pairs(*load_scored(f"{SCORED}:{weights}/{place}/clip.safetensors", torch.device("cpu")), root)
        for place, root in (("before", benchmarks / "MMVP_VLM"), ("after", benchmarks / "MMVP_VLM"))
    )
    change = first.compare(second)
    block = told[told.index("MMVP-VLM (image)") :].splitlines()
    assert block[1].startswith("Orientation and Direction") and len(block[1].split("of")) == 3
    row = next(line for line in block if line.startswith("all "))
    numbers = [*change.right, len(change.gained), len(change.lost), change.resolvable]
    found = row.replace(" of 9", "").split()[1:]
    assert [int(found[n]) for n in (0, 1, 2, 3, 5)] == numbers
    assert "needed: the smallest difference" in told
    one = next(sides[0].glob("mine*.json"))
    assert "hold no score of the same name" in message(
        capsys, ["compare", str(one), str(next(sides[1].glob("M*.json")))]
    )
    assert "holds no scores that count items" in message(capsys, ["compare", str(benchmarks), str(sides[0])])
    for number in range(2):
        mmvp(range(number)).to_json(tmp_path / f"{number}.json")
    assert "holds two different results of MMVP-VLM" in message(capsys, ["compare", *2 * [str(tmp_path)]])
