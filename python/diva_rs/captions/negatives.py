"""Hard negatives: a caption with one of its words swapped for another of the vocabulary."""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from diva_rs.captions.english import noun_phrase, split_article
from diva_rs.captions.sets import ContrastSet
from diva_rs.captions.vocabulary import Vocabulary

_ARTICLE = re.compile(r"\b(an?)(\s+)$", re.IGNORECASE)
_BETWEEN = re.compile(r"(?:\s+(?!of\b|and\b|or\b)[\w'-]+){0,4}\s+")  # between a count and its noun
_VERB = re.compile(r"^(\s+)(is|are|was|were|has|have)\b")
_OTHER_VERB = {"is": "are", "are": "is", "was": "were", "were": "was", "has": "have", "have": "has"}


def swaps(
    caption: str, vocabulary: Vocabulary, names: Iterable[str] | None = None
) -> tuple[ContrastSet, ...]:
    """A contrast set for each word of the vocabulary in a caption: the caption, then its variants.

    Words are found whole and in any case, those of an attribute with a phrase as the whole phrase. A variant
    keeps the case. Its article fits the new word, and with a count the noun and the verb after it change.
    A variant that would need more than this is left out. ``names`` are the attributes (and "subject") to
    look for; by default all.

    >>> words = Vocabulary({"colour": ["red", "orange"], "side": ["left", "right"]}, subjects=["car", "bus"])
    >>> for found in swaps("A red car turns left", words): print(found.name, found.captions)
    subject ('A red car turns left', 'A red bus turns left')
    colour ('A red car turns left', 'An orange car turns left')
    side ('A red car turns left', 'A red car turns right')
    """
    every = (vocabulary.SUBJECT, *vocabulary.attributes)
    chosen = every if names is None else tuple(names)
    found = [(name, match) for name in every for match in _finder(vocabulary, name)[0].finditer(caption)]
    spans = {match.span() for _, match in found}
    made = [
        _set(caption, vocabulary, name, match)
        for name, match in found
        if name in chosen and not any(_inside(match.span(), span) for span in spans)
    ]
    return tuple(one for one in made if one is not None)


def _inside(span: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether a match is a part of a longer one, as "plain" of "against a plain background"."""
    return span != other and other[0] <= span[0] and span[1] <= other[1]


class _Form(NamedTuple):
    """A word as it is written in a caption."""

    word: str
    text: str
    many: bool


def _forms(vocabulary: Vocabulary, name: str) -> list[_Form]:
    """The forms of each word: of a subject the singular and the plural."""
    words = [word for word in vocabulary.words(name) if word]
    if name == vocabulary.SUBJECT:
        words = [word for word in words if split_article(word)[0] not in ("the", "some")]
        one = [_Form(word, split_article(word)[1], False) for word in words]
        return one + [_Form(word, split_article(vocabulary.plural(word))[1], True) for word in words]
    attribute = vocabulary.attributes[name]
    phrase = attribute.phrase or "{}"
    return [_Form(word, phrase.replace("{}", word), word in attribute.plural) for word in words]


@lru_cache(maxsize=256)
def _finder(vocabulary: Vocabulary, name: str) -> tuple[re.Pattern[str], dict[str, _Form], list[_Form]]:
    """The pattern that finds the forms of a name, the form of each text in lower case, and all forms."""
    forms = _forms(vocabulary, name)
    texts = {form.text.lower(): form for form in reversed(forms)}
    nouns = {form.text.lower() for form in _forms(vocabulary, vocabulary.SUBJECT)}
    plain = [one for one in vocabulary.attributes.values() if one.phrase is None]
    adjectives = {word.lower() for one in plain for word in one.words if word}
    # "an orange cup" is orange and "a glass bowl" a bowl, but "an orange" and "a glass" are things.
    followed = rf"\s+(?:{_any(nouns | adjectives)})(?!\w)"
    if name == vocabulary.SUBJECT:
        pattern = rf"(?:{_any(texts)})(?!\w)(?!{followed})"
    else:
        pattern = rf"(?:{_any(texts.keys() - nouns)})(?!\w)|(?:{_any(texts.keys() & nouns)})(?={followed})"
    return re.compile(rf"(?<!\w)(?:{pattern})", re.IGNORECASE), texts, forms


def _any(texts: Iterable[str]) -> str:
    """The pattern of any of these texts, the longest first."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"


def _set(caption: str, vocabulary: Vocabulary, name: str, match: re.Match[str]) -> ContrastSet | None:
    """The set of one word that was found; None where no other word fits there."""
    _, texts, forms = _finder(vocabulary, name)
    counts = name in vocabulary.attributes and vocabulary.attributes[name].counts
    found = texts.get(match.group().lower())
    if found is None:  # a letter that equals another without case, and has no other lower case
        return None
    before, after = caption[: match.start()], caption[match.end() :]
    many = found.many
    if name == vocabulary.SUBJECT and vocabulary.plural(found.word) == found.word:  # sheep
        many = not _ARTICLE.search(before)
    other = _renumbered(after, vocabulary, not many) if counts else None
    variants = {caption: found.word}
    for form in forms:
        rest = after if form.many == many else other
        if rest is not None and form.word != found.word:
            text = _cased(match.group(), found.text, form.text)
            loud = text.isupper() and len(text) > 1
            variants.setdefault(_with_article(before, form.text, loud) + text + rest, form.word)
    return ContrastSet(name, tuple(variants), tuple(variants.values())) if len(variants) > 1 else None


def _renumbered(after: str, vocabulary: Vocabulary, many: bool) -> str | None:
    """The text after a count, with its noun and the verb behind it in the other number; None without one."""
    pattern, texts, _ = _finder(vocabulary, vocabulary.SUBJECT)
    match = pattern.search(after)
    found = texts.get(match.group().lower()) if match else None
    if match is None or found is None or not _BETWEEN.fullmatch(after[: match.start()]):
        return None
    one, more = (split_article(noun)[1] for noun in (found.word, vocabulary.plural(found.word)))
    if found.many == many and one != more:
        return None
    rest = _VERB.sub(lambda verb: verb[1] + _OTHER_VERB[verb[2]], after[match.end() :], count=1)
    return after[: match.start()] + _cased(match.group(), found.text, more if many else one) + rest


def _with_article(before: str, text: str, loud: bool) -> str:
    """The text before a word, with the article that the new word takes; ``loud``: in capitals."""
    match = _ARTICLE.search(before)
    if match is None:
        return before
    article, _ = split_article(noun_phrase(None, [], text))
    article = article.upper() if loud and match[1].isupper() else _cased(match[1], match[1].lower(), article)
    return before[: match.start()] + article + match[2]


def _cased(like: str, written: str, new: str) -> str:
    """``new`` in the case in which ``like`` differs from ``written``."""
    if like == written:
        return new
    if like.isupper() and len(like) > 1:
        return new.upper()
    return new[:1].upper() + new[1:] if like[:1].isupper() else new.lower()
