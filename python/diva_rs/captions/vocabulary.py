"""A list of words, and the sentences that it makes: attributes, subjects and templates."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diva_rs._base.settings import hint
from diva_rs._base.toml import read_toml
from diva_rs.captions.english import noun_phrase, plural_of
from diva_rs.captions.sets import ContrastSet
from diva_rs.errors import ConfigError, a_type, shown

_MOST_BYTES = 1 << 20
_UNWRITABLE = re.compile("[\0-\x1f\x7f\ud800-\udfff]")
_THING = "thing"  # the noun of a caption without a subject


@dataclass(frozen=True)
class Attribute:
    """One thing in which images differ: the words for it, and where they stand in a sentence.

    words    two or more distinct words or groups of words; an empty one leaves the attribute unsaid
    phrase   where the words follow the subject, with the word at ``{}``: ``"coloured {}"``; None: the words
             are adjectives before the subject
    plural   the words that put the subject into the plural. With them and without a phrase, all words of the
             attribute are counts, which stand first and take the article's place
    pattern  the visual pattern that the attribute stands for, such as one of `diva_rs.evaluation.PATTERNS`

    >>> Attribute(("one", "two", "three"), plural=("two", "three")).counts
    True
    """

    words: tuple[str, ...]
    phrase: str | None = None
    plural: tuple[str, ...] = ()
    pattern: str | None = None

    def __post_init__(self) -> None:
        words, plural = _texts(self.words, "words", empty=True), _texts(self.plural, "plural")
        if len(words) < 2:
            raise ConfigError(f"words={shown(list(words))}: two or more are needed")
        if self.phrase is not None:
            _template(self.phrase, "phrase")
        for word in plural:
            if word not in words:
                raise ConfigError(f"plural names {shown(word)}, which is not one of its words")
        if self.pattern is not None:
            _text(self.pattern, "pattern")
        object.__setattr__(self, "words", words)
        object.__setattr__(self, "plural", plural)

    @property
    def counts(self) -> bool:
        """Whether the words are counts, such as ``two``."""
        return self.phrase is None and bool(self.plural)


class Vocabulary:
    """Attributes, subjects and templates: a value, which makes captions and contrast sets.

    attributes  name -> `Attribute`, or its words alone, which are then adjectives
    templates   sentences with the noun phrase at ``{}``
    subjects    nouns, each with its plural after a slash if that is irregular ("mouse/mice"), and with its
                article if that is not "a" or "an" by sound ("the sky", "some rice")

    Adjectives stand before the subject in the vocabulary's order, phrases behind it in any order. Raises
    ConfigError with the attribute and the word.

    >>> words = {"count": Attribute(("one", "two"), plural=("two",)), "colour": ("orange", "blue")}
    >>> words["place"] = Attribute(("left", "right"), "on the {} side")
    >>> vocabulary = Vocabulary(words, subjects=("mouse/mice", "dog"))
    >>> vocabulary.caption({"subject": "mouse", "colour": "orange", "place": "left"})
    'a photo of an orange mouse on the left side'
    >>> vocabulary.set_of("count", {"subject": "mouse", "colour": "blue"}).captions
    ('a photo of one blue mouse', 'a photo of two blue mice')
    """

    SUBJECT = "subject"  # the name of the contrast set over subjects

    attributes: Mapping[str, Attribute]
    subjects: tuple[str, ...]
    templates: tuple[str, ...]
    digest: str
    """A hash of the contents, the same on every machine."""

    def __init__(
        self,
        attributes: Mapping[str, Attribute | Sequence[str]],
        templates: Sequence[str] = ("a photo of {}",),
        subjects: Sequence[str] = (),
    ) -> None:
        if not isinstance(attributes, Mapping):
            raise ConfigError(f"attributes is {a_type(attributes)}, a dict of name to words is needed")
        found = {name: _attribute(name, given) for name, given in attributes.items()}
        self.attributes = MappingProxyType(found)
        self.templates = _texts(templates, "templates")
        for template in self.templates:
            _template(template, "templates")
        if not self.templates:
            raise ConfigError("templates is empty: give one, such as 'a photo of {}'")
        self._given = _texts(subjects, "subjects")
        split = [given.partition("/") for given in self._given]
        self.subjects = _texts([noun.strip() for noun, _, _ in split], "subjects")
        self._plurals = {noun.strip(): more.strip() or plural_of(noun) for noun, _, more in split}
        contents = [[[name, asdict(one)] for name, one in found.items()], self.templates, self._given]
        self.digest = hashlib.blake2b(json.dumps(contents).encode(), digest_size=16).hexdigest()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """The vocabulary of a TOML file; `to_toml` and ``captions/photographs.toml`` show the form.

        Raises ConfigError with the file and the fault.
        """
        content = read_toml(path, "vocabulary", _MOST_BYTES)
        try:
            _known(content, ("attributes", "templates", "subjects"))
            return cls(**{"attributes": {}, **content})
        except ConfigError as err:
            raise ConfigError(f"vocabulary {path}: {err}") from None

    @classmethod
    def photographs(cls) -> "Vocabulary":
        """The vocabulary for photographs that comes with diva_rs, over MMVP's nine visual patterns.

        >>> Vocabulary.photographs().words("state")[:2]
        ('open', 'closed')
        """
        return _photographs()

    def to_toml(self) -> str:
        """The text of a file that `read` reads as an equal vocabulary.

        >>> print(Vocabulary({"size": ["big", "small"]}, subjects=["mouse/mice"]).to_toml())
        templates = ["a photo of {}"]
        subjects = ["mouse/mice"]
        <BLANKLINE>
        [attributes."size"]
        words = ["big", "small"]
        <BLANKLINE>
        """
        tables = [f"templates = {_toml(self.templates)}\nsubjects = {_toml(self._given)}\n"]
        for name, attribute in self.attributes.items():
            lines = [f"{key} = {_toml(value)}\n" for key, value in asdict(attribute).items() if value]
            tables.append(f"[attributes.{_toml(name)}]\n{''.join(lines)}")
        return "\n".join(tables)

    def names(self) -> tuple[str, ...]:
        """The names of the contrast sets: "subject", where there are two or more, and the attributes."""
        return (*([self.SUBJECT] if len(self.subjects) > 1 else []), *self.attributes)

    def words(self, name: str) -> tuple[str, ...]:
        """The words of an attribute, or the subjects."""
        if name == self.SUBJECT:
            return self.subjects
        if name not in self.attributes:
            known = (self.SUBJECT, *self.attributes)
            near = hint(name, known) or f": one of {', '.join(known)}"
            raise ConfigError(f"the vocabulary has no attribute {shown(name)}{near}")
        return self.attributes[name].words

    def plural(self, subject: str) -> str:
        """The plural of a subject.

        >>> Vocabulary.photographs().plural("mouse")
        'mice'
        """
        return self._plurals.get(subject) or plural_of(subject)

    def caption(
        self, values: Mapping[str, str], order: Iterable[str] | None = None, template: int = 0
    ) -> str:
        """The sentence that says ``values``: name -> word, "subject" included.

        Attributes without a value are not named. Without a subject, the only one of the vocabulary stands in
        its place, or "thing". ``order`` names attributes whose phrases come first, in this order; the others
        follow in the vocabulary's. ``template`` is the index of the template.

        >>> Vocabulary({"fur": ["soft", "rough"]}, subjects=["cat", "dog"]).caption({"fur": "soft"})
        'a photo of a soft thing'
        """
        for name, word in values.items():
            words = self.words(name)
            if word not in words:
                near = hint(word, words) or f": one of {', '.join(words)}"
                raise ConfigError(f"{name} has no word {shown(word)}{near}")
        first = [name for name in order or () if self.words(name) and values.get(name)]
        said = {name: one for name, one in self.attributes.items() if values.get(name)}
        plain = [(values[name], one.counts) for name, one in said.items() if one.phrase is None]
        counts = [word for word, count in plain if count]
        noun = values.get(self.SUBJECT) or (self.subjects[0] if len(self.subjects) == 1 else _THING)
        if any(values[name] in one.plural for name, one in said.items()):
            noun = self.plural(noun)
            counts = counts or [""]
        parts = [
            noun_phrase(" ".join(counts) if counts else None, [w for w, count in plain if not count], noun)
        ]
        for name in dict.fromkeys([*first, *said]):
            if name in said and (phrase := said[name].phrase) is not None:
                parts.append(phrase.replace("{}", values[name]))
        return self.templates[template].replace("{}", " ".join(parts))

    def set_of(self, name: str, values: Mapping[str, str], template: int = 0) -> ContrastSet:
        """The contrast set in which ``name`` varies over its words and the other values are as given."""
        words = self.words(name)
        captions = [self.caption({**values, name: word}, template=template) for word in words]
        return ContrastSet(name, tuple(captions), words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        words = ", ".join(f"{name}: {len(one.words)}" for name, one in self.attributes.items())
        return f"Vocabulary({words}; {len(self.subjects)} subjects)"

    def __reduce__(self) -> tuple[Any, ...]:
        return Vocabulary, (dict(self.attributes), self.templates, self._given)


@cache
def _photographs() -> Vocabulary:
    return Vocabulary.read(Path(__file__).with_name("photographs.toml"))


def _attribute(name: object, given: Any) -> Attribute:
    """An attribute of what a dict or a table of a file gives; a ConfigError names it."""
    _text(name, "an attribute's name")
    if name == Vocabulary.SUBJECT:
        raise ConfigError("an attribute cannot be named 'subject': list the words under subjects")
    try:
        if isinstance(given, Attribute):
            return given
        if not isinstance(given, Mapping):
            return Attribute(given)
        _known(given, Attribute.__dataclass_fields__)
        return Attribute(**{"words": (), **given})
    except ConfigError as err:
        raise ConfigError(f"attribute {shown(name)}: {err}") from None


def _known(table: Mapping[str, Any], keys: Iterable[str]) -> None:
    for key in table:
        if key not in keys:
            near = hint(key, keys) or f": known are {', '.join(keys)}"
            raise ConfigError(f"unknown key {shown(key)}{near}")


def _text(value: object, what: str, empty: bool = False) -> str:
    """A text of one line with single spaces between its words."""
    if not isinstance(value, str) or not (value or empty):
        raise ConfigError(f"{what}: {shown(value)} is {a_type(value)}, a text is needed")
    if _UNWRITABLE.search(value) or value != " ".join(value.split()):
        raise ConfigError(f"{what}: {shown(value)} has a line break, or spaces around it or in a row")
    return value


def _texts(values: Any, what: str, empty: bool = False) -> tuple[str, ...]:
    """Distinct texts."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ConfigError(f"{what} is {a_type(values)}, a list of texts is needed")
    found = tuple(_text(value, f"{what}[{number}]", empty) for number, value in enumerate(values))
    if len(set(found)) < len(found):
        twice = next(value for value, times in Counter(found).items() if times > 1)
        raise ConfigError(f"{what}: {shown(twice)} is there twice")
    return found


def _template(value: object, what: str) -> None:
    if _text(value, what).count("{}") != 1:
        raise ConfigError(f"{what}: {shown(value)} needs one {{}}, the place of the words")


def _toml(value: Any) -> str:
    """A text or a list of texts as TOML: without control characters, JSON's form is TOML's."""
    return json.dumps(value, ensure_ascii=False)
