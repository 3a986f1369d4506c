"""Judged images on disk: a run goes on where it was interrupted; nothing damaged or foreign is used."""

import random
import re

import numpy as np
import pytest

from diva_rs._base.checkpoint import write_manifest
from diva_rs.captions import ContrastSet, Evidence, Judgements, Reliability, Vocabulary
from diva_rs.captions.store import Facts, Measured, Row, Unfinished, read
from diva_rs.errors import ConfigError, DataError

WORDS = Vocabulary({"colour": ("red", "blue")}, subjects=("car", "dog"))
MADE_BY = {"teacher": {"UNet": "abc", "VAE": "def"}, "vocabulary": WORDS.digest, "rounds": 2}
RELIABILITY = Reliability(0.9, 0.95, 0.5, 5, True)
FACTS = Facts(temperatures={"colour": 0.125}, reliability={"colour": RELIABILITY})


def row(key, content="c"):
    chosen = WORDS.set_of("colour", {"subject": "car"})
    losses = ((0.1 + key / 7, 0.2), (1 / 3, 1e-12))
    measured = Measured(set=chosen, losses=losses, settled=key % 2 == 0)
    return Row(key=key, content=content, sets=(measured,))


ROWS = [row(key) for key in (2**64 - 1, 5, 0, 2**63, 17)]


def files(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def place(tmp_path):
    return tmp_path / "judged"


def finished(place, rows=ROWS):
    store = Unfinished(place, MADE_BY)
    store.add(rows)
    store.finish(FACTS, WORDS)
    return place


def test_what_is_written_is_read(place):
    facts, vocabulary, rows = read(finished(place))
    assert rows == sorted(ROWS, key=lambda row: row.key) and vocabulary == WORDS
    assert facts.made_by == MADE_BY and facts.temperatures == FACTS.temperatures and facts.images == 5


@pytest.mark.parametrize("seed", range(3))
def test_the_folder_is_the_same_in_any_order_of_images_and_after_any_interruption(place, tmp_path, seed):
    shuffled = random.Random(seed).sample(ROWS, len(ROWS))
    for number in range(len(ROWS)):
        store = Unfinished(place, MADE_BY)
        assert store.rows.keys() == {row.key for row in shuffled[:number]}
        store.add([shuffled[number]])
    other = Unfinished(place, MADE_BY)  # another rank, which has added nothing
    other.finish(FACTS, WORDS)
    assert files(place) == files(finished(tmp_path / "at once"))


def test_a_finished_folder_takes_new_images(place, tmp_path):
    finished(place, ROWS[:3])
    store = Unfinished(place, MADE_BY)
    assert len(store.rows) == 3 and len(read(place)[2]) == 3
    store.add(ROWS[3:])
    store.finish(FACTS, WORDS)
    assert files(place) == files(finished(tmp_path / "at once"))


def test_many_images_are_in_several_files(place, monkeypatch):
    monkeypatch.setattr("diva_rs.captions.store._IMAGES", 2)
    facts, _, rows = read(finished(place))
    assert facts.files == 3 and len(rows) == 5 and len(list(place.glob("losses-*.jsonl"))) == 3


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rounds": 3}, "rounds was 2, is 3"),
        ({"teacher": {"UNet": "xyz", "VAE": "def"}}, "teacher UNet was 'abc', is 'xyz'"),
        ({"vocabulary": "0"}, f"vocabulary was '{WORDS.digest}', is '0'"),
        ({"guess": "CLIP"}, "guess was None, is 'CLIP'"),
    ],
)
def test_other_settings_are_named_with_both_values(place, done, change, said):
    if done:
        finished(place)
    else:
        Unfinished(place, MADE_BY).add(ROWS)
    before = files(place)
    with pytest.raises(ConfigError, match="were made otherwise") as raised:
        Unfinished(place, MADE_BY | change)
    assert f"({said})" in str(raised.value)
    assert {name: data for name, data in files(place).items() if name in before} == before
    assert not Unfinished(place, MADE_BY | change, overwrite=True).rows


def test_an_unfinished_folder_is_not_read(place):
    Unfinished(place, MADE_BY).add(ROWS)
    with pytest.raises(DataError, match=r"judged: .* holds images of a run that has not ended"):
        read(place)
    with pytest.raises(DataError, match="elsewhere: a folder of judgements is needed"):
        read(place.with_name("elsewhere"))


def test_a_finished_folder_between_two_renames_is_found(place):
    finished(place).rename(place.with_name(".judged.old"))
    assert len(read(place)[2]) == 5
    assert len(Unfinished(place, MADE_BY).rows) == 5 and place.exists()


@pytest.mark.parametrize("name", ["losses-00000.jsonl", "judgements.json", "vocabulary.toml"])
@pytest.mark.parametrize("damage", ["cut", "changed", "removed"])
def test_damage_is_named(place, name, damage):
    file = finished(place) / name
    data = file.read_bytes()
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(data[: len(data) // 2] if damage == "cut" else data.replace(b"a", b"b", 1))
    with pytest.raises(DataError, match=name):
        read(place)


def test_a_damaged_part_is_named(place):
    Unfinished(place, MADE_BY).add(ROWS)
    [part] = (place / "parts").glob("*.jsonl")
    part.write_bytes(part.read_bytes().replace(b"0.2", b"0.3", 1))
    with pytest.raises(DataError, match=rf"{part.name} is damaged"):
        Unfinished(place, MADE_BY)


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("judgements.json", '"files": 1', '"files": 1000000000', "files"),
        ("judgements.json", '"colour": 0.125', '"colour": 0', "temperatures.colour"),
        ("judgements.json", '"colour": 0.125', '"size": 0.125', "no temperature or reliability of 'colour'"),
        ("losses-00000.jsonl", "1e-12", "NaN", "line 1, is not a judged image"),
        ("losses-00000.jsonl", ",1e-12", "", "losses of 2 captions, equally many of each"),
        ("losses-00000.jsonl", '"blue"', '"red","blue"', "2 captions and 3 words"),
    ],
)
def test_contents_that_do_not_fit_are_named(place, name, old, new, said):
    file = finished(place) / name
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    write_manifest(place, [path.name for path in place.iterdir() if path.name != "manifest.json"])
    with pytest.raises(DataError, match=re.escape(name)) as raised:
        read(place)
    assert said in str(raised.value)


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_damaged_plan_is_named(place, content):
    Unfinished(place, MADE_BY)
    (place / "parts" / "plan.json").write_text(content)
    with pytest.raises(DataError, match=r"plan\.json is damaged"):
        Unfinished(place, MADE_BY)


def test_foreign_files_are_named_and_kept(place, tmp_path):
    place.mkdir()
    (place / "thesis.tex").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(DataError, match=r"'thesis\.tex', which is not part of a folder of judgements"):
            Unfinished(place, MADE_BY, overwrite)
    assert (place / "thesis.tex").read_text() == "mine"
    with pytest.raises(DataError, match=r"thesis\.tex"):
        Unfinished(place / "thesis.tex", MADE_BY)
    store = Unfinished(tmp_path / "other", MADE_BY)
    (store.folder / "parts" / "note.txt").write_text("mine")
    with pytest.raises(DataError, match=r"note\.txt is damaged, or is not a file of judged images"):
        store.gather()


def test_judgements_are_loaded_as_they_were_saved(place):
    rng = np.random.default_rng(0)
    chosen = [WORDS.set_of("colour", {"subject": subject}) for subject in WORDS.subjects]
    own = ContrastSet("mine", ("a", 'b \u2028 "c"', "d"))
    evidence = {}
    for key in (9, 2**64 - 1, 3):
        colour = rng.random((2, 4), np.float32) + np.array([[0.0], [key % 2]])
        evidence[key] = [Evidence(chosen[key % 2], colour, True), Evidence(own, rng.random((3, 2)))]
    saved = Judgements(evidence, WORDS, given={9: {"subject": "dog"}})
    saved.save(place)
    loaded = Judgements.load(place)
    assert list(loaded) == list(saved) == [3, 9, 2**64 - 1] and len(loaded) == 3
    assert saved.facts.model_dump().items() <= loaded.facts.model_dump().items()
    for key in saved:
        assert loaded.values(key) == saved.values(key)
        assert loaded.values(key).get("subject") == ("dog" if key == 9 else None)
        for one, other in zip(saved[key], loaded[key], strict=True):
            assert one.set == other.set and (one.draws, one.settled) == (other.draws, other.settled)
            assert np.array_equal(one.losses, other.losses) and one.weight == other.weight
            assert np.array_equal(one.posterior, other.posterior)
    loaded.save(place)
    assert Judgements.load(place).facts == loaded.facts
