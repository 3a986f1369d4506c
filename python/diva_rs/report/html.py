"""The report as one HTML file that needs nothing else: no script, no network, no file beside it."""

from functools import singledispatch
from importlib.resources import files
from itertools import groupby
from typing import Any

from diva_rs.report.blocks import (
    Card,
    Cards,
    Columns,
    Document,
    Figure,
    Image,
    Key,
    Missing,
    Picture,
    Section,
    Table,
    Text,
)
from diva_rs.report.markup import Markup, element, join

# Whatever slips into the page, the browser loads nothing and runs nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(document: Document) -> str:
    """The whole file.

    >>> page(Document("a <run>", "", ())).splitlines()[0]
    '<!DOCTYPE html>'
    """
    style = Markup(files("diva_rs.report").joinpath("page.css").read_text(encoding="utf-8"))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", document.title),
        element("style", style),
    )
    links = [element("li", element("a", s.title, href=f"#{s.anchor}")) for s in document.sections]
    body = element(
        "body",
        element(
            "header",
            element("h1", document.title),
            element("p", document.lead, class_="lead"),
            element("p", document.note) if document.note else "",
        ),
        element("nav", element("ul", *links), aria_label="Sections"),
        element("main", _keys(document.keys), *map(_section, document.sections)),
        element("footer", document.footer),
    )
    return "<!DOCTYPE html>\n" + element("html", head, "\n", body, lang="en") + "\n"


def _section(section: Section) -> Markup:
    title = element("h2", section.title, id=f"{section.anchor}-title")
    blocks = [_block(block) for block in section.blocks]
    labelled = f"{section.anchor}-title"
    return join("\n", element("section", title, *blocks, id=section.anchor, aria_labelledby=labelled))


def _keys(keys: tuple[Key, ...]) -> Markup:
    def one(key: Key) -> Markup:
        value = element("dd", key.value, class_="value")
        detail = element("dd", key.detail, class_="detail")
        return element("div", element("dt", key.label), value, detail, class_=key.tone)

    return element("dl", *map(one, keys), class_="keys") if keys else Markup("")


@singledispatch
def _block(block: Any) -> Markup:
    raise TypeError(f"no HTML for a {type(block).__name__}")


@_block.register
def _(block: Text) -> Markup:
    return element("p", block.text, class_="note" if block.note else None)


@_block.register
def _(block: Missing) -> Markup:
    how = element("p", "To measure it:")
    return element("div", element("p", block.what), how, element("pre", block.how), class_="missing")


@_block.register
def _(block: Table) -> Markup:
    # The roles say again what the elements mean: on a narrow page a row becomes a block, which would else
    # take its meaning from a screen reader.
    heads = [
        element("th", text, scope="col", role="columnheader", class_=_style(block, n))
        for n, text in enumerate(block.header)
    ]
    kind = "facts" if len(block.header) == 2 else "stack" if len(block.header) > 3 else None
    table = element(
        "table",
        element("caption", block.caption),
        element("thead", element("tr", *heads, role="row"), role="rowgroup"),
        element("tbody", *(_row(block, row) for row in block.rows), role="rowgroup"),
        role="table",
        class_=kind,
    )
    # A table that is too wide scrolls by itself, and the keyboard can reach it to do so.
    return element("div", table, class_="scroll", role="region", aria_label=block.caption, tabindex=0)


def _row(block: Table, row: tuple[str, ...]) -> Markup:
    shown = [_breakable(text) if n in block.code else text for n, text in enumerate(row)]
    cells = [
        element("td", text, role="cell", class_=_style(block, n), data_column=block.header[n])
        for n, text in enumerate(shown)
        if n > 0
    ]
    head = element("th", shown[0], scope="row", role="rowheader", class_=_style(block, 0))
    return element("tr", head, *cells, role="row")


def _style(block: Table, column: int) -> str | None:
    return "figure" if column in block.figures else "code" if column in block.code else None


@_block.register
def _(block: Figure) -> Markup:
    legend = [element("li", _swatch(style), name) for style, name in block.legend]
    return element(
        "figure",
        element("ul", *legend, class_="legend") if legend else "",
        block.svg,
        element("figcaption", block.caption),
    )


@_block.register
def _(block: Image) -> Markup:
    image = element("img", src=block.data, alt=block.caption, class_="picture")
    return element("figure", image, element("figcaption", block.caption))


@_block.register
def _(block: Columns) -> Markup:
    cells: list[Markup] = []
    for is_text, group in groupby(block.blocks, key=lambda part: isinstance(part, Text)):
        parts = [_block(part) for part in group]
        cells += [element("div", *parts)] if is_text else parts  # texts in a row share a column
    return element("div", *cells, class_="columns")


@_block.register
def _(block: Cards) -> Markup:
    return join(element("h3", block.caption), element("ul", *map(_card, block.cards), class_="cards"))


def _card(card: Card) -> Markup:
    pictures = element("div", *map(_picture, card.pictures), class_="two")
    lines = [element("p", line) for line in card.lines]
    return element("li", element("h4", card.heading), pictures, *lines, class_="card")


def _picture(picture: Picture) -> Markup:
    image = (
        element("div", "image not found", class_="no-image")
        if picture.data is None
        else element("img", src=picture.data, alt=f"{picture.name}: {picture.statement}")
    )
    name = element("span", picture.name, class_="file")
    return element("figure", image, element("figcaption", picture.statement, " ", name))


def _breakable(text: str) -> Markup:
    """Names in code may break after an underscore."""
    first, *rest = text.split("_")
    return join(first, *(piece for part in rest for piece in ("_", element("wbr"), part)))


def _swatch(style: str) -> Markup:
    """The mark of a legend, drawn as the chart draws it."""
    kind, _, name = style.partition(" ")
    if kind == "line":
        mark = element("line", class_=f"line {name}", x1=0, x2=26, y1=6, y2=6)
    elif kind == "mark":
        mark = element("line", class_="mark", x1=0, x2=26, y1=6, y2=6)
    elif kind == "area":
        mark = element("rect", class_=f"area {name}", x=1, y=1, width=24, height=10)
    else:
        mark = element("circle", class_=f"{kind} {name}", cx=13, cy=6, r=4)
    return element("svg", mark, viewBox="0 0 26 12", aria_hidden="true")
