"""Judged values as captions, and as files that other programs train on."""

import json
import logging
import tarfile

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from diva_rs import ConfigError, DataError
from diva_rs.captions import (
    Attribute,
    ContrastSet,
    Evidence,
    Judgements,
    Vocabulary,
    Writer,
    read_sets,
    sets_of,
)
from diva_rs.data import ImageFolder, ImageShards, shard_loader
from diva_rs.data.decode import decode

WORDS = Vocabulary(
    {"colour": ("red", "blue"), "size": ("big", "small"), "place": Attribute(("left", "right"), "on the {}")},
    templates=("a photo of {}", "{}"),
    subjects=("cat", "dog"),
)


def judgements(keys, vocabulary=WORDS, unsure=()):
    """Image number i shows word i of every set, counted round; the sets named by ``unsure`` say nothing."""
    evidence = {}
    for number, key in enumerate(keys):
        sets = [vocabulary.set_of(name, {}) for name in vocabulary.names()]
        noise = np.random.default_rng(number).standard_normal((len(sets), 6, 4))
        evidence[int(key)] = [
            Evidence(one, more[: len(one)] - 100.0 * right(one, number) * (one.name not in unsure))
            for one, more in zip(sets, noise, strict=True)
        ]
    return Judgements(evidence, vocabulary)


def right(one, number):
    """(K, 1): 1 for the caption of the image's word."""
    return (np.arange(len(one)) == number % len(one))[:, None]


JUDGED = judgements(range(40))


def test_captions_say_a_part_of_the_values_in_any_order():
    writer = Writer(JUDGED, share=0.5, seed=3)
    said = [writer.caption(1, epoch, number) for epoch in range(20) for number in range(20)]
    parts = {tuple(sorted({"small", "blue", "right"} & set(text.split()))) for text in said}
    assert len(parts) == 8 and all("dog" in text and "cat" not in text for text in said)
    assert {text.startswith("a photo of a") for text in said} == {True, False}
    for word in ("small", "blue", "right"):
        share = np.mean([word in text.split() for text in said])
        assert abs(share - 0.5) < 5 * np.sqrt(0.25 / len(said))
    assert Writer(JUDGED, share=1.0).caption(0).endswith("a red big cat on the left")
    assert set(Writer(JUDGED, share=0.0).caption(0).split()) <= {"a", "photo", "of", "cat"}


def test_phrases_come_in_any_order():
    words = Vocabulary({name: Attribute((f"{name}0", f"{name}1"), "{}") for name in "abc"})
    writer = Writer(judgements(range(20), words), share=1.0)
    assert len({writer.caption(0, epoch) for epoch in range(60)}) == 6
    # Without a subject, one value is said at least.
    assert len({Writer(writer.judged, share=0.0).caption(0, epoch) for epoch in range(60)}) == 3


def test_negatives_differ_in_one_word():
    writer = Writer(JUDGED, share=1.0)
    for epoch in range(20):
        caption, found = writer.caption(1, epoch), writer.negatives(1, 3, epoch)
        changed = [set(text.split()) - set(caption.split()) for text in found]
        assert len(set(found)) == 3 and all(len(words) == 1 for words in changed)
        # One of each name that is said, before a second one.
        assert not set.union(*changed) - {"red", "big", "cat", "left"}
        assert writer.negatives(1, 9, epoch)[:3] == found and len(writer.negatives(1, 9, epoch)) == 4
    assert len({writer.negatives(1, 1, epoch)[0].split()[-1] for epoch in range(60)}) > 1


@pytest.mark.invariant
def test_a_caption_depends_on_seed_key_epoch_and_number_alone():
    keys = [2**64 - 1, 5, 0]

    def written(keys, seed=0):
        writer = Writer(judgements([2**64 - 1, 5, 0, *range(100, 120)]), seed=seed)
        return {(key, e, n): writer.caption(key, e, n) for key in keys for e in (0, 7) for n in (0, 1)}

    assert written(keys) == written(keys[::-1]) != written(keys, seed=1)
    # The same on every machine and in every version.
    assert [Writer(JUDGED).caption(3, epoch) for epoch in range(3)] == [
        "a blue small dog",
        "a photo of a dog",
        "a photo of a small dog",
    ]


def test_unreliable_values_are_not_said():
    writer = Writer(judgements(range(60), unsure=("size",)), share=1.0)
    assert writer.values(0) == {"subject": "cat", "colour": "red", "place": "left"}
    assert writer.values(99) == {}
    with pytest.raises(DataError, match="sample 99 has no judged value"):
        writer.caption(99)


def test_other_sets_than_the_vocabularys_are_not_said():
    light, colour = ContrastSet("light", ("dawn", "noon")), ContrastSet("colour", ("pink", "grey"))
    losses = np.array([[0.0] * 4, [1.0] * 4])
    judged = Judgements({key: [Evidence(one, losses) for one in (light, colour)] for key in range(30)}, WORDS)
    assert Writer(judged).values(3) == {}


@pytest.mark.hostile
@pytest.mark.parametrize(
    "arguments, fault",
    [
        ((Judgements({1: [Evidence(ContrastSet("a", ("b", "c")), np.zeros((2, 2)))]}),), "no vocabulary"),
        ((JUDGED, 1.5), "share=1.5"),
        ((JUDGED, float("nan")), "share=nan"),
    ],
)
def test_what_cannot_be_written(arguments, fault):
    with pytest.raises(ConfigError, match=fault):
        Writer(*arguments)


@pytest.fixture
def folder(tmp_path):
    """Five pictures of several formats, the third without a judgement, the fifth turned by its EXIF data."""
    root = tmp_path / "pictures"
    for name in ("a.b.jpg", "b/1.JPEG", "c.png", "d.bmp", "e.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if name == "e.jpg" else 1
        more = {} if name.endswith("bmp") else {"exif": exif}
        Image.linear_gradient("L").resize((30, 20)).save(root / name, **more)
    return ImageFolder(root)


def judged_of(folder):
    keys = [key for key, name, _ in folder.files() if name != "c.png"]
    return judgements([*keys, *range(100, 130)])


def test_jsonl_is_read_back(folder, caplog, tmp_path):
    writer = Writer(judged_of(folder))
    path = folder.root / "metadata.jsonl"
    with caplog.at_level(logging.INFO):
        assert writer.to_jsonl(folder, path, captions=2) == 8
    assert "4 images have captions, 1 have no judged value" in caplog.text
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    by_name = {name: key for key, name, _ in folder.files()}
    assert [row["file_name"] for row in rows] == sorted([name for name in by_name if name != "c.png"] * 2)
    for number, row in enumerate(rows):
        assert row["text"] == writer.caption(by_name[row["file_name"]], number=number % 2)
    sets = sets_of(read_sets(path, WORDS, images=folder.root), folder.ids)
    assert [bool(found) for found in sets] == [True, True, False, True, True]
    with pytest.raises(ConfigError, match=r"metadata\.jsonl exists already"):
        writer.to_jsonl(folder, path)
    assert len(path.read_text().splitlines()) == 8


@pytest.mark.parametrize("captions, per_shard", [(1, 1000), (2, 3), (1, 2)])
def test_shards_are_read_by_webdataset_and_by_the_reader(folder, tmp_path, captions, per_shard):
    writer, out = Writer(judged_of(folder)), tmp_path / "new" / "shards"
    assert writer.to_shards(folder, out, captions, per_shard) == 4 * captions
    shards = sorted(map(str, out.glob("*.tar")))
    sizes = json.loads((out / "sizes.json").read_text())
    assert sum(sizes.values()) == 4 * captions and list(sizes) == [
        shard.rpartition("/")[2] for shard in shards
    ]
    assert max(sizes.values()) <= per_shard
    # As open_clip reads them.
    read = (
        webdataset.WebDataset(shards, shardshuffle=False)
        .decode("pilrgb")
        .rename(image="jpg;png;jpeg;webp", text="txt")
    )
    named = {name: (key, content) for key, name, content in folder.files()}
    seen = []
    for sample in read:
        name, values = sample["json"]["file_name"], sample["json"]["values"]
        key, content = named[name]
        number = seen.count(name)
        seen.append(name)
        assert sample["__key__"] == f"{key:020}_{number}"
        assert sample["text"] == writer.caption(key, number=number) and values == writer.values(key)
        assert np.array_equal(np.array(sample["image"]), np.array(decode(content(), name)))
    assert set(seen) == named.keys() - {"c.png"} and len(seen) == 4 * captions
    batches = list(shard_loader(shards, batch=2, size=8, workers=0, shuffle=False))
    assert sum(len(batch["ids"]) for batch in batches) == 4 * captions
    assert all(torch.isfinite(batch["images"]).all() for batch in batches)


def test_files_of_formats_that_are_read_are_copied(folder, tmp_path):
    Writer(judged_of(folder)).to_shards(folder, tmp_path / "shards")
    with tarfile.open(tmp_path / "shards" / "00000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    for key, name, content in folder.files():
        if name != "c.png":
            kept = members.get(f"{key:020}_0.jpg")
            assert kept == (content() if name in ("a.b.jpg", "b/1.JPEG") else None)


def test_shards_are_sources_too(folder, tmp_path):
    """Captions of images in shards, and the same bytes for the same judgements."""
    first = Writer(judged_of(folder))
    for name in ("one", "same"):
        first.to_shards(folder, tmp_path / name)
    assert (tmp_path / "one/00000.tar").read_bytes() == (tmp_path / "same/00000.tar").read_bytes()
    shards = ImageShards(str(tmp_path / "one/00000.tar"))
    judged = judgements([key for key, _, _ in shards.files()] + list(range(100, 130)))
    assert Writer(judged).to_jsonl(shards, tmp_path / "captions.jsonl") == 4
    keys = {item["ids"] for item in shards}
    assert set(read_sets(tmp_path / "captions.jsonl", WORDS)) == keys


@pytest.mark.hostile
def test_what_cannot_be_exported(folder, tmp_path):
    writer, out = Writer(judged_of(folder)), tmp_path / "shards"
    with pytest.raises(ConfigError, match="captions=0"):
        writer.to_jsonl(folder, out, captions=0)
    with pytest.raises(ConfigError, match="per_shard=0"):
        writer.to_shards(folder, out, per_shard=0)
    with pytest.raises(DataError, match="none of 5 images has a judged value"):
        Writer(JUDGED).to_shards(folder, out)
    (folder.root / "e.jpg").write_bytes(b"\xff\xd8 damaged")
    with pytest.raises(DataError, match=r"e\.jpg"):
        writer.to_shards(folder, out)
    (folder.root / "e.jpg").unlink()
    with pytest.raises(DataError, match=r"e\.jpg"):
        writer.to_shards(folder, out)
    assert not out.exists() and [path.name for path in tmp_path.iterdir()] == ["pictures"]
