"""The words of a table: its vocabulary, and what a tokenizer must read."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from diva_rs.captions import Attribute, Vocabulary
from diva_rs.errors import ConfigError, DataError, shown


def vocabulary_of(
    file: Path, attributes: Sequence[str], rows: Sequence[Mapping[str, str]], table: Path
) -> Vocabulary:
    """The vocabulary of ``file`` if it exists, otherwise that of the cells, in the order of the alphabet.

    An attribute with empty cells has the empty word: the judge can then find that nothing is to be said.
    Raises DataError for a cell that the vocabulary does not have.
    """
    cells = {name: sorted({row[name] for row in rows}) for name in (Vocabulary.SUBJECT, *attributes)}
    if not file.is_file():
        try:
            return Vocabulary({name: cells[name] for name in attributes}, subjects=cells[Vocabulary.SUBJECT])
        except ConfigError as err:
            raise DataError(f"{table}: {err}") from None
    read = Vocabulary.read(file)
    if set(read.attributes) != set(attributes):
        raise DataError(
            f"{file} has the attributes {', '.join(read.attributes)}, {table} {', '.join(attributes)}"
        )
    for name, found in cells.items():
        for word in found:
            if word and word not in read.words(name):
                raise DataError(f"{table}: {name} has {shown(word)}, which {file} does not list")
    given = {name: _with_empty(read.attributes[name], "" in cells[name]) for name in attributes}
    return Vocabulary(given, read.templates, [f"{noun}/{read.plural(noun)}" for noun in read.subjects])


def _with_empty(attribute: Attribute, empty: bool) -> Attribute:
    if not empty or "" in attribute.words:
        return attribute
    return replace(attribute, words=("", *attribute.words))


def all_words(vocabulary: Vocabulary) -> list[str]:
    """Every word that captions can have, each once: all pairs of a subject and a value are said.

    >>> all_words(Vocabulary({"colour": ("red", "orange")}, subjects=["cat"]))
    ['a', 'an', 'photo', 'of', 'cat', 'red', 'orange']
    """
    captions = []
    for template in range(len(vocabulary.templates)):
        for subject in vocabulary.subjects:
            values = {Vocabulary.SUBJECT: subject}
            captions.append(vocabulary.caption(values, template=template))
            for name in vocabulary.attributes:
                captions += vocabulary.set_of(name, values, template).captions
    return list(dict.fromkeys(["a", "an", *" ".join(captions).split()]))


def longest(vocabulary: Vocabulary) -> int:
    """Tokens of the longest caption, with start and end.

    >>> longest(Vocabulary({"colour": ("red", "orange")}, subjects=["cat"]))
    9
    """
    values = {name: max(vocabulary.words(name), key=_words) for name in vocabulary.attributes}
    values[Vocabulary.SUBJECT] = max(vocabulary.subjects, key=_words)
    captions = (vocabulary.caption(values, template=n) for n in range(len(vocabulary.templates)))
    return max(map(_words, captions)) + 3  # an article may come with another word


def _words(text: str) -> int:
    return len(text.split())
