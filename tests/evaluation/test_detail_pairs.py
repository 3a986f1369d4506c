"""Pairs of images and captions in every published format, with planted answers."""

import csv
import json
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from builders.clips import IMAGE, clip_variants
from builders.detail import Planted, naturalbench, pair_rows, pairs_jsonl, picture, table
from builders.mmvp import PlantedCLIP, mmvp_folder, preprocess, tokenize
from builders.texts import tokenize as words
from diva_rs.errors import ConfigError, DataError
from diva_rs.evaluation import (
    Bank,
    Embedder,
    find_benchmarks,
    mmvp_vlm,
    pairs,
    read_benchmark,
    score_benchmark,
    wilson_interval,
)

MIXED = ["group", "text", "image", "none", "tied", "group", "text"]
# What of MIXED is right, by rule.
RIGHT = {"group": {0, 5}, "text": {0, 1, 5, 6}, "image": {0, 2, 5}}
FORMATS = {
    "naturalbench": naturalbench,
    "pairs": pairs_jsonl,
    "winoground": lambda root, plans: table(root, plans, "winoground"),
    "winoground in shards": lambda root, plans: table(root, plans, "winoground", "shards"),
    "winoground saved": lambda root, plans: table(root, plans, "winoground", "saved"),
    "vismin": lambda root, plans: table(root, plans, "vismin"),
}


def score(model, root, **settings):
    return pairs(model, preprocess, model.tokenize, root, **settings)


@pytest.mark.parametrize("name", FORMATS)
def test_planted_answers_give_exactly_the_planted_scores(tmp_path, name):
    model = FORMATS[name](tmp_path / "data set", MIXED)
    result = score(model, tmp_path / "data set")
    for rule, right in RIGHT.items():
        found = result[rule]
        assert found.outcomes == tuple(place in right for place in range(len(MIXED)))
        assert (found.right, found.asked) == (len(right), len(MIXED))
        assert found.per_cent == pytest.approx(100 * len(right) / len(MIXED))
        assert found.interval == pytest.approx([100 * end for end in wilson_interval(len(right), 7)])
    assert result.rule == "group" and result.kind == "detail"
    assert result.is_test_set == (name != "pairs")
    assert model.calls == {"images": 14, "texts": 14}
    assert [found for _, found in find_benchmarks(tmp_path)] == [name.split()[0]]


def test_scores_are_shown_by_category_counts_first(tmp_path):
    result = score(pairs_jsonl(tmp_path, MIXED), tmp_path)
    assert result.counts == {"odd": (1, 4), "even": (1, 3)}
    assert result.line == f"{tmp_path.name} (group)  2 of 7 pairs right  [8.2, 64.1]  28.6 %"
    shown = " ".join(str(result).split())
    assert "odd 1 of 4 pairs right [ 4.6, 69.9] 25.0 %" in shown
    assert "all 4 of 7 pairs right [25.0, 84.2] 57.1 %" in shown
    assert "per second" in shown


def test_every_decision_is_written(tmp_path):
    result = score(pairs_jsonl(tmp_path, MIXED), tmp_path)
    with open(result.to_csv(tmp_path / "out.csv"), newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["id"] for row in rows[:7]] == [f"p{n}" for n in range(7)] and len(rows) == 21
    assert list(rows[0]) == ["benchmark", "rule", "id", "category", "scores", "right"]
    assert [float(number) for number in rows[0]["scores"].split()] == pytest.approx([0.9, 0.1, 0.1, 0.9])
    assert [row["right"] for row in rows if row["rule"] == "image"] == list("1010010")
    told = json.loads(result.to_json(tmp_path / "out.json").read_text())
    assert told["scores"]["text"]["right"] == 4 and told["kind"] == "detail"
    assert told["rules"]["image"][2]["right"] is True


def test_two_models_are_compared_item_by_item_and_by_category(tmp_path):
    before = pairs_jsonl(tmp_path, MIXED)
    after = Planted()
    pair_rows(after, ["text", "group", "group", *MIXED[3:]])
    old, new = score(before, tmp_path), score(after, tmp_path)
    change = old.compare(new)
    assert change.lost == (0,) and change.gained == (1, 2)
    assert str(change).startswith(f"{tmp_path.name} (group): 2 -> 3 of 7 right (+1), 28.6 -> 42.9")
    assert str(change).endswith("at 3 flips a difference below 6 is within chance")
    parts = old.compare_categories(new)
    assert {name: (part.items, len(part.gained), len(part.lost)) for name, part in parts.items()} == {
        "odd": (4, 1, 1),
        "even": (3, 1, 0),
    }
    with pytest.raises(DataError, match="different pairs"):
        old.compare(new["text"])
    for word in ("dog", "horse"):  # a copy elsewhere, and other captions
        pairs_jsonl(tmp_path / word, MIXED)
        file = tmp_path / word / "pairs.jsonl"
        file.write_text(file.read_text().replace("dog", word))
        with nullcontext() if word == "dog" else pytest.raises(DataError, match="different pairs"):
            assert old.compare(score(before, tmp_path / word)).difference == 0


def test_a_text_or_image_that_occurs_twice_is_embedded_once(tmp_path):
    model = naturalbench(tmp_path, ["group"] * 3)
    entries = json.loads((tmp_path / "metadata.json").read_text())
    entries += [{**entry, "index": 10 + n} for n, entry in enumerate(entries)]
    (tmp_path / "metadata.json").write_text(json.dumps(entries))
    bank = Bank(Embedder(model, preprocess, model.tokenize), batch=4)
    result = score_benchmark(read_benchmark(tmp_path), bank)
    assert result.right == 6 and bank.counts == {"images": 6, "texts": 6} == model.calls
    score_benchmark(read_benchmark(tmp_path), bank)
    assert model.calls == {"images": 6, "texts": 6}
    assert set(result.per_second) == {"images", "texts"}


def test_the_halves_are_fixed_and_share_nothing(tmp_path):
    model = pairs_jsonl(tmp_path, ["group"] * 40)
    halves = {half: score(model, tmp_path, half=half) for half in ("validation", "test")}
    ids = {half: {row["id"] for row in result.decisions} for half, result in halves.items()}
    assert not ids["validation"] & ids["test"] and len(ids["validation"] | ids["test"]) == 40
    assert min(map(len, ids.values())) >= 10
    # By the names alone, on every machine.
    assert {f"p{n}" for n in range(8)} & ids["validation"] == {"p1", "p0"}
    assert halves["validation"].name.endswith(", validation half")
    with pytest.raises(ConfigError, match="half='train': one of validation, test"):
        score(model, tmp_path, half="train")


def test_items_that_share_an_image_are_in_one_half(tmp_path):
    """Directly, or through others: pairs 0 to 9 in a chain, 10 to 39 by threes around one image."""
    pairs_jsonl(tmp_path, ["group"] * 40)
    file = tmp_path / "pairs.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for place, row in enumerate(rows[1:], 1):
        row["image_0"] = (
            rows[place - 1]["image_1"] if place < 10 else rows[place - (place - 10) % 3]["image_0"]
        )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    halves = [read_benchmark(tmp_path, half=half) for half in ("validation", "test")]
    ids, pictures = ([set(), set()] for _ in range(2))
    for place, half in enumerate(halves):
        for item in half.tasks[0].items:
            ids[place].add(item.id)
            pictures[place].update(item.columns)
    assert not pictures[0] & pictures[1] and len(ids[0] | ids[1]) == 40 and all(ids)
    assert {f"p{n}" for n in range(10)} <= ids[0] or {f"p{n}" for n in range(10)} <= ids[1]


@pytest.mark.parametrize("write", [naturalbench, pairs_jsonl])
def test_a_test_half_is_a_test_set_and_a_validation_half_is_none(tmp_path, write):
    write(tmp_path, ["group"] * 12)
    found = [read_benchmark(tmp_path, half=half) for half in (None, "validation", "test")]
    assert [benchmark.is_test_set for benchmark in found] == [write is naturalbench, False, True]


def test_mmvp_vlms_image_score_is_its_average(tmp_path):
    root = mmvp_folder(tmp_path)
    clip = PlantedCLIP({0, 1, 7, 15, 44, 45, 60, *range(90, 105), 134})
    result = pairs(clip, preprocess, tokenize, root)
    published = mmvp_vlm(clip, preprocess, tokenize, root)
    assert result.rule == "image" and result.is_test_set and published.is_test_set
    assert result.outcomes == published.outcomes and result.average == published.average
    assert result.counts == published.counts


@pytest.mark.parametrize("name", ["open_clip-gelu", "timm-siglip", "transformers-clip"])
def test_mmvp_vlm_is_the_same_to_the_bit_both_ways(tmp_path, name):
    """Also on the models of every library, whose embeddings of flat colours are almost alike."""
    root, model = mmvp_folder(tmp_path), clip_variants()[name]()
    transform = image_transform_v2(PreprocessCfg(size=IMAGE), is_train=False)
    ours, published = (run(model, transform, words, root) for run in (pairs, mmvp_vlm))
    assert ours["image"].outcomes == published.outcomes
    for one, pair in zip(ours.rules["image"], published.pairs, strict=True):
        logits = torch.tensor(one.scores, dtype=torch.float32).view(2, 2)
        assert tuple(logits.softmax(-1)[:, 0].tolist()) == pair.scores


def rows(change):
    def damage(root):
        file = root / "pairs.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        change(lines)
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    return damage


def entries(change):
    def damage(root):
        found = json.loads((root / "metadata.json").read_text())
        change(found)
        (root / "metadata.json").write_text(json.dumps(found))

    return damage


def written(content):
    return lambda root: (root / "pairs.jsonl").write_bytes(content)


OF_PAIRS = [
    (lambda root: (root / "3.png").unlink(), r"pairs\.jsonl, line 2: the image 3\.png is missing"),
    (lambda root: (root / "3.png").write_bytes(b"x"), r"3\.png: not an image"),
    (rows(lambda rows: rows[2].update(id="p0")), r"line 3: the id p0 is that of .*line 1 as well"),
    (
        rows(lambda rows: rows[1].update(caption_1=rows[1]["caption_0"] + " ")),
        r"line 2: the caption 'a dog left of cat 1 ' is there twice",
    ),
    (rows(lambda rows: rows[1].update(image_1="2.png")), r"line 2: the image .*2\.png is there"),
    (
        rows(lambda rows: rows[1].pop("caption_1")),
        "line 2 has no text as caption_1 or text_1; .* are image_0",
    ),
    (rows(lambda rows: rows[1].pop("image_1")), "line 2 has no text as image_1"),
    (rows(lambda rows: rows[1].update(caption_1=" ")), r"line 2: caption_1 is ' ', expected a text"),
    (rows(lambda rows: rows[1].update(caption_1=3)), r"line 2: caption_1 is 3, expected"),
    (written(b"{"), r"pairs\.jsonl, line 1 is no JSON"),
    (written(b"[1]\n"), "line 1 is a list, expected an object"),
    (written(b'{"id": 1, "id": 2}'), "line 1: the key 'id' is there twice"),
    (written(b"\n"), "has no items"),
    (written(b"\xff"), r"pairs\.jsonl is not UTF-8 text"),
]
OF_NATURALBENCH = [
    (entries(lambda rows: rows[1].update(index=0)), "entry 1: the id 0 is that of .*entry 0 as well"),
    (entries(lambda rows: rows[1].update(image_0="9.jpg")), r"entry 1: the image 9\.jpg is missing: looked"),
    (entries(lambda rows: rows.insert(1, [1])), "entry 1 is a list, expected an object with caption_0"),
]
HOSTILE = [*((pairs_jsonl, *case) for case in OF_PAIRS), *((naturalbench, *case) for case in OF_NATURALBENCH)]


@pytest.mark.hostile
@pytest.mark.parametrize("write,damage,message", HOSTILE)
def test_a_damaged_folder_is_an_error_that_names_the_place(tmp_path, write, damage, message):
    model = write(tmp_path, ["group"] * 4)
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        score(model, tmp_path)


@pytest.mark.hostile
def test_damaged_tables_are_named(tmp_path):
    model = table(tmp_path / "shards", MIXED, "winoground", "shards")
    next((tmp_path / "shards" / "data").glob("test-00001*")).unlink()
    with pytest.raises(DataError, match="shard 1 of 00002 of test-00000-of-00002-1a2b"):
        score(model, tmp_path / "shards")
    table(tmp_path / "cut", MIXED, "vismin")
    file = tmp_path / "cut" / "data" / "test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet cannot be read"):
        score(model, tmp_path / "cut")


def test_rows_of_other_tables_are_not_scored(tmp_path):
    """What a filter of the library datasets leaves beside a saved table; other splits."""
    model = table(tmp_path / "saved", MIXED, "vismin", "saved")
    saved = tmp_path / "saved" / "test"
    shutil.copy(saved / "data-00000-of-00001.arrow", saved / "cache-1a2b3c.arrow")
    assert score(model, tmp_path / "saved").asked == len(MIXED)
    table(tmp_path / "splits", MIXED, "vismin")
    data = tmp_path / "splits" / "data"
    (data / "test-00000-of-00001.parquet").rename(data / "validation-00000-of-00001.parquet")
    with pytest.raises(DataError, match="files of train and val, and none of test"):
        score(model, tmp_path / "splits")


def test_a_text_may_hold_other_line_ends(tmp_path):
    model = pairs_jsonl(tmp_path, ["group", "group"])
    lines = (tmp_path / "pairs.jsonl").read_text().replace('"id"', '"note": "one\u2028two\x85", "id"')
    (tmp_path / "pairs.jsonl").write_text(lines, encoding="utf-8", newline="\r\n")
    assert score(model, tmp_path).right == 2


def test_your_own_pictures_are_read_as_training_reads_them(tmp_path):
    model = pairs_jsonl(tmp_path, ["group"])
    grey, turned = np.full((8, 4), 30000, np.uint16), Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(grey).save(tmp_path / "0.png", exif=turned)
    seen = []

    def preprocess(image):
        seen.append((image.mode, image.size, image.convert("RGB").getpixel((0, 0))))
        return torch.zeros(3, 8, 8)

    pairs(model, preprocess, model.tokenize, tmp_path)
    assert ("RGB", (8, 4), (117, 117, 117)) in seen


def test_images_of_a_table_may_be_paths(tmp_path):
    import pyarrow
    import pyarrow.parquet

    model = Planted()
    (row,) = pair_rows(model, ["group"])
    for number in row["numbers"]:
        picture(number).save(tmp_path / f"{number}.png")
    found = {"image_0": "0.png", "image_1": {"bytes": None, "path": "1.png"}["path"], "category": "count"}
    found |= {f"caption_{n}": text for n, text in enumerate(row["captions"])}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([found]), tmp_path / "bench.parquet")
    assert score(model, tmp_path).right == 1


def test_folders_that_hold_none_or_several_are_named(tmp_path):
    model = pairs_jsonl(tmp_path / "a", MIXED)
    with pytest.raises(
        DataError, match=r"holds no benchmark that is known\. Looked for .*pairs: pairs\.jsonl"
    ):
        score(model, tmp_path)
    with pytest.raises(ConfigError, match="benchmark='winogruond' is not known; did you mean 'winoground'"):
        score(model, tmp_path / "a", benchmark="winogruond")
    naturalbench(tmp_path / "a", MIXED)
    with pytest.raises(ConfigError, match="holds naturalbench and pairs: name one with benchmark="):
        score(model, tmp_path / "a")
    assert score(model, tmp_path / "a", benchmark="pairs").right == 2
