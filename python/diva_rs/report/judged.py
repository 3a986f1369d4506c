"""The page and the table of judgements: what a diffusion model says that images show."""

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diva_rs._base.files import make_folder, replacing, sync, write_text
from diva_rs._base.optional import require
from diva_rs.captions.judgements import Judgements, Verdict
from diva_rs.report.charts import Chart, histogram
from diva_rs.report.write import jpeg, rendered

_SHEET = 12  # images of each kind
_SIDE = 224  # pixels
_BARS = 12  # words of a set that have a bar: the likeliest

Pictures = Callable[[Sequence[int]], Mapping[int, Tensor]]
"""Sample keys -> images (3, H, W) in [0, 1]; those that are missing are not shown."""


def write_judged(
    judgements: Judgements,
    folder: str | os.PathLike[str],
    names: Mapping[int, str] | None = None,
    pictures: Pictures | None = None,
) -> Path:
    """Write judged.html, one file that loads nothing from anywhere, and judged.csv; returns the page's path.

    The page shows how reliable each attribute is, how certain the judgements are, and the images judged with
    the most and the least certainty. The table has a row for each image, set and word.

    Args:
        names: sample key -> name of the image; by default the key.
        pictures: where the page finds its images, see `Pictures`.

    >>> import tempfile
    >>> from diva_rs.captions import ContrastSet, Evidence, Judgements
    >>> colour = ContrastSet("colour", ("a red car", "a blue car"), ("red", "blue"))
    >>> judgements = Judgements({7: [Evidence(colour, [[0.1, 0.2], [0.5, 0.4]])]})
    >>> page = write_judged(judgements, tempfile.mkdtemp())
    >>> page.with_name("judged.csv").read_text().splitlines()[1]
    '7,colour,red,0.804166,0.15,2,0'
    """
    place, named = make_folder(folder), names or {}
    _write_table(place / "judged.csv", judgements, named)
    certain = sorted(filter(judgements.__getitem__, judgements), key=lambda key: -certainty(judgements[key]))
    sheets = {"most": certain[:_SHEET], "least": certain[_SHEET:][: -_SHEET - 1 : -1]}
    found = {} if pictures is None else pictures([key for keys in sheets.values() for key in keys])
    cards = {
        which: [
            Card(
                named.get(key, str(key)),
                _picture(found.get(key)),
                judgements[key],
                judgements.given.get(key, {}),
            )
            for key in keys
        ]
        for which, keys in sheets.items()
        if keys
    }
    page = rendered("judged.html", name=place.resolve().name, judged=Summary(judgements), cards=cards)
    write_text(place / "judged.html", page)
    return place / "judged.html"


def certainty(verdicts: Sequence[Verdict]) -> float:
    """The mean of the largest posteriors of an image's sets: of those with a weight, or else of all."""
    counted = [verdict for verdict in verdicts if verdict.weight > 0] or verdicts
    return float(np.mean([verdict.posterior.max() for verdict in counted])) if counted else 0.0


@dataclass(frozen=True)
class Card:
    """An image of the page."""

    name: str
    picture: str | None  # a data URI
    verdicts: Sequence[Verdict]
    given: Mapping[str, str]  # name -> word of what was not judged

    @staticmethod
    def bars(verdict: Verdict) -> list[tuple[str, float]]:
        """The likeliest words and their posteriors in per cent, in the order of the set."""
        likely = np.sort(np.argsort(-verdict.posterior, kind="stable")[:_BARS])
        return [(verdict.set.words[n] or "(unsaid)", 100 * float(verdict.posterior[n])) for n in likely]


class Summary:
    """The figures of the page."""

    def __init__(self, judgements: Judgements) -> None:
        self.judgements, self.facts = judgements, judgements.facts
        self.all = [verdict for key in judgements for verdict in judgements[key]]

    @property
    def left_out(self) -> str:
        """How many images were left out."""
        accounting = self.facts.accounting
        return "not recorded" if accounting is None else f"{accounting.total - accounting.used:,}"

    @property
    def most_draws(self) -> int:
        """The draws of the set that has the most."""
        return max((verdict.draws for verdict in self.all), default=0)

    def shares(self, name: str | None = None) -> tuple[str, str]:
        """Per cent of the sets, or of those of a name, that carry a weight, and their mean draws."""
        sets = [verdict for verdict in self.all if name in (None, verdict.set.name)]
        weighted = sum(verdict.weight > 0 for verdict in sets) / max(1, len(sets))
        draws = sum(verdict.draws for verdict in sets) / max(1, len(sets))
        return f"{100 * weighted:.1f}", f"{draws:.2f}"

    def rows(self) -> list[tuple[str, ...]]:
        """Of each attribute: chance, agreement, accuracy, temperature, weighted sets, draws."""
        rows = []
        for name, found in self.facts.reliability.items():
            low, high = found.interval
            shares = [f"{100 * share:.1f}" for share in (found.chance, found.agreement)]
            accuracy = f"{100 * found.accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})"
            rows.append((name, *shares, accuracy, f"{self.facts.temperatures[name]:.3g}", *self.shares(name)))
        return rows

    def posteriors(self) -> Chart:
        """How many sets have which largest posterior."""
        largest = [float(verdict.posterior.max()) for verdict in self.all]
        sure = sum(value > 0.9 for value in largest)
        alt = f"Histogram of the largest posteriors of {len(largest):,} sets: {sure:,} are above 0.9."
        return histogram(largest, "largest posterior", "sets", alt, "The posterior of the likeliest word.")

    def source(self) -> Iterator[tuple[str, Any]]:
        """What made the judgements."""
        yield "Images", self.facts.accounting and str(self.facts.accounting)
        for name, value in self.facts.made_by.items():
            parts = value.items() if isinstance(value, Mapping) else [("", value)]
            yield from ((f"{name} {part}".strip().capitalize(), _plain(each)) for part, each in parts)


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _write_table(path: Path, judgements: Judgements, names: Mapping[int, str]) -> None:
    with replacing(path) as beside:
        with open(beside, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.writer(file)
            table.writerow(("image", "name", "word", "probability", "loss", "draws", "weight"))
            for key in judgements:
                for verdict in judgements[key]:
                    for word, share, loss in zip(
                        verdict.set.words, verdict.posterior, verdict.losses, strict=True
                    ):
                        row = (names.get(key, key), verdict.set.name, word, f"{share:.6g}", f"{loss:.9g}")
                        table.writerow((*row, verdict.draws, f"{verdict.weight:.6g}"))
        sync(beside)


def _picture(pixels: Tensor | None) -> str | None:
    """An image (3, H, W) in [0, 1] as a data URI."""
    if pixels is None:
        return None
    image: Any = require("PIL.Image", extra="data")
    times = max(1, _SIDE // max(pixels.shape[1:]))  # a browser would blur small ones
    large = (pixels * 255).round().byte().repeat_interleave(times, 1).repeat_interleave(times, 2)
    return jpeg(image.fromarray(large.permute(1, 2, 0).cpu().numpy()), _SIDE)
