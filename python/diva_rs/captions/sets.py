"""A contrast set: captions of one image that differ in one thing."""

from dataclasses import dataclass

from diva_rs.errors import DataError, a_type, shown


@dataclass(frozen=True)
class ContrastSet:
    """K captions of one image that differ in one thing, K at least two.

    name      what differs, such as "colour"; sets of one name share temperature and reliability
    captions  K distinct texts
    words     K: what differs in each, such as ("red", "blue"); by default the captions themselves

    Raises DataError where a caption is no text or repeats, where there are fewer than two, and where words
    and captions are not equally many.

    >>> ContrastSet("colour", ("a red car", "a blue car"), ("red", "blue")).words
    ('red', 'blue')
    """

    name: str
    captions: tuple[str, ...]
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise DataError(f"a contrast set's name is {shown(self.name)}, a text is needed")
        what = f"contrast set {shown(self.name)}"
        captions = _texts(self.captions, f"{what}: captions")
        words = _texts(self.words or captions, f"{what}: words")
        if len(captions) < 2:
            raise DataError(f"{what} has {len(captions)} captions, two or more are needed")
        if len(words) != len(captions):
            raise DataError(f"{what} has {len(captions)} captions and {len(words)} words")
        seen = {""}
        for number, caption in enumerate(captions):
            if caption.strip() in seen:
                fault = "repeats an earlier one" if caption.strip() else "is empty"
                raise DataError(f"{what}: captions[{number}], {shown(caption)}, {fault}")
            seen.add(caption.strip())
        object.__setattr__(self, "captions", captions)
        object.__setattr__(self, "words", words)

    def __len__(self) -> int:
        return len(self.captions)


def _texts(values: object, what: str) -> tuple[str, ...]:
    """A list or tuple of texts as a tuple."""
    if not isinstance(values, (list, tuple)):
        raise DataError(f"{what} is {a_type(values)}, a list of texts is needed")
    for number, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(f"{what}[{number}] is {shown(value)}, a text is needed")
    return tuple(values)
