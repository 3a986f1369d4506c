"""The sections about MMVP-VLM: the nine visual patterns, and the pairs that flipped."""

from diva_rs.evaluation.mmvp_result import MmvpPair, MmvpVlmResult
from diva_rs.evaluation.statistics import compare_outcomes
from diva_rs.report.blocks import (
    Block,
    Card,
    Cards,
    Columns,
    Figure,
    Missing,
    Picture,
    Section,
    Table,
    Text,
)
from diva_rs.report.change import (
    Change,
    changes_table,
    compared,
    confidence,
    differences_figure,
    multiplicity,
    scores_figure,
)
from diva_rs.report.comparisons import radar
from diva_rs.report.evidence import Side
from diva_rs.report.thumbnails import thumbnail
from diva_rs.report.words import between, count, percent

_HOW = """from diva_rs.evaluation import mmvp_vlm, report

before = mmvp_vlm(clip, preprocess, tokenizer, "MMVP_VLM")    # before post_train
after = mmvp_vlm(clip, preprocess, tokenizer, "MMVP_VLM")     # after it
report.write("runs/a", before=before, after=after)"""
_MOST = 24  # pairs shown each way, so that the file stays small enough to send


def mmvp_change(before: Side, after: Side) -> Change | None:
    """The average before and after; None where MMVP-VLM was measured on neither side."""
    old, new = before.mmvp, after.mmvp
    if old is not None and new is not None:
        return compared("MMVP-VLM average", old.compare(new), old.interval, new.interval)
    if old is not None:
        return Change(
            "MMVP-VLM average", old.average, None, before_interval=old.interval, confidence=old.confidence
        )
    if new is not None:
        return Change(
            "MMVP-VLM average", None, new.average, after_interval=new.interval, confidence=new.confidence
        )
    return None


def patterns_section(before: Side, after: Side) -> Section:
    """The nine patterns, in a table and in charts."""
    old, new = before.mmvp, after.mmvp
    title, anchor = "MMVP-VLM: nine visual patterns", "mmvp"
    if old is None or new is None:
        blocks = (
            [] if (one := old or new) is None else [_one_table(one, "before" if new is None else "after")]
        )
        side = "before and after" if old is new else "before" if old is None else "after"
        missing = Missing(f"MMVP-VLM was not measured {side} post-training, so nothing is compared.", _HOW)
        return Section(title, anchor, (*blocks, missing))
    whole = compared("Average", old.compare(new), old.interval, new.interval)
    changes = [_pattern_change(old, new, name) for name in old.patterns]
    gained, lost = map(len, _flipped(old, new))
    first: list[Block] = [
        Text(
            f"Average over the {len(changes)} patterns: {percent(old.average)} before, "
            f"{percent(new.average)} after, {whole.sentence}. {count(gained, 'pair')} became right, {lost} "
            f"became wrong, {len(old.pairs) - gained - lost} stayed as they were."
        )
    ]
    if old.embedding != new.embedding:
        first.append(
            Text(
                f"Caution: before was scored with the image embedding {old.embedding!r}, after with "
                f"{new.embedding!r}. The difference is not one of post-training alone."
            )
        )
    return Section(
        title,
        anchor,
        (
            *first,
            changes_table("MMVP-VLM", "Pattern", [*changes, whole]),
            Columns((scores_figure([*changes, whole], "MMVP-VLM accuracy"), _radar(changes))),
            Columns((differences_figure([*changes, whole], "MMVP-VLM accuracy"), *_notes(old, len(changes)))),
        ),
    )


def flips_section(before: Side, after: Side) -> Section:
    """The pairs that became right, and those that became wrong, with their images."""
    old, new = before.mmvp, after.mmvp
    title, anchor = "Pairs that flipped", "flips"
    if old is None or new is None:
        text = "Which pairs flipped is known once MMVP-VLM is measured before and after, as said above."
        return Section(title, anchor, (Text(text),))
    blocks: list[Block] = []
    for flipped, words in zip(_flipped(old, new), ("became right", "became wrong"), strict=True):
        if not flipped:
            blocks.append(Text(f"No pair {words}."))
            continue
        shown = "" if len(flipped) <= _MOST else f" (the first {_MOST} are shown)"
        cards = tuple(_card(*pair, new.root) for pair in flipped[:_MOST])
        blocks.append(Cards(f"{count(len(flipped), 'pair')} {words}{shown}", cards))
    blocks.append(
        Text(
            "A pair counts as right when both statements pick their own image. In brackets: the softmax "
            "share, over the pair's two images, of the image that the statement should pick.",
            note=True,
        )
    )
    return Section(title, anchor, tuple(blocks))


def _flipped(
    old: MmvpVlmResult, new: MmvpVlmResult
) -> tuple[list[tuple[MmvpPair, MmvpPair]], list[tuple[MmvpPair, MmvpPair]]]:
    """(before, after) of the pairs that became right, and of those that became wrong."""
    both = [pair for pair in zip(old.pairs, new.pairs, strict=True) if pair[0].correct != pair[1].correct]
    return [pair for pair in both if pair[1].correct], [pair for pair in both if pair[0].correct]


def _pattern_change(old: MmvpVlmResult, new: MmvpVlmResult, name: str) -> Change:
    before, after = ([pair.correct for pair in result.pairs if pair.pattern == name] for result in (old, new))
    comparison = compare_outcomes(before, after, name, old.confidence)
    return compared(name, comparison, old.intervals[name], new.intervals[name])


def _one_table(result: MmvpVlmResult, side: str) -> Table:
    rows = [
        (name, f"{right} of {total}", f"{100 * right / total:.1f}", between(*result.intervals[name]))
        for name, (right, total) in result.counts.items()
    ]
    whole = f"{result.right} of {len(result.pairs)}"
    rows.append(("Average", whole, f"{result.average:.1f}", between(*result.interval)))
    header = ("Pattern", "Right", "%", f"{confidence(result.confidence)} interval")
    return Table(f"MMVP-VLM {side} post-training", header, tuple(rows), frozenset({1, 2, 3}))


def _radar(changes: list[Change]) -> Figure:
    before, after = ([float(value or 0) for value in side] for side in _columns(changes))
    listed = "; ".join(
        f"{c.label} {b:.1f} and {a:.1f}" for c, b, a in zip(changes, before, after, strict=True)
    )
    alt = f"Radar plot of the accuracy of each pattern before and after, in per cent: {listed}."
    svg = radar([change.label for change in changes], before, after, alt)
    caption = (
        "Accuracy of each pattern in per cent. The area depends on the order of the patterns, so it measures "
        "nothing: read the spokes, or the charts beside."
    )
    return Figure(svg, alt, caption, (("area before", "before"), ("area after", "after")))


def _columns(changes: list[Change]) -> tuple[list[float | None], list[float | None]]:
    return [change.before for change in changes], [change.after for change in changes]


def _notes(result: MmvpVlmResult, patterns: int) -> list[Text]:
    pairs = len(result.pairs)
    return [
        Text(
            f"How to read this: there are {pairs} pairs, so one pair is {100 / pairs:.2f} points of the "
            "average, and two coin flips per pair would give 25 %. Intervals of scores are Wilson's; those "
            "of differences are the paired bootstrap's over the same pairs. A difference is called shown "
            "only if its interval excludes zero and the exact McNemar test agrees (p < "
            f"{1 - result.confidence:.2g}).",
            note=True,
        ),
        multiplicity(patterns, "patterns", result.confidence),
        Text(f"Image embedding scored: {result.embedding}.", note=True),
    ]


def _card(old: MmvpPair, new: MmvpPair, root: str) -> Card:
    pictures = tuple(_picture(new, n, root) for n in (0, 1))
    lines = tuple(
        f"Statement {n + 1}: {_decision(old, n)} before, {_decision(new, n)} after." for n in (0, 1)
    )
    heading = f"{new.pattern}, questions {new.ids[0]} and {new.ids[1]}"
    return Card(heading, (pictures[0], pictures[1]), lines)


def _picture(pair: MmvpPair, n: int, root: str) -> Picture:
    path = pair.images[n]
    name = "/".join(path.replace("\\", "/").split("/")[-2:])  # with its folder, which is the pattern
    return Picture(pair.statements[n], name, thumbnail(path, root))


def _decision(pair: MmvpPair, n: int) -> str:
    share = pair.scores[n] if pair.expected[n] == 1 else 1 - pair.scores[n]
    return f"{'right' if pair.picked[n] == pair.expected[n] else 'wrong'} ({100 * share:.1f} %)"
