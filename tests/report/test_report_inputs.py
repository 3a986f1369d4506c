"""Reports of hostile or damaged runs and evaluations: shown as text, or refused by the name of the file."""

import dataclasses
import json
import math

import pytest

from builders.evaluations import drift, folder, mmvp, post_trained, probes, retrieval, zero_shot
from builders.pages import parsed
from diva_rs import ConfigError, DataError, Recipe
from diva_rs.cli import main
from diva_rs.evaluation import report

pytestmark = pytest.mark.hostile

BOMB = "</title><script>alert(1)</script><img src=x onerror=alert(1)>\" 'a' & | *b* [c](d) `e` \\ \n# f"


@pytest.fixture
def run(tmp_path):
    """A run folder as post_train leaves it."""
    folder = tmp_path / "run"
    post_trained().save(folder)
    return folder


def saved(result, path):
    return result.to_json(path)


def test_markup_in_names_is_text(tmp_path):
    recipe = Recipe(name=BOMB, prompt=BOMB, steps=400)
    facts = {BOMB: BOMB, "evaluation": {"before": {"step": 0, BOMB: 1.0}, "after": {"step": 400, BOMB: 2.0}}}
    result = post_trained(recipe, clip=BOMB, data=BOMB, teacher=f"{BOMB}: {BOMB}", **facts)
    for row in result.history:
        row[BOMB] = row[f"{BOMB} $\\frac"] = 1.0  # a score, and a loss that is no formula either
    scores = dataclasses.replace(zero_shot(5), missing={BOMB: BOMB})
    scores = dataclasses.replace(scores, scores=(dataclasses.replace(scores.scores[0], dataset=BOMB),))
    before, after = mmvp(range(9), words=BOMB), mmvp(range(5), words=BOMB)
    file = report.write(result, tmp_path, before=[before, scores], after=[after, scores], note=BOMB)
    page = parsed(file.read_text())
    assert not page.all("script") and not [e for e in page.all() if "onerror" in e.attributes]
    plain = " ".join(BOMB.split())
    sections = ("trained", "recipe", "measured", "training", "flips", "retention")
    for part in (page.one("h1"), page.one("header"), *(page.one("section", id=name) for name in sections)):
        assert plain in " ".join(part.text.split())
    drawn = [svg.text for svg in page.all("svg") if "</title><script>" in svg.text]
    assert len(drawn) >= 4  # loss, score, two charts of zero-shot


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("recipe.json", "{", "is not valid JSON"),
        ("recipe.json", "[]", "holds a list: an object is needed"),
        ("recipe.json", '{"drws": 3}', "no field 'drws'; did you mean 'draws'"),
        ("recipe.json", '{"draws": 0}', "draws=0"),
        ("report.json", "[1]", "holds a list: an object is needed"),
        ("run.json", "[1]", "holds a list: an object is needed"),
        ("run.json", '{"starts"', "is not valid JSON"),
        ("report.json", "\\xff", "is not valid JSON"),
        ("history.json", '{"step": 1}', "holds a dict: a list is needed"),
        ("history.json", '[{"step": 1}, {"loss": 2}]', "entry 1 is not a log of post_train"),
        ("history.json", '[{"step": "1"}]', "entry 0 is not a log of post_train"),
        ("history.json", "[" * 100_000, "is not valid JSON"),
        ("history.json", '[{"step": 1', "is not valid JSON"),
    ],
)
def test_a_damaged_file_of_the_run_is_named(run, name, content, words):
    (run / name).write_text(content)
    with pytest.raises(DataError, match=name) as caught:
        report.write(run)
    assert words in str(caught.value)
    assert not (run / "report.html").exists()


def test_a_missing_file_of_the_run_is_named(run, tmp_path):
    (run / "recipe.json").unlink()
    with pytest.raises(DataError, match=r"recipe.json cannot be read: No such file"):
        report.write(run)
    with pytest.raises(DataError, match=r"nowhere is not a run folder: give the output_dir of a training"):
        report.write(tmp_path / "nowhere")


def test_a_run_that_has_not_ended(run):
    rows = json.loads((run / "history.json").read_text())
    (run / "history.json").unlink()
    (run / "report.json").unlink()
    lines = [json.dumps(row) for row in rows[:20]]
    (run / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 210, "lo']))  # cut by a crash
    page = parsed(report.write(run).read_text())
    text = page.one("section", id="trained").text
    assert "There is no report.json: the run has not ended, or an error ended it." in text
    assert "1 of 21 lines of metrics.jsonl are damaged and left out" in text
    assert "The numbers of 20 logs" in page.text and "no end recorded" in page.one("dl").text
    assert "The environment is not recorded" in page.text
    (run / "metrics.jsonl").unlink()
    with pytest.raises(DataError, match=r"metrics.jsonl cannot be read"):
        report.write(run)


def test_numbers_that_json_cannot_hold_or_that_are_absurd(run):
    huge = "1" + "0" * 400
    (run / "history.json").write_text(
        f'[{{"step": 1, "loss": {huge}}}, {{"step": 2, "loss": null, "lr": true}}]'
    )
    content = json.loads((run / "report.json").read_text())
    content.update(seconds=-1, samples="many", steps=True, peak_memory_bytes=None, backend=[1], device=7)
    content.update(cpus=int(huge), evaluation={"before": {"cosine": int(huge), "step": "x"}, "after": 3})
    (run / "report.json").write_text(json.dumps(content))
    page = parsed(report.write(run).read_text())
    assert "no finite loss" in page.text and "many" in page.text


def test_evaluations_come_back_from_their_files(tmp_path):
    before = [mmvp(range(27)), zero_shot(150), retrieval(80.0), folder(30)]
    after = [mmvp(range(35)), zero_shot(120), retrieval(79.5), folder(31)]
    files = {}
    for side, results in (("before", before), ("after", after)):
        (tmp_path / side).mkdir()
        files[side] = [saved(result, tmp_path / side / f"{n}.json") for n, result in enumerate(results)]
    for side, right in (("before", 20), ("after", 36)):
        file = tmp_path / side / "probes.json"
        file.write_text(json.dumps({name: score.to_dict() for name, score in probes(right).items()}))
        files[side].append(file)
    before, after = [*before, probes(20)], [*after, probes(36)]
    (tmp_path / "drift.json").write_text(json.dumps(drift().to_dict()))
    of_objects = report.write(post_trained(), tmp_path / "a", before=before, after=[*after, drift()])
    of_files = report.write(
        post_trained(),
        tmp_path / "b",
        before=files["before"],
        after=[*files["after"], str(tmp_path / "drift.json")],
    )
    assert of_objects.read_text() == of_files.read_text()


def test_the_files_of_diva_rs_eval(tmp_path):
    before, after = mmvp(range(27)), mmvp(range(35))
    both, one = tmp_path / "both.json", tmp_path / "one.json"
    content = {"clip": "ViT-B-32", "before": before.to_dict(), "after": after.to_dict(), "changes": {}}
    both.write_text(json.dumps(content))
    one.write_text(json.dumps({"clip": "ViT-B-32", "scores": zero_shot(150).to_dict()}))
    of_files = report.write(post_trained(), tmp_path / "a", before=[both, one], after=both)
    of_objects = report.write(post_trained(), tmp_path / "b", before=[before, zero_shot(150)], after=after)
    assert of_files.read_text() == of_objects.read_text()


def _changed(change):
    content = json.loads(json.dumps(mmvp(range(5)).to_dict()))
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not valid JSON"),
        ("[]", "holds no result of diva_rs.evaluation: give what its to_json or diva-rs eval wrote"),
        ('{"accuracy": 3}', "holds no result of diva_rs.evaluation"),
        ('{"benchmark": "MMVP-VLM"}', "pairs: Field required"),
        ('{"benchmark": "MMVP-VLM", "pairs": []}', "or there is no pair"),
        (_changed(lambda c: c["pairs"].pop()), "patterns differ in their number of pairs"),
        (_changed(lambda c: c["pairs"][3].update(scores=["x", 1])), "pairs.3.scores.0: Input should be"),
        (_changed(lambda c: c["pairs"][3].update(correct=1)), "pairs.3.correct: Input should be a valid"),
        (_changed(lambda c: c["pairs"][3].update(correct=False)), "contradicts itself"),
        (_changed(lambda c: c["pairs"][3].update(picked=[1, 3], expected=[1, 3])), "contradicts itself"),
        (_changed(lambda c: c.update(confidence=math.nan)), "Out of range float values are not JSON"),
        (_changed(lambda c: c.update(confidence=95)), "confidence is 95.0, not inside (0, 1)"),
        ('{"cka": 1.0, "cosine": 1.0, "lowest": 1.0, "cosines": []}', "there is no cosine"),
    ],
)
def test_a_damaged_evaluation_is_named(tmp_path, content, words):
    file = tmp_path / "eval.json"
    file.write_text(content)
    with pytest.raises(DataError, match=r"eval\.json") as caught:
        report.write(post_trained(), tmp_path / "out", after=file)
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_is_no_evaluation_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"before holds a dict: give results of diva_rs.evaluation"):
        report.write(post_trained(), tmp_path, before=[{}])
    with pytest.raises(ConfigError, match="after holds two mmvp results"):
        report.write(post_trained(), tmp_path, after=[mmvp([1]), mmvp([2])])
    with pytest.raises(ConfigError, match="after holds two zero-shot results"):
        report.write(post_trained(), tmp_path, after=[zero_shot(1), zero_shot(2)])
    with pytest.raises(ConfigError, match="folder is missing"):
        report.write(post_trained())
    assert not list(tmp_path.iterdir())


def test_scores_of_different_items_are_not_compared(tmp_path):
    with pytest.raises(DataError, match="different pairs"):
        report.write(post_trained(), tmp_path, before=mmvp([1]), after=mmvp([1], words="other"))
    assert not list(tmp_path.iterdir())


def test_images_that_cannot_be_shown(tmp_path):
    before, after = mmvp([0, 1, 2]), mmvp([], root=tmp_path)
    (tmp_path / "1.png").write_bytes(b"no image")
    (tmp_path / "2.png").unlink()
    (tmp_path / "3.png").unlink()
    (tmp_path / "3.png").mkdir()
    (tmp_path / "4.png").write_bytes((tmp_path / "5.png").read_bytes()[:60])
    page = parsed(report.write(post_trained(), tmp_path / "out", before=before, after=after).read_text())
    cards = page.one("section", id="flips").all("li")
    assert [len(card.all("img")) for card in cards] == [0, 0, 2]
    assert cards[0].text.count("image not found") == 2


def test_a_place_that_cannot_be_written_to(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=r"folder .*file cannot be made"):
        report.write(run, tmp_path / "file")
    (run / "report.html").mkdir()
    (run / "report.html" / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match=r"report.html could not be written"):
        report.write(run)
    assert (run / "report.html" / "thesis.tex").read_text() == "mine"


def test_on_the_command_line(run, tmp_path, capsys):
    before = saved(mmvp(range(27)), tmp_path / "before.json")
    after = saved(mmvp(range(35)), tmp_path / "after.json")
    assert main(["report", str(run), "--before", str(before), "--after", str(after)]) == 0
    assert capsys.readouterr().out.split() == [str(run / "report.html")]
    assert "8 pairs became right" in (run / "report.html").read_text()
    assert main(["report", str(run), "--output-dir", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.html").is_file()
    for argv, words in (
        (["report"], "the following arguments are required: RUN"),
        (["report", str(tmp_path / "nowhere")], "nowhere is not a run folder"),
        (["report", str(run), "--befor", "x"], "unknown argument '--befor'; did you mean '--before'"),
        (["report", str(run), "--after", str(tmp_path / "none.json")], "none.json cannot be read"),
    ):
        capsys.readouterr()
        assert main(argv) == 2
        assert words in capsys.readouterr().err
