"""Scores of detail and their comparison as lines of text."""

from collections.abc import Iterator
from typing import Any

NOT_MEASURED = "retention not measured"
NEEDED = "needed: the smallest difference, in items, that is not within chance at so many flips"


def by_rule(result: Any) -> list[Any]:
    """A result by each of its rules; alone where it has one."""
    return [result[rule] for rule in result.rules] if hasattr(result, "rules") else [result]


def retention_line(result: Any, kept: Any) -> list[str]:
    """The line of a retention score beside a score of detail; none beside another score."""
    if result.kind != "detail":
        return []
    if kept is None:
        return [f"{NOT_MEASURED} (--retention FOLDER)"]
    return [f"retention: {kept.line}", *left_out(kept)]


def left_out(result: Any) -> list[str]:
    """The line about what a folder holds that was not scored, where there is such."""
    accounting = getattr(result, "accounting", None)
    return [f"{result.root}: {accounting}"] if accounting and accounting.left_out else []


def comparison(before: Any, after: Any) -> Iterator[str]:
    """The change of a score by every rule, and by category where there are several."""
    for old, new in zip(by_rule(before), by_rule(after), strict=True):
        changes = old.compare_categories(new)
        changes = {**(changes if len(changes) > 1 else {}), "all": old.compare(new)}
        width = max(map(len, [old.title, *changes]))
        yield ""
        yield f"{old.title:<{width}}  {'before':>12}  {'after':>12}  gained  lost  McNemar p  needed"
        for name, change in changes.items():
            sides = (f"{right} of {change.items}" for right in change.right)
            flips = f"{len(change.gained):>6}  {len(change.lost):>4}"
            yield (
                f"{name:<{width}}  {'  '.join(f'{side:>12}' for side in sides)}  {flips}  "
                f"{change.p_value:>9.3g}  {change.resolvable:>6}"
            )
