"""Sentences of a vocabulary, contrast sets, and files that may hold anything."""

import copy
import itertools
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diva_rs import ConfigError, DataError, evaluation
from diva_rs.captions import Attribute, ContrastSet, Vocabulary
from diva_rs.captions.english import article, noun_phrase, plural_of
from diva_rs.microworld import DETAILS, VALUES, caption, scene, vocabulary

WORDS = Vocabulary(
    {
        "count": Attribute(("one", "two", "a pair of"), plural=("two", "a pair of")),
        "size": ("big", "old", ""),
        "colour": Attribute(("orange", "blue"), "coloured {}"),
        "place": Attribute(("left", "right"), "on the {} side"),
        "number": Attribute(("one", "three"), "numbering {}", plural=("three",)),
    },
    templates=("a photo of {}", "{}, drawn"),
    subjects=("mouse/mice", "hour", "the sky/the skies", "pony"),
)


@pytest.mark.parametrize(
    "values, order, said",
    [
        ({}, None, "a photo of a thing"),
        ({"subject": "hour"}, None, "a photo of an hour"),
        ({"subject": "hour", "size": "big"}, None, "a photo of a big hour"),
        ({"subject": "mouse", "size": "old"}, None, "a photo of an old mouse"),
        ({"subject": "mouse", "size": ""}, None, "a photo of a mouse"),
        ({"subject": "mouse", "count": "two", "size": "old"}, ["size"], "a photo of two old mice"),
        ({"subject": "pony", "count": "a pair of"}, None, "a photo of a pair of ponies"),
        ({"subject": "pony", "count": "one"}, None, "a photo of one pony"),
        ({"subject": "pony", "number": "three"}, None, "a photo of ponies numbering three"),
        ({"subject": "the sky", "size": "old"}, None, "a photo of the old sky"),
        ({"subject": "the sky", "count": "two"}, None, "a photo of two skies"),
        ({"count": "two"}, None, "a photo of two things"),
        (
            {"place": "left", "colour": "blue", "subject": "pony"},
            None,
            "a photo of a pony coloured blue on the left side",
        ),
        (
            {"colour": "blue", "place": "left", "subject": "pony"},
            ["subject", "place"],
            "a photo of a pony on the left side coloured blue",
        ),
    ],
)
def test_sentences(values, order, said):
    assert WORDS.caption(values, order) == said


def test_articles_and_plurals():
    a = "dog unicorn uniform user European one-way once eucalyptus utensil uranium U-turn UFO 10-year-old B"
    an = (
        "ox hour honest honour heir umbrella uncle unimportant unidentified urgent X MRI 8-ball 18-year-old A"
    )
    assert {word for word in a.split() if article(word) != "a"} == set()
    assert {word for word in an.split() if article(word) != "an"} == set()
    assert noun_phrase(None, ["an FBI", "red"], "car") == "an FBI red car"
    assert noun_phrase(None, ["red"], "an FBI car") == "a red FBI car"
    pairs = [("bus", "buses"), ("dish", "dishes"), ("fox", "foxes"), ("toy", "toys"), ("fly", "flies")]
    assert [plural_of(one) for one, _ in pairs] == [more for _, more in pairs]


def test_the_microworld_says_its_own_sentences():
    """Every word of every attribute, alone and with all others in several orders."""
    words = vocabulary()
    assert words.names() == ("subject", *DETAILS)
    for index, order in enumerate(itertools.islice(itertools.permutations(DETAILS), 0, 300_000, 1500)):
        one = scene(0, index)
        values = {name: one.value(name) for name in order} | {"subject": one.value("object")}
        assert words.caption(values, order) == caption(one, order)
    for name in DETAILS:
        assert words.words(name) == VALUES[name]
        one = scene(1, 0)
        made = words.set_of(name, {"subject": one.value("object")})
        assert caption(one, [name]) == made.captions[made.words.index(one.value(name))]


def test_photographs_have_all_patterns_and_say_every_word():
    photographs = Vocabulary.photographs()
    patterns = {attribute.pattern for attribute in photographs.attributes.values()}
    assert patterns == set(evaluation.PATTERNS)
    assert 60 <= len(photographs.subjects) <= 100
    for name in photographs.names():
        for subject in photographs.subjects:
            made = photographs.set_of(name, {"subject": subject})
            for word, said in zip(made.words, made.captions, strict=True):
                assert word in said.split("photo of ")[1]
    values = {"subject": "sheep", "count": "two", "colour": "white", "viewpoint": "from above"}
    assert photographs.caption(values) == "a photo of two white sheep seen from above"


TEXT = st.text(st.characters(blacklist_categories=("Cc", "Cs", "Z")), min_size=1, max_size=8)
LISTS = st.lists(TEXT, min_size=2, max_size=4, unique=True)
NAMES = TEXT.filter(lambda name: name != "subject")
VOCABULARIES = st.builds(
    Vocabulary,
    st.dictionaries(NAMES, LISTS | st.builds(Attribute, LISTS, TEXT.map("{} {{}}".format)), max_size=4),
    subjects=LISTS.map(lambda nouns: [f"{n}{noun.replace('/', '')}" for n, noun in enumerate(nouns)]),
)


@settings(deadline=None)
@given(VOCABULARIES)
def test_a_vocabulary_is_a_value(tmp_path_factory, words):
    path = tmp_path_factory.getbasetemp() / "words.toml"
    path.write_text(words.to_toml(), encoding="utf-8")
    for same in (Vocabulary.read(path), pickle.loads(pickle.dumps(words)), copy.deepcopy(words)):
        assert same == words and hash(same) == hash(words) and same.names() == words.names()
        assert same.to_toml() == words.to_toml()
    for name in words.names():
        made = words.set_of(name, {"subject": words.subjects[0]})
        assert made.name == name and made.words == words.words(name)
    other = Vocabulary({**words.attributes, "more": ("a", "b")}, subjects=words.subjects)
    assert other != words and other.digest != words.digest


@pytest.mark.hostile
@pytest.mark.parametrize(
    "text, fault",
    [
        ("[attributes.colour", "is not valid TOML"),
        ("atributes = 3", "unknown key 'atributes'; did you mean 'attributes'"),
        ("attributes = 3", "attributes is an int, a dict"),
        ("attributes.a.word = ['b', 'c']", "attribute 'a': unknown key 'word'; did you mean 'words'"),
        ("attributes.a = 1979-05-27", "attribute 'a': words is a date, a list of texts"),
        ("attributes.a.phrase = '{}'", r"attribute 'a': words=\[\]: two or more"),
        ("attributes.a = ['b']", r"attribute 'a': words=\['b'\]: two or more"),
        ("attributes.a = ['b', 'b']", "attribute 'a': words: 'b' is there twice"),
        ("attributes.a = ['b', 3]", r"attribute 'a': words\[1\]: 3 is an int"),
        ('attributes.a = ["b", "c\\u0000"]', r"attribute 'a': words\[1\]"),
        ('attributes.a = ["b", "c  d"]', r"attribute 'a': words\[1\]: 'c  d' has .* spaces"),
        ("attributes.a = {words = ['b', 'c'], phrase = 'x'}", "attribute 'a': phrase: 'x' needs one {}"),
        ("attributes.a = {words = ['b', 'c'], phrase = 3}", "attribute 'a': phrase: 3 is an int"),
        ("attributes.a = {words = ['b', 'c'], plural = ['d']}", "attribute 'a': plural names 'd'"),
        ("attributes.subject = ['b', 'c']", "list the words under subjects"),
        ("subjects = ['mouse/mice', 'mouse']", "subjects: 'mouse' is there twice"),
        ("subjects = ['/mice']", r"subjects\[0\]: '' is a str"),
        ("subjects = 'dog'", "subjects is a str"),
        ("templates = []", "templates is empty"),
        ("templates = ['{} and {}']", "templates: '{} and {}' needs one"),
        ("a." * 600 + "b = 1\n" + "c." * 600 + "d = 1", "more than 1000 dots"),
        ("a = " + "[" * 100_000, "is not valid TOML"),
    ],
)
def test_a_bad_file_is_an_error_that_names_file_and_fault(tmp_path, text, fault):
    path = tmp_path / "words.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"vocabulary .*words.toml[: ].*{fault}"):
        Vocabulary.read(path)


@pytest.mark.hostile
@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"a" * (1 << 20 | 1)])
def test_a_file_that_cannot_be_read(tmp_path, content):
    path = tmp_path / "words.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"vocabulary .*words\.toml"):
        Vocabulary.read(path)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "call, fault",
    [
        (lambda: WORDS.caption({"color": "blue"}), "no attribute 'color'; did you mean 'colour'"),
        (lambda: WORDS.caption({"colour": "bleu"}), "colour has no word 'bleu'; did you mean 'blue'"),
        (lambda: WORDS.caption({"subject": "mice"}), "subject has no word 'mice'"),
        (lambda: WORDS.caption({}, order=["light"]), "no attribute 'light'"),
        (lambda: WORDS.set_of("light", {}), "no attribute 'light'"),
        (lambda: Vocabulary({"": ("a", "b")}), "an attribute's name"),
        (lambda: Vocabulary({3: ("a", "b")}), "an attribute's name"),
        (lambda: Vocabulary(["a"]), "attributes is a list"),
    ],
)
def test_a_wrong_name_or_word(call, fault):
    with pytest.raises(ConfigError, match=fault):
        call()


@pytest.mark.hostile
@pytest.mark.parametrize(
    "arguments, fault",
    [
        (("", ("a", "b")), "name is ''"),
        (("c", "ab"), "'c': captions is a str"),
        (("c", ("a", 3)), r"'c': captions\[1\] is 3"),
        (("c", ("a",)), "'c' has 1 captions"),
        (("c", ("a", " ")), r"'c': captions\[1\], ' ', is empty"),
        (("c", ("a", "b", "a")), r"'c': captions\[2\], 'a', repeats"),
        (("c", ("a", "b"), ("x",)), "2 captions and 1 words"),
        (("c", ("a", "b"), ("x", None)), r"words\[1\] is None"),
    ],
)
def test_a_bad_contrast_set(arguments, fault):
    with pytest.raises(DataError, match=fault):
        ContrastSet(*arguments)


def test_a_contrast_set_is_a_value():
    made = ContrastSet("c", ["a", "b"])
    assert made == ContrastSet("c", ("a", "b"), ("a", "b")) and len(made) == 2 and len({made, made}) == 1
