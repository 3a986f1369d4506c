"""An HTML page as a tree, by the standard library's parser, which mends nothing."""

from html.parser import HTMLParser

_VOID = {"br", "hr", "img", "meta", "wbr"}


class Element:
    """One element: its name, attributes, and children (elements and strings)."""

    def __init__(self, name: str, attributes: dict[str, str]) -> None:
        self.name, self.attributes = name, attributes
        self.children: list[Element | str] = []

    def all(self, *names: str) -> list["Element"]:
        """The elements of these names beneath, in document order; without names, all."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                found += [child] if not names or child.name in names else []
                found += child.all(*names)
        return found

    def one(self, name: str, **attributes: str) -> "Element":
        """The only element of this name and these attributes."""
        fits = [
            each
            for each in self.all(name)
            if all(each.attributes.get(key.rstrip("_")) == value for key, value in attributes.items())
        ]
        assert len(fits) == 1, (name, attributes, len(fits))
        return fits[0]

    @property
    def text(self) -> str:
        """All text beneath."""
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in _VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().name == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parsed(text: str) -> Element:
    """The root of the page; AssertionError where a tag is not closed."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert len(reader.open) == 1, f"<{reader.open[-1].name}> is not closed"
    return reader.open[0]
