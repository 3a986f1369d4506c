"""What a report is made of, before it is HTML or Markdown: both are written from the same blocks, so that no
figure can differ between them."""

from dataclasses import dataclass

from diva_rs.report.markup import Markup


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text."""

    text: str
    note: bool = False  # set smaller: how something is to be read


@dataclass(frozen=True)
class Table:
    """A table with a header row; the first cell of each row is its header.

    Attributes:
        caption: what it shows; also the name that a screen reader announces.
        header: the columns' names.
        rows: cells as text, as many in each as the header has.
        figures: the columns that hold figures, by number: set right-aligned.
        code: the columns set as code.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    figures: frozenset[int] = frozenset()
    code: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Figure:
    """A chart. Its numbers stand in a table or in ``alt`` too, which Markdown shows in its place.

    Attributes:
        svg: the chart, with ``alt`` as its accessible name.
        alt: what it shows, in words.
        caption: the line beneath it.
        legend: (class of the line or mark, what it stands for).
    """

    svg: Markup
    alt: str
    caption: str
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Columns:
    """Charts and texts side by side where the page is wide enough."""

    blocks: tuple[Figure | Text, ...]


@dataclass(frozen=True)
class Missing:
    """Something that was not measured, and the code or command that measures it."""

    what: str
    how: str


@dataclass(frozen=True)
class Picture:
    """An image of a pair: its statement, the file's name, and a thumbnail as a data URI (None: not found)."""

    statement: str
    name: str
    data: str | None


@dataclass(frozen=True)
class Card:
    """A pair of images that flipped: a heading, the two pictures, and how each model decided."""

    heading: str
    pictures: tuple[Picture, Picture]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Cards:
    """Pairs that flipped one way."""

    caption: str
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Image:
    """A picture of the caller's, as a data URI, and the line beneath it, which is also its description."""

    data: str
    caption: str


Block = Text | Table | Figure | Columns | Missing | Cards | Image


@dataclass(frozen=True)
class Section:
    """A titled part of the report; ``anchor`` is its name in links."""

    title: str
    anchor: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Key:
    """One of the figures at the head of the report.

    Attributes:
        label: what was measured.
        value: the figure.
        detail: its interval, or what it is compared with.
        tone: "better", "worse" or "plain".
    """

    label: str
    value: str
    detail: str = ""
    tone: str = "plain"


@dataclass(frozen=True)
class Document:
    """The whole report."""

    title: str
    lead: str
    keys: tuple[Key, ...]
    sections: tuple[Section, ...] = ()
    footer: str = ""
    note: str = ""
