"""Contrast sets from values, files, loaders, functions, and by swaps of a caption's words."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diva_rs import ConfigError, DataError
from diva_rs.captions import (
    Attribute,
    ContrastSet,
    Vocabulary,
    from_loader,
    from_values,
    read_sets,
    sets_of,
    swaps,
)
from diva_rs.data import ImageFolder
from diva_rs.step.draws import sample_keys

WORDS = Vocabulary(
    {
        "count": Attribute(("one", "two", "a pair of"), plural=("two", "a pair of")),
        "colour": ("red", "orange", "dark blue", "blue", "glass"),
        "view": Attribute(("above", "the front"), "from {}"),
    },
    subjects=(
        "mouse/mice",
        "cup",
        "umbrella",
        "orange",
        "sheep/sheep",
        "the sky",
        "glass/glasses",
        "Alsatian",
    ),
)
COLOUR = ContrastSet("colour", ("a red car", "a blue car"), ("red", "blue"))


@pytest.mark.parametrize(
    "caption, name, variants",
    [
        ("a red cup", "colour", ["an orange cup", "a dark blue cup", "a blue cup", "a glass cup"]),
        ("A DARK BLUE CUP.", "colour", ["A RED CUP.", "AN ORANGE CUP.", "A BLUE CUP.", "A GLASS CUP."]),
        ("Red cup", "colour", ["Orange cup", "Dark blue cup", "Blue cup", "Glass cup"]),
        ("the tired mouse", "colour", []),  # no whole word
        ("an orange on a table", "colour", []),  # a fruit
        ("seen from above", "view", ["seen from the front"]),
        ("above all", "view", []),  # not the phrase
        ("Two red mice are here", "count", ["One red mouse is here", "A pair of red mice are here"]),
        ("one cup was here", "count", ["two cups were here", "a pair of cups were here"]),
        ("one of the cups", "count", []),
        ("two people", "count", ["a pair of people"]),
        ("one sheep is here", "count", ["two sheep are here", "a pair of sheep are here"]),
        (
            "a red cup",
            "subject",
            [f"a red {w}" for w in ("mouse", "umbrella", "orange", "sheep", "glass", "Alsatian")],
        ),
        (
            "a glass umbrella",
            "subject",
            [f"a glass {w}" for w in ("mouse", "cup", "orange", "sheep", "glass", "Alsatian")],
        ),
        (
            "two glasses",
            "subject",
            [f"two {w}" for w in ("mice", "cups", "umbrellas", "oranges", "sheep", "Alsatians")],
        ),
        ("sheep", "subject", ["mice", "cups", "umbrellas", "oranges", "glasses", "Alsatians"]),
        ("a sheep", "subject", ["a mouse", "a cup", "an umbrella", "an orange", "a glass", "an Alsatian"]),
        ("the sky", "subject", []),
        ("nothing", "subject", []),
        ("a mou\u017fe", "subject", []),  # a long s, which equals s without case
    ],
)
def test_swaps(caption, name, variants):
    found = swaps(caption, WORDS, [name])
    assert [list(one.captions) for one in found] == ([[caption, *variants]] if variants else [])


def test_each_word_of_a_caption_has_a_set():
    found = swaps("a red cup and an orange mouse seen from above", WORDS)
    assert [(one.name, one.words[0]) for one in found] == [
        ("subject", "cup"), ("subject", "mouse"), ("colour", "red"), ("colour", "orange"), ("view", "above"),
    ]  # fmt: skip


PHOTOGRAPHS = Vocabulary.photographs()


@settings(deadline=None)
@given(st.data())
def test_a_swap_back_gives_the_caption(data):
    """A vocabulary's own sentences: each set of the sentence is found again, and each variant leads back."""
    names = data.draw(st.lists(st.sampled_from(list(PHOTOGRAPHS.attributes)), unique=True, max_size=4))
    values = {name: data.draw(st.sampled_from(PHOTOGRAPHS.words(name))) for name in names}
    values["subject"] = data.draw(st.sampled_from([noun for noun in PHOTOGRAPHS.subjects if noun != "sheep"]))
    caption = PHOTOGRAPHS.caption(values)
    for found in swaps(caption, PHOTOGRAPHS, names):
        made = PHOTOGRAPHS.set_of(found.name, values)
        assert dict(zip(found.words, found.captions, strict=True)) == dict(
            zip(made.words, made.captions, strict=True)
        )
    assert {one.name for one in swaps(caption, PHOTOGRAPHS, names)} == set(names)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_caption_has_swaps_or_none(caption):
    for one in swaps(caption, PHOTOGRAPHS):
        assert one.captions[0] == caption


def test_sources_of_values_dicts_and_functions():
    sets = from_values(WORDS, {3: {"subject": "cup"}, 4: {}}, ["colour"])
    assert sets[3] == (WORDS.set_of("colour", {"subject": "cup"}),)
    assert [one.name for one in from_values(WORDS, {3: {}})[3]] == ["subject", "count", "colour", "view"]
    assert sets_of(sets, torch.tensor([4, 3, 5])) == [sets[4], sets[3], ()]
    assert sets_of(lambda key: [COLOUR] * (key == 3), [3, 4]) == [(COLOUR,), ()]
    (key,) = sample_keys(["a.png"]).tolist()
    assert sets_of({key: [COLOUR]}, ["a.png"]) == [(COLOUR,)]


@pytest.mark.hostile
@pytest.mark.parametrize(
    "source, error, fault",
    [
        ([COLOUR], ConfigError, "contrast sets are a list"),
        ({3: COLOUR}, DataError, "sample 3: ContrastSet.* is not a list"),
        (lambda key: None, DataError, "sample 3: None is not a list"),
        (lambda key: ["a", "b"], DataError, "sample 3: .* is not a list"),
    ],
)
def test_a_bad_source(source, error, fault):
    with pytest.raises(error, match=fault):
        sets_of(source, [3])


def test_files_name_images_as_the_readers_do(photos, tmp_path):
    rows = [
        {
            "file": "cats/1.png",
            "name": "colour",
            "captions": ["a red car", "a blue car"],
            "words": ["red", "blue"],
        },
        {"file": "cats/1.png", "name": "size", "captions": ["big", "small"]},
        {"id": "mine", "name": "size", "captions": ["big", "small"]},
        {"id": 7, "caption": "a red cup"},
    ]
    path = tmp_path / "sets.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    sets = read_sets(path, WORDS, images=photos)
    second_id, first_id = ImageFolder(photos).ids.tolist()  # in the order of the names
    first, second, third = sets_of(sets, [first_id, second_id, 7])
    assert first == (COLOUR, ContrastSet("size", ("big", "small"))) and second == ()
    assert [one.name for one in third] == ["subject", "colour"]
    assert sets_of(sets, ["mine"]) == [(first[1],)]


@pytest.mark.hostile
@pytest.mark.parametrize(
    "line, fault",
    [
        ("{", "line 2 is no JSON"),
        ("[]", "line 2 holds a list"),
        ('{"name": "a", "captions": ["b", "c"]}', "line 2 names no image"),
        ('{"id": -1, "name": "a", "captions": ["b", "c"]}', r"line 2.*ids\[0\] is -1"),
        ('{"id": {}, "name": "a", "captions": ["b", "c"]}', r"line 2.*ids\[0\] is {}"),
        ('{"file": 3, "name": "a", "captions": ["b", "c"]}', "line 2: file is 3"),
        ('{"file": "a\\u0000", "name": "a", "captions": ["b", "c"]}', "line 2: the image a\0 is missing"),
        ('{"file": "3.png", "name": "a", "captions": ["b", "c"]}', "line 2: the image 3.png is missing in"),
        ('{"id": 1, "captions": ["b", "c"]}', "line 2: .* has no 'name' and 'captions'"),
        ('{"id": 1, "name": "a", "captions": ["b"]}', "line 2: contrast set 'a' has 1 captions"),
        ('{"id": 1, "name": "a", "captions": {"b": 1}}', "line 2: contrast set 'a': captions is a dict"),
        ('{"id": 1, "name": "a", "captions": ["b", "c"], "words": 3}', "line 2: .* words is an int"),
        ('{"id": 1}', "line 2 has no text as caption"),
        ('{"id": 1, "caption": ["a red cup"]}', "line 2: caption is"),
        ('{"id": 1, "id": 2, "caption": "a red cup"}', "line 2: the key 'id' is there twice"),
    ],
)
def test_a_bad_line(photos, tmp_path, line, fault):
    path = tmp_path / "sets.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(DataError, match=rf"sets\.jsonl, {fault}"):
        read_sets(path, WORDS, images=photos)


def test_loaders_hold_sets_beside_their_images():
    row = {"name": "colour", "captions": ["a red car", "a blue car"], "words": ["red", "blue"]}
    batches = [
        {"ids": torch.tensor([3, 4]), "captions": [[row], [COLOUR, COLOUR]]},
        {"ids": ["a"], "captions": [[]]},
    ]
    sets = from_loader(batches)
    assert sets_of(sets, [3, 4]) == [(COLOUR,), (COLOUR, COLOUR)] and sets_of(sets, ["a"]) == [()]


@pytest.mark.hostile
@pytest.mark.parametrize(
    "batch, fault",
    [
        (torch.zeros(2, 3, 8, 8), "batch 1 is a Tensor"),
        ({"ids": [1]}, "batch 1 is a dict, a dict with 'ids' and 'captions'"),
        ({"ids": [1, 2], "captions": [[]]}, "batch 1: 'captions'.* 2 ids"),
        ({"ids": [1], "captions": [COLOUR]}, r"batch 1: captions\[0\] is a ContrastSet"),
        ({"ids": [1], "captions": [["a"]]}, r"batch 1, captions\[0\]: 'a' has no 'name'"),
    ],
)
def test_a_bad_loader(batch, fault):
    with pytest.raises(DataError, match=fault):
        from_loader([{"ids": [], "captions": []}, batch])
