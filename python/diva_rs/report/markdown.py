"""The report as Markdown: the same words and figures; a chart is replaced by what it shows, in words."""

import re
from functools import singledispatch
from typing import Any

from diva_rs.report.blocks import (
    Cards,
    Columns,
    Document,
    Figure,
    Image,
    Missing,
    Section,
    Table,
    Text,
)


def markdown(document: Document) -> str:
    """The whole file.

    >>> print(markdown(Document("a <run>", "one_two", ())))
    # a &lt;run&gt;
    <BLANKLINE>
    one\\_two
    <BLANKLINE>
    """
    parts = [f"# {_escaped(document.title)}", _escaped(document.lead), _escaped(document.note)]
    if document.keys:
        rows = tuple((key.label, key.value, key.detail) for key in document.keys)
        parts.append(_table(("At a glance", "", ""), rows))
    parts += [_section(section) for section in document.sections]
    parts.append(_escaped(document.footer))
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(section: Section) -> str:
    return "\n\n".join([f"## {_escaped(section.title)}", *map(_block, section.blocks)])


@singledispatch
def _block(block: Any) -> str:
    raise TypeError(f"no Markdown for a {type(block).__name__}")


@_block.register
def _(block: Text) -> str:
    return _escaped(block.text)


@_block.register
def _(block: Missing) -> str:
    return f"{_escaped(block.what)} To measure it:\n\n```python\n{block.how}\n```"


@_block.register
def _(block: Table) -> str:
    return f"{_escaped(block.caption)}\n\n{_table(block.header, block.rows, block.figures, block.code)}"


@_block.register
def _(block: Figure) -> str:
    return f"*{_escaped(block.caption)}* {_escaped(block.alt)}"


@_block.register
def _(block: Image) -> str:
    return f"*Picture, in the HTML page:* {_escaped(block.caption)}"


@_block.register
def _(block: Columns) -> str:
    return "\n\n".join(map(_block, block.blocks))


@_block.register
def _(block: Cards) -> str:
    rows = tuple(
        (
            card.heading,
            *(f"{picture.statement} ({picture.name})" for picture in card.pictures),
            " ".join(card.lines),
        )
        for card in block.cards
    )
    header = ("Pair", "First image", "Second image", "Decisions")
    return f"### {_escaped(block.caption)}\n\n{_table(header, rows)}"


def _table(
    header: tuple[str, ...],
    rows: tuple[tuple[str, ...], ...],
    figures: frozenset[int] = frozenset(),
    code: frozenset[int] = frozenset(),
) -> str:
    rule = ["---:" if column in figures else "---" for column in range(len(header))]
    lines = [[_escaped(text) for text in header], rule]
    for row in rows:
        lines.append([_inline_code(t) if n in code and t else _escaped(t) for n, t in enumerate(row)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """Plain text that Markdown, and the HTML that it lets through, shows as it is.

    >>> _escaped("a|b *c* [d](e) <f>\\n# g")
    'a\\\\|b \\\\*c\\\\* \\\\[d\\\\](e) &lt;f&gt; # g'
    """
    text = " ".join(text.split())
    text = re.sub(r"([\\`*_\[\]|~])", r"\\\1", text.replace("&", "&amp;"))
    return re.sub(r"^([#+-]|\d+\.)(?=\s)", r"\\\1", text.replace("<", "&lt;").replace(">", "&gt;"))


def _inline_code(text: str) -> str:
    """As code where nothing in it could end the code, else as plain text."""
    return f"`{text}`" if text.isprintable() and not set(text) & set("`<>&|\\") else _escaped(text)
