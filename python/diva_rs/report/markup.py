"""HTML and SVG elements as strings that cannot be injected into: whatever is not `Markup` is escaped."""

import html
from typing import Any


class Markup(str):
    """A string that is markup already, made by `element`."""

    __slots__ = ()


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """One element.

    Children are escaped unless they are Markup; attribute names lose a trailing underscore (``class_``) and
    write others as hyphens; an attribute that is None is left out.

    >>> element("p", "1 < 2", class_="note", id=None)
    '<p class="note">1 &lt; 2</p>'
    """
    parts = [name]
    for key, value in attributes.items():
        if value is not None:
            parts.append(f'{key.rstrip("_").replace("_", "-")}="{html.escape(_plain(value))}"')
    head = " ".join(parts)
    if name in _VOID:
        return Markup(f"<{head}>")
    return Markup(f"<{head}>{join(*children)}</{name}>")


def join(*children: Any) -> Markup:
    """Several children, one after the other.

    >>> join("a & b", Markup("<br>"))
    'a &amp; b<br>'
    """
    return Markup(
        "".join(child if isinstance(child, Markup) else html.escape(str(child)) for child in children)
    )


_VOID = frozenset({"br", "hr", "img", "meta", "wbr"})


def _plain(value: Any) -> str:
    """Coordinates with at most two decimals: a chart of thousands of points stays small."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
