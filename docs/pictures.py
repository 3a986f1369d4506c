"""Draw the documentation's pictures from committed results: ``python docs/pictures.py``, light and dark."""

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from diva_rs.microworld import PATTERNS, World, pairs, render

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benches" / "results"
# Okabe and Ito (2008): distinct for colour-blind readers, and on white and black alike.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#888888"
THEMES = {"light": ("#1f2328", BLUE), "dark": ("#e6e6e6", "#56B4E9")}  # ink, and blue

Rows = dict[tuple[str, str], dict[str, float]]


def read(study: str) -> Rows:
    """(arm, score) -> before, after, difference and its interval."""
    numbers = ("before", "after", "difference", "low", "high")
    with open(RESULTS / "microworld" / f"{study}.csv", encoding="utf-8", newline="") as file:
        changes = (row for row in csv.DictReader(file) if row["difference"])  # costs have none
        return {(r["arm"], r["score"]): {name: float(r[name]) for name in numbers} for r in changes}


def plain(axes: Any) -> None:
    """Without the frame's upper and right sides."""
    axes.spines[["top", "right"]].set_visible(False)


def whiskers(axes: Any, xs: Any, rows: Any, color: str, label: str) -> None:
    """Points with 95 % intervals, joined by a line."""
    middle = [row["difference"] for row in rows]
    ends = [
        [row["difference"] - row["low"] for row in rows],
        [row["high"] - row["difference"] for row in rows],
    ]
    axes.errorbar(
        xs, middle, ends, color=color, marker="o", markersize=4, capsize=3, linewidth=1.4, label=label
    )


def cuts(ink: str, blue: str) -> Figure:
    """The step as three functions and two cuts."""
    figure = Figure(figsize=(7.0, 2.3))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 86), ylim=(0, 25))
    axes.axis("off")
    for left, name, what, color in (
        (2, "student", "vision tower\ntrains, runs once\nfor all draws", blue),
        (32, "bridge", "choice of tokens,\nprojector\ntrains", GREEN),
        (62, "teacher", "diffusion model\nfrozen, runs once\nfor each draw", ORANGE),
    ):
        axes.add_patch(
            FancyBboxPatch((left, 8), 20, 11, "round,pad=0,rounding_size=1.2", fill=False, ec=color, lw=2)
        )
        axes.text(left + 10, 21.5, name, ha="center", color=color, weight="bold", fontsize=11)
        axes.text(left + 10, 13.5, what, ha="center", va="center", color=ink, fontsize=10)
    arrow = {"arrowstyle": "-|>", "color": ink, "lw": 1.2}
    for left, above, cut in ((22, "tokens", "cut 1"), (52, "condition", "cut 2")):
        axes.annotate("", (left + 10, 15.5), (left, 15.5), arrowprops=arrow)
        axes.annotate("", (left, 11.5), (left + 10, 11.5), arrowprops={**arrow, "linestyle": "--"})
        axes.text(left + 5, 16.6, above, ha="center", color=ink, fontsize=9)
        axes.text(left + 5, 9, "gradient", ha="center", color=ink, fontsize=9)
        axes.plot([left + 5] * 2, [6, 20.5], color=GREY, linestyle=":", linewidth=1.5)
        axes.text(left + 5, 21.5, cut, ha="center", color=ink, fontsize=10)
    for x, text in ((12, "images"), (72, "latents, timesteps, noise")):
        axes.annotate("", (x, 8), (x, 4.2), arrowprops=arrow)
        axes.text(x, 2, text, ha="center", color=ink, fontsize=9)
    return figure


def pictured(ink: str, blue: str) -> Figure:
    """A pair of scenes for each pattern, and the pairs right before and after caption feedback."""
    rows, made = read("captions"), pairs(World("test", 9), 1)
    figure = Figure(figsize=(6.6, 5.2))
    axes = figure.add_axes((0.5, 0.1, 0.47, 0.83))
    for place, (pattern, pair) in enumerate(zip(PATTERNS, made, strict=True)):
        row, y = rows["captions", f"mini_mmvp/{pair.attribute}"], 8 - place
        axes.plot([row["before"], row["after"]], [y, y], color=GREY, linewidth=1.5, zorder=1)
        axes.scatter(
            row["before"], y, s=34, facecolor="none", edgecolor=ink, label="before" if y == 8 else None
        )
        axes.scatter(row["after"], y, s=40, color=blue, label="after" if y == 8 else None)
        for side, scene in enumerate(pair.scenes):
            small = figure.add_axes((0.34 + 0.075 * side, 0.105 + 0.083 * 1.105 * y, 0.07, 0.083))
            small.imshow(render(scene), interpolation="nearest")
            small.axis("off")
        figure.text(
            0.325, 0.145 + 0.083 * 1.105 * y, pattern, ha="right", va="center", color=ink, fontsize=8.5
        )
    axes.axvline(25, color=GREY, linestyle=":", linewidth=1)
    axes.text(26, 7.55, "guessing", color=ink, fontsize=7.5)
    axes.set(xlim=(0, 100), ylim=(-0.5, 8.6), yticks=[], xlabel="pairs right, %, mean of ten seeds")
    axes.legend(frameon=False, loc="center right", fontsize=9)
    plain(axes)
    return figure


def arms(ink: str, blue: str) -> Figure:
    """Every arm of the three studies: what it gains in pairs and loses in zero-shot accuracy."""
    shown = {
        "captions, true: the ceiling": ("captions", "true captions (ceiling)", GREY),
        "captions": ("captions", "caption feedback", blue),
        "captions, CLIP's own guesses": ("captions", "control: CLIP's own guesses", GREY),
        "captions, another image's": ("captions", "control: another image's judgements", GREY),
        "projector first": ("tokens", "feedback, projector first, from zero", GREEN),
        "projector first, another image's latents": ("tokens", "control: another image's latents", GREY),
        "best: anchored, class token alone": ("study", "feedback through a condition", GREEN),
        "best, untrained denoiser": ("study", "control: untrained denoiser", GREY),
        "best, another image's latents": ("study", "control: another image's latents", GREY),
    }
    figure = Figure(figsize=(6.8, 3.6), layout="constrained")
    sides = figure.subplots(1, 2, sharey=True, width_ratios=[2, 1])
    for axes, score, label in zip(sides, ("mini_mmvp", "zero_shot"), ("pairs", "zero-shot"), strict=True):
        for place, (arm, (study, _, color)) in enumerate(shown.items()):
            row = read(study)[arm, score]
            axes.plot([row["low"], row["high"]], [place] * 2, color=color, linewidth=2)
            axes.plot(row["difference"], place, "o", color=color, markersize=6)
        axes.axvline(0, color=ink, linewidth=0.8)
        axes.set_xlabel(f"{label}:\nchange in points")
        plain(axes)
    sides[0].set_yticks(range(len(shown)), [name for _, name, _ in shown.values()])
    sides[0].invert_yaxis()
    return figure


def density(ink: str, blue: str) -> Figure:
    """The gain over the density of the condition and over the share of the images."""
    rows, whole = read("ablations"), "class token alone, all data, UNet"
    densities = {0.0: whole, **{d: f"density {d}" for d in (0.15, 0.3, 0.5)}, 1.0: "density 1: all tokens"}
    shares = {**{share: f"{share} % of the data" for share in (25, 50, 75)}, 100: whole}
    figure = Figure(figsize=(6.8, 3.0), layout="constrained")
    sides = figure.subplots(1, 2, sharey=True)
    labels = ("density of the condition (0: the class token alone)", "images used, %")
    for axes, found, label in zip(sides, (densities, shares), labels, strict=True):
        for score, color, name in (("mini_mmvp", blue, "pairs"), ("probe_pooled", ORANGE, "linear probes")):
            whiskers(axes, list(found), [rows[arm, score] for arm in found.values()], color, name)
        axes.axhline(0, color=ink, linewidth=0.8)
        axes.set(xlabel=label)
        plain(axes)
    sides[0].set_ylabel("gain, points")
    sides[0].legend(frameon=False)
    return figure


def growth(ink: str, blue: str) -> Figure:
    """The time of a step over the number of draws."""
    with open(RESULTS / "bench.jsonl", encoding="utf-8") as file:
        record = [found for found in map(json.loads, file) if "growth" in found["rows"]][-1]
    names = {"official": ("the official way", GREY), "plain": ("plain PyTorch, tower once", ORANGE)}
    names["ours"] = ("diva-rs", blue)
    figure = Figure(figsize=(5.4, 3.0), layout="constrained")
    axes = figure.subplots()
    found = record["rows"]["growth"]["draws"]
    for key, (name, color) in names.items():
        times = [sorted(one[key]["wall"]) for one in found.values()]
        axes.plot([*map(int, found)], [statistics.median(t) for t in times], "o-", color=color, label=name)
        axes.fill_between(
            [*map(int, found)], [t[0] for t in times], [t[-1] for t in times], color=color, alpha=0.2
        )
    axes.set(
        xlabel="draws per image, N", ylabel="seconds for a step", ylim=(0, None), xticks=[*map(int, found)]
    )
    axes.set_title(
        f"{record['size']}, {record['precision']}, {record['threads']} threads", fontsize=9, color=ink
    )
    axes.legend(frameon=False)
    plain(axes)
    return figure


PICTURES = {"cuts": cuts, "pairs": pictured, "arms": arms, "density": density, "growth": growth}


def main() -> None:
    """Write ``docs/pictures/<name>-<theme>.svg``, with a transparent background."""
    for theme, (ink, blue) in THEMES.items():
        colors = dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink
        )
        with matplotlib.rc_context({**colors, "svg.hashsalt": "diva-rs", "font.size": 9}):
            for name, draw in PICTURES.items():
                file = DOCS / "pictures" / f"{name}-{theme}.svg"
                draw(ink, blue).savefig(file, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
