"""The little English that captions need: articles, and subjects in the plural."""

import re
from collections.abc import Sequence

_OWN = re.compile(r"(an?|the|some) (?=\S)")  # a word that brings its article
# First letters and sounds differ: an hour, an 18-year-old; a unicorn, a user, a European, a one-way street.
_VOWEL = re.compile(
    r"[aeio]|u(?!ni(?![mn]|de)|s[aeu]|t[ei]|r[aio])|hour|hones|hono|heir|8|1[18]\b", re.IGNORECASE
)
_CONSONANT = re.compile(r"eu|ewe|on(e|ce)\b", re.IGNORECASE)
_SPELLED = re.compile(r"[AEFHILMNORSX](?![a-z])")  # letters by name: an X, an MRI scan


def noun_phrase(count: str | None, adjectives: Sequence[str], noun: str) -> str:
    """Count or article, adjectives, noun; a word may bring its article.

    ``count`` takes the article's place; an empty one stands for a plural without a count.

    >>> noun_phrase(None, ["red"], "hour"), noun_phrase(None, [], "hour"), noun_phrase("two", ["red"], "cars")
    ('a red hour', 'an hour', 'two red cars')
    >>> noun_phrase(None, ["dark"], "the sky"), noun_phrase(None, [], "an herb"), noun_phrase("", [], "cars")
    ('the dark sky', 'an herb', 'cars')
    """
    words = [*adjectives, noun]
    own, plain = zip(*map(split_article, words), strict=True)
    definite = own[-1] if own[-1] in ("the", "some") else ""
    first = definite or own[0] or article(plain[0]) if count is None else count or definite
    return " ".join([first, *plain]).strip()


def split_article(word: str) -> tuple[str, str]:
    """The article that a word brings, or nothing, and the rest.

    >>> split_article("the sky"), split_article("thesis")
    (('the', 'sky'), ('', 'thesis'))
    """
    match = _OWN.match(word)
    return (match.group(1), word[match.end() :]) if match else ("", word)


def article(text: str) -> str:
    """``a`` or ``an``, by the sound that the text begins with.

    >>> [article(word) for word in ("unicorn", "umbrella", "hour", "one-way street", "SUV", "U-turn")]
    ['a', 'an', 'an', 'a', 'an', 'a']
    """
    if text[:1].isupper() and not text[1:2].islower():
        return "an" if _SPELLED.match(text) else "a"
    return "an" if _VOWEL.match(text) and not _CONSONANT.match(text) else "a"


def plural_of(noun: str) -> str:
    """The regular plural of a noun's last word.

    >>> [plural_of(noun) for noun in ("dog", "fire engine", "box", "pony", "the key")]
    ['dogs', 'fire engines', 'boxes', 'ponies', 'the keys']
    """
    if re.search(r"([sxz]|[cs]h)$", noun):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if re.search(r"[^aeiou]y$", noun) else f"{noun}s"
