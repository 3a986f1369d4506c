"""Choices among captions or images in every published format, with planted answers."""

import json

import pytest

from builders.detail import spec, sugarcrepe, sugarcrepe_pp, whatsup
from builders.mmvp import preprocess
from diva_rs.errors import DataError
from diva_rs.evaluation import captions, find_benchmarks, read_benchmark
from diva_rs.evaluation.formats.sugarcrepe import PUBLISHED

CREPE = {name: [bool((n + place) % 3) for n in range(4)] for place, name in enumerate(PUBLISHED)}
PLUS = {
    "swap_obj": [(True, True), (True, False), (False, True)],
    "replace_rel": [(False, False), (True, True)],
}
SPEC = {
    "count": {"image2text": [True, False, True, True], "text2image": [False, True, False]},
    "existence": {"image2text": [False, True], "text2image": [True, True, True]},
}


def score(model, root, **settings):
    return captions(model, preprocess, model.tokenize, root, **settings)


def test_sugarcrepe(tmp_path):
    model = sugarcrepe(tmp_path, CREPE)
    result = score(model, tmp_path)
    assert result.outcomes == tuple(good for outcomes in CREPE.values() for good in outcomes)
    assert result.counts == {name: (sum(outcomes), 4) for name, outcomes in CREPE.items()}
    assert result.missing == () and result.kind == "detail" and result.is_test_set
    assert [name for _, name in find_benchmarks(tmp_path)] == ["sugarcrepe"]
    assert model.calls == {"images": 28, "texts": 56}


def test_subsets_that_are_not_there_are_named(tmp_path):
    result = score(sugarcrepe(tmp_path, {"swap_obj": [True, False]}), tmp_path)
    assert (result.right, result.asked) == (1, 2)
    assert result.missing == tuple(name for name in PUBLISHED if name != "swap_obj")
    assert "missing: add_att" in str(result)


def test_images_may_lie_elsewhere(tmp_path):
    model = sugarcrepe(tmp_path / "crepe", CREPE)
    (tmp_path / "crepe" / "val2017").rename(tmp_path / "val2017")
    beside = score(model, tmp_path / "crepe")
    (tmp_path / "val2017").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"add_att\.json, key 0: the image 0{12}\.jpg is missing.*images="):
        score(model, tmp_path / "crepe")
    given = score(model, tmp_path / "crepe", images=tmp_path / "elsewhere")
    assert given == beside and given.right == sum(map(sum, CREPE.values()))


def test_a_published_file_may_have_gaps(tmp_path):
    outcomes = [True] * PUBLISHED["swap_obj"]
    sugarcrepe(tmp_path, {"swap_obj": outcomes}, step=2)
    assert len(read_benchmark(tmp_path).tasks[0].items) == 245


def test_sugarcrepe_plus_plus(tmp_path):
    result = score(sugarcrepe_pp(tmp_path, PLUS), tmp_path)
    # Files are read in the published order, not in that of the folder.
    plans = [*PLUS["replace_rel"], *PLUS["swap_obj"]]
    assert result.outcomes == tuple(seen for seen, _ in plans)
    assert result["text-only"].outcomes == tuple(read for _, read in plans)
    assert result.missing == ("replace_att", "replace_obj", "swap_att")
    assert [name for _, name in find_benchmarks(tmp_path)] == ["sugarcrepe++"]


@pytest.mark.parametrize("place", ["", "data"])  # of the files in the repository
def test_whatsup_counts_singles_pairs_and_sets(tmp_path, place):
    wrong = ["cup_left_of_table", "mug_in-front_of_plate", "mug_behind_plate", "coco 1"]
    result = score(whatsup(tmp_path / place, wrong), tmp_path)
    assert result.counts == {
        "controlled A": (7, 8),
        "controlled B": (2, 4),
        "COCO, one object": (1, 2),
        "VG, one object": (2, 2),
    }
    assert result["pair"].counts == {"controlled A": (3, 4), "controlled B": (1, 2)}
    assert result["set"].counts == {"controlled A": (1, 2), "controlled B": (0, 1)}
    assert result["set"].line == "What'sUp (set)  1 of 3 sets right  [6.1, 79.2]  33.3 %"
    assert result.missing == ("COCO, two objects", "VG, two objects")
    assert [name for _, name in find_benchmarks(tmp_path)] == ["whatsup"]


def test_the_photographs_of_a_set_are_in_one_half(tmp_path):
    whatsup(tmp_path, extra=10)
    for half in ("validation", "test"):
        single, pair, whole = read_benchmark(tmp_path, half=half).tasks
        controlled = [item for item in single.items if item.category.startswith("controlled")]
        assert len(controlled) >= 12
        assert len(controlled) == len(pair.items) == 2 * len(pair.groups) == 4 * len(whole.groups)


def test_spec(tmp_path):
    result = score(spec(tmp_path / "data", SPEC), tmp_path)
    for rule in ("image2text", "text2image"):
        found = result[rule]
        assert found.outcomes == tuple(good for rules in SPEC.values() for good in rules[rule])
        assert found.counts == {name: (sum(rules[rule]), len(rules[rule])) for name, rules in SPEC.items()}
    assert "relative_size, text2image" in result.missing and len(result.missing) == 8
    assert [name for _, name in find_benchmarks(tmp_path)] == ["spec"]


def edit(file, change):
    def damage(root):
        content = json.loads((root / file).read_text())
        change(content)
        (root / file).write_text(json.dumps(content))

    return damage


def swap(change):
    return edit("swap_obj.json", change)


def up(change):
    return edit("controlled_images_dataset.json", change)


def count(change):
    return edit("count/image2text.json", change)


def gone(file):
    return lambda root: (root / file).unlink()


def written(text):
    return lambda root: (root / "swap_obj.json").write_text(text)


def empty(root):
    for file in root.rglob("*.json"):
        file.write_text("{}" if file.parent == root else "[]")


HOSTILE = {
    sugarcrepe: [
        (gone("val2017/000000000001.jpg"), r"add_att\.json, key 1: the image 0{11}1\.jpg is missing"),
        (swap(lambda rows: rows.pop("2")), "key 2 is missing, between 1 and 3: the file has 3 items, .* 245"),
        (written('{"0": 1, "0": 2}'), "the key '0' is there twice"),
        (swap(lambda rows: rows.update({"99": rows["0"]})), "key 4 is missing, between 3 and 99"),
        (written("<html>"), r"swap_obj\.json is no JSON: it begins with '<'"),
        (swap(lambda rows: rows.update(x=rows["0"])), "the key 'x' is not a number"),
        (
            swap(lambda rows: rows["1"].update(negative_caption=rows["1"]["caption"])),
            r"swap_obj\.json, key 1: the caption 'a red swap_obj 1' is there twice",
        ),
        (swap(lambda rows: rows["1"].pop("negative_caption")), "key 1 has no text as negative_caption"),
        (empty, "has no items"),
    ],
    sugarcrepe_pp: [
        (swap(lambda rows: rows[2].update(id=0)), "entry 2: the id swap_obj/0 is that of .*entry 0 as well"),
        (swap(lambda rows: rows[2].pop("id")), "entry 2 has no id"),
        (swap(lambda rows: rows[2].pop("caption2")), "entry 2 has no text as caption2"),
    ],
    whatsup: [
        (up(lambda rows: rows[1]["caption_options"].pop()), "entry 1: caption_options is .*expected four"),
        (
            up(lambda rows: rows[1]["caption_options"].reverse()),
            "entry 1: option 0 is the right one, but 'A cup under a table' does not say 'right'",
        ),
        (up(lambda rows: rows.pop(2)), "the set controlled A/cup table lacks on"),
        (up(lambda rows: rows.insert(1, rows[0])), "entry 1: .*cup table has 'left' twice"),
        (gone("controlled_images/cup_on_table.jpeg"), r"entry 2: the image .*/cup_on_table\.jpeg is missing"),
        (up(lambda rows: rows[1].update(image_path="7.jpeg")), r"entry 1: .* in the file name 7\.jpeg"),
        (edit("coco_qa_one_obj.json", lambda rows: rows[1].pop()), r"entry 1 is \[1001, .*expected \[image"),
    ],
    spec: [
        (
            count(lambda rows: rows[1].update(label=3)),
            r"image2text\.json, entry 1: label is 3, .* from 0 to 2",
        ),
        (count(lambda rows: rows[1].update(label="1")), "entry 1: label is '1'"),
        (count(lambda rows: rows[1].update(keys=["a"])), "entry 1: keys is"),
        (gone("existence/images/14.jpg"), r"existence/image2text\.json, entry 1: the image .*14\.jpg"),
        (count(lambda rows: rows[1].update(keys=["a", "a"], label=0)), "entry 1: the caption 'a' is there"),
        (empty, "has no items"),
    ],
}
PLANS = {sugarcrepe: [CREPE], sugarcrepe_pp: [PLUS], whatsup: [], spec: [SPEC]}


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("write", "number"), [(w, n) for w, cases in HOSTILE.items() for n in range(len(cases))]
)
def test_a_damaged_folder_is_an_error_that_names_the_place(tmp_path, write, number):
    damage, message = HOSTILE[write][number]
    model = write(tmp_path, *PLANS[write])
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        score(model, tmp_path)


def test_texts_of_the_same_tokens_are_a_tie_and_wrong(tmp_path):
    """As captions are that differ behind the last token of the context."""
    model = sugarcrepe(tmp_path, {"swap_obj": [True] * 3})

    def cut(texts):
        return model.tokenize([text.replace("blue", "red") for text in texts])

    with pytest.warns(
        UserWarning, match=r"SugarCrepe: 3 items have texts with the same tokens, first .*key 0"
    ):
        assert captions(model, preprocess, cut, tmp_path).right == 0
