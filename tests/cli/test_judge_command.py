"""``diva-rs judge``: judgements, page and table of a folder of photographs."""

import csv
import io
import json
import shutil
import tarfile

import pytest
from PIL import Image

from builders.cli import message
from builders.pages import parsed
from diva_rs.captions import Judgements, Vocabulary
from diva_rs.cli import main

WORDS = Vocabulary({"colour": ("red", "blue"), "size": ("big", "small")}, subjects=("car", "dog"))


@pytest.fixture
def judge(teacher, photos, clip, tmp_path):
    words = tmp_path / "words.toml"
    words.write_text(WORDS.to_toml())
    given = ["--clip", clip, "--teacher", teacher, "--data", photos, "--vocabulary", str(words)]
    few = ["--draws", "2", "--workers", "0", "--device", "cpu", "--loader-batch", "4"]
    return ["judge", *given, "--out", str(tmp_path / "judged"), *few]


def test_a_folder_is_judged(judge, capsys, tmp_path):
    assert main(judge) == 0
    out = capsys.readouterr().out
    assert "colour: accuracy " in out and "chance 50.0 %" in out
    assert "6 images used, none left out" in out and str(tmp_path / "judged" / "judged.html") in out
    found = Judgements.load(tmp_path / "judged")
    assert len(found) == 6 and found.vocabulary == WORDS
    assert [v.set.name for v in found[min(found)]] == ["colour", "size"]
    page = parsed((tmp_path / "judged" / "judged.html").read_text())
    assert len(page.all("img")) == 6
    with open(tmp_path / "judged" / "judged.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 4 and {row["image"] for row in rows} == {f"{n}.png" for n in range(6)}
    before = {file.name: file.read_bytes() for file in (tmp_path / "judged").iterdir()}
    assert main(judge) == 0  # everything is judged
    assert {file.name: file.read_bytes() for file in (tmp_path / "judged").iterdir()} == before


def test_other_settings_need_another_folder(judge, capsys, tmp_path):
    assert main(judge) == 0
    assert "judge seed was 0, is 1" in message(capsys, [*judge, "--seed", "1"])
    (tmp_path / "words.toml").write_text(Vocabulary({"colour": ("red", "green")}).to_toml())
    assert f"vocabulary was '{WORDS.digest}', is " in message(capsys, judge)
    (tmp_path / "words.toml").write_text(WORDS.to_toml())
    assert main([*judge, "--overwrite", "--names", "size", "--names", "colour"]) == 0
    found = Judgements.load(tmp_path / "judged")
    for key in found:
        assert [verdict.set.name for verdict in found[key]] == ["size", "colour"]
        assert list(found.given[key]) == ["subject"]
    assert "Not judged: subject " in (tmp_path / "judged" / "judged.html").read_text()


def test_a_photograph_that_is_gone_is_not_shown(judge, photos, tmp_path):
    copied = str(shutil.copytree(photos, tmp_path / "photos"))
    judge = [copied if word == photos else word for word in judge]
    assert main(judge) == 0
    (tmp_path / "photos" / "0.png").unlink()
    (tmp_path / "photos" / "1.png").write_bytes(b"no image")
    assert main([*judge, "--on-bad-image", "skip"]) == 0
    page = parsed((tmp_path / "judged" / "judged.html").read_text())
    assert len(page.all("img")) == 4 and page.text.count("image not found") == 2
    assert len(Judgements.load(tmp_path / "judged")) == 6


def test_shards_are_judged(judge, photos, tmp_path):
    shard = tmp_path / "00.tar"
    with tarfile.open(shard, "w") as tar:
        for number in range(3):
            data = io.BytesIO()
            Image.new("RGB", (24, 20), (90 * number, 20, 99)).save(data, "PNG")
            member = tarfile.TarInfo(f"{number}.png")
            member.size = data.tell()
            data.seek(0)
            tar.addfile(member, data)
    argv = [str(shard) if word == photos else word for word in judge]
    assert main([*argv, "--on-bad-image", "skip"]) == 0
    assert len(Judgements.load(tmp_path / "judged")) == 3
    page = parsed((tmp_path / "judged" / "judged.html").read_text())
    assert len(page.all("img")) == 3


def test_captions_of_a_file_are_judged(judge, capsys, tmp_path):
    lines = [
        {"file": "0.png", "name": "lens", "captions": ["a wide lens", "a long lens"]},
        {"file": "3.png", "caption": "a red car"},
    ]
    (tmp_path / "sets.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    argv = [*judge, "--sets", str(tmp_path / "sets.jsonl")]
    assert main(argv) == 0
    assert "lens: accuracy " in capsys.readouterr().out
    found = Judgements.load(tmp_path / "judged")
    assert len(found) == 6 and found.vocabulary is None
    captions = [[verdict.set.captions for verdict in found[key]] for key in found]
    assert sorted(captions, key=len)[4:] == [
        [("a wide lens", "a long lens")],
        [("a red car", "a red dog"), ("a red car", "a blue car")],
    ]
    assert len(parsed((tmp_path / "judged" / "judged.html").read_text()).all("img")) == 2
    (tmp_path / "sets.jsonl").write_text(json.dumps(lines[0]).replace("long", "tele"))
    assert "has other contrast sets than when it was judged" in message(capsys, argv)


def test_mistakes_are_named(judge, capsys, tmp_path):
    assert "first must be at least 2" in message(capsys, [*judge, "--first", "1"])
    assert "--data /nowhere: " in message(capsys, [*judge, "--data", "/nowhere"])
    assert "no attribute 'sice'; did you mean" in message(capsys, [*judge, "--names", "sice"])
    (tmp_path / "words.toml").write_text("attributes = 3")
    assert "words.toml: attributes is" in message(capsys, judge)
    assert "--out is needed" in message(capsys, judge[: judge.index("--out")])
