"""Records as Markdown, which reads as a table on a terminal too."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Record = dict[str, Any]


def page(records: Sequence[Record], first: Sequence[str] = ()) -> str:
    """The lines ``first``, then all records, the newest first."""
    lines = ["# Benchmark", "", *_INTRODUCTION, "", *first, *[""] * bool(first)]
    for record in reversed(records):
        lines += [section(record), ""]
    return "\n".join(lines)


_INTRODUCTION = (
    "Made by `python -m lab bench` (`make bench`); `bench.jsonl` beside it has the time of every round.",
    "Contestants take turns within a run; ratios compare the medians of one run, never two runs.",
    "A step is forward and backward of N draws for every image of the batch, with random weights, without",
    "the optimizer's update. *official* is the step as the official code computes it; *plain* the best plain",
    "PyTorch; *ours, cached* takes its latents from a cache.",
)


def section(record: Record) -> str:
    """One record, with a heading."""
    where = [f"{record['cpu']}, {record['threads']} of {record['cores']} cores"]
    if record.get("gpu"):
        where.insert(0, record["gpu"])
    where.append(f"{record['memory_gib']} GiB, {' '.join(record['flags'])}")
    where += [f"options: {', '.join(record['options'])}"] if record.get("options") else []
    where.append(f"torch {record['torch']}, load before it {record['load']}")
    lines = [f"## {record['size']}, {record['precision']}: {record['date']}, commit {record['commit']}", ""]
    lines += [f"{record['what']}. {'; '.join(where)}.", ""]
    rows = record["rows"]
    for name, write in _WRITERS.items():
        if name in rows:
            lines += [*write(rows[name], rows), ""]
    return "\n".join(lines[:-1])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table with aligned columns.

    >>> print("\\n".join(table(["what", "ms"], [["step", "7.0"]])))
    | what |  ms |
    |------|----:|
    | step | 7.0 |
    """
    body = [list(row) for row in rows]
    widths = [max(len(row[i]) for row in [list(head), *body]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        return (
            "| "
            + " | ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))])
            + " |"
        )

    rule = "|" + "-" * (widths[0] + 2) + "|" + "".join("-" * (w + 1) + ":|" for w in widths[1:])
    return [line(head), rule, *map(line, body)]


def ratio(times: dict[str, Any], of: str, to: str, clock: str = "wall") -> float:
    """Median time of ``of`` over the median time of ``to``."""
    return float(statistics.median(times[of][clock]) / statistics.median(times[to][clock]))


def _steps(found: Record, rows: Record) -> list[str]:
    times, peak = found["contestants"], rows.get("peak")
    base = "ours" if "ours" in times else next(iter(times))
    body = []
    for name, one in times.items():
        cells = [name, *(f"{1e3 * f(one['wall']):.1f}" for f in (statistics.median, min, max))]
        cells += [f"{ratio(times, name, base):.2f}x", f"{ratio(times, name, base, 'cpu'):.2f}x"]
        if peak:
            cells += [f"{share:.0%}" for share in shares(name, one, peak).values()]
        body.append(cells)
    head = ["contestant", "median ms", "min", "max", f"of {base}", "in CPU time"]
    if peak:
        head += [f"of {name} peak" for name in peak["gemm"]]
    rounds = len(next(iter(times.values()))["wall"])
    lines = [f"A step of {found['batch']} image{'s' * (found['batch'] != 1)}, {rounds} rounds:", ""]
    lines += table(head, body)
    lines += [f"\nCUDA graph of {name}: {told}." for name, told in found.get("graph", {}).items()]
    tried = found.get("plain_tried", [])
    if tried:
        told = [
            f"{one['choice'].replace('_', ' ')} {one['without'] / one['with']:.2f}x "
            f"({'kept' if one['kept'] else 'not kept'}"
            + (f", first step {one['first_step']:.0f} s)" if one["choice"] == "compiled" else ")")
            for one in tried
        ]
        lines += ["", f"Plain PyTorch was tuned first: {'; '.join(told)}."]
    return lines


def shares(name: str, times: Record, peak: Record) -> dict[str, float]:
    """FLOP/s of the needed work, over those of the machine's matrix products."""
    needed = peak["flops"]["cached" if name.endswith("cached") else "needed"]
    rate = needed / statistics.median(times["wall"])
    return {precision: rate / flops for precision, flops in peak["gemm"].items()}


def _peak(found: Record, rows: Record) -> list[str]:
    gemm = ", ".join(f"{flops / 1e9:,.0f} GFLOP/s in {name}" for name, flops in found["gemm"].items())
    flops = {name: f"{value / 1e9:,.1f}" for name, value in found["flops"].items()}
    return [
        f"Fastest matrix product: {gemm}. A step needs {flops['needed']} GFLOP, {flops['cached']} with "
        f"cached latents; the official way spends {flops['official']} (PyTorch's FLOP counter)."
    ]


def _memory(found: Record, rows: Record) -> list[str]:
    gib = found["gib"]
    of = gib.get("official", next(iter(gib.values())))["peak"]
    body = [
        [name, f"{one['before']:.2f}", f"{one['peak']:.2f}", f"{one['peak'] / of:.2f}x"]
        for name, one in gib.items()
    ]
    head = ["memory", "GiB, models loaded", "GiB, peak", "of official"]
    return ["Resident memory, each contestant in a separate process:", "", *table(head, body)]


_GROWTH = {"draws": "N", "batch": "images", "side": "pixels"}


def _growth(found: Record, rows: Record) -> list[str]:
    lines: list[str] = []
    for part, head in _GROWTH.items():
        points = found[part]
        names = list(next(iter(points.values())))
        body = []
        for value, times in points.items():
            cells = [value, *(f"{1e3 * statistics.median(times[name]['wall']):.1f}" for name in names)]
            if part == "draws":
                tower = found["tower"][value]
                cells += [f"{1e3 * statistics.median(tower['wall']):.1f}", str(tower["calls"][0])]
            body.append(cells)
        more = ["tower within ours", "its calls"] if part == "draws" else []
        lines += ["", *table([head, *(f"{name} ms" for name in names), *more], body)]
    return ["How a step grows:", *lines]


def _recap(found: Record, rows: Record) -> list[str]:
    body = []
    for name, one in found["shapes"].items():
        times = one["contestants"]
        for way, seconds in times.items():
            median = 1e3 * statistics.median(seconds["wall"])
            cells = [f"{name}, {one['choose']} of {one['patches']}", way, f"{median:.2f}"]
            body.append(
                [*cells, f"{ratio(times, way, 'ours'):.2f}x", f"{ratio(times, way, 'ours', 'cpu'):.2f}x"]
            )
    head = ["tokens", "way", "median ms", "of ours", "in CPU time"]
    told = f"Recap and assembly, forward and backward, batch {found['batch']}, one draw, float32:"
    return [told, "", *table(head, body)]


def _draws(found: Record, rows: Record) -> list[str]:
    times = found["contestants"]
    body = [
        [name, f"{1e3 * statistics.median(one['wall']):.2f}", f"{ratio(times, name, 'ours'):.2f}x"]
        for name, one in times.items()
    ]
    told = f"Draws for {found['batch']} images of 4x64x64 latents, N = {found['draws']}:"
    return [told, "", *table(["draws", "median ms", "of ours"], body)]


def _ranks(found: Record, rows: Record) -> list[str]:
    one, two = (1e3 * statistics.median(found[name]) for name in ("one", "two"))
    body = [
        ["one process, two threads", f"{one:.1f}", "1.00x"],
        ["two ranks, one thread each", f"{two:.1f}", f"{one / two:.2f}x"],
    ]
    told = (
        f"Two gloo ranks, {found['batch']} images a step, {found['sent'] / 1e6:.1f} MB sent by each, float32:"
    )
    return [told, "", *table(["ranks", "median ms", "speed"], body)]


def _launches(found: Record, rows: Record) -> list[str]:
    body = []
    for part in ("step", "update"):
        for name, of in found.items():
            one, plain = of[part], found["plain"][part]
            most = ", ".join(f"{count} {op}" for op, count in list(one["most"].items())[:4])
            cells = [f"{one['launches']:,}", f"{one['launches'] / max(plain['launches'], 1):.2f}x"]
            cells += [f"{one['casts']:,}", f"{one['bytes'] / 2**20:,.0f}", most]
            body.append([f"{part}, {name}", *cells])
    told = "Operations that launch a kernel on a GPU, counted without one; MiB of those that are no products:"
    return [told, "", *table(["launches", "count", "of plain", "casts", "MiB", "most"], body)]


def _products(found: Record, rows: Record) -> list[str]:
    if not found:
        return ["Products: bf16 on a CPU alone has a choice."]
    times, speeds = found["contestants"], found["measured"]
    body = []
    for name, one in times.items():
        cells = [f"{name}, chosen" if name == found["chosen"] else name, f"{speeds[name] / 1e9:,.0f}"]
        cells += [f"{1e3 * statistics.median(one['wall']):.1f}"]
        cells += [f"{ratio(times, name, found['chosen'], clock):.2f}x" for clock in ("wall", "cpu")]
        body.append(cells)
    head = ["products", "GFLOP/s, measured at the start", "step, median ms", "of chosen", "in CPU time"]
    return ["bf16 matrices multiplied by bf16 instructions, or in float32:", "", *table(head, body)]


def _optimizer(found: Record, rows: Record) -> list[str]:
    times = found["contestants"]
    body = [
        [
            name,
            *(f"{1e3 * statistics.median(one[clock]):.1f}" for clock in ("wall", "cpu")),
            f"{ratio(times, name, 'ours', 'cpu'):.2f}x",
        ]
        for name, one in times.items()
    ]
    told = f"AdamW's update of the vision tower's {found['parameters']:,} parameters, in float32:"
    return [told, "", *table(["update", "median ms", "CPU ms", "of ours"], body)]


def _reader(found: Record, rows: Record) -> list[str]:
    names = list(next(iter(found["sizes"].values())))
    body = []
    for name in names:
        speeds = [found["images"] / min(of[name]["cpu"]) for of in found["sizes"].values()]
        usual = [found["images"] / min(of["torchvision"]["cpu"]) for of in found["sizes"].values()]
        pairs = zip(speeds, usual, strict=True)
        body.append([name, *(f"{speed:.0f}, {speed / other:.2f}x" for speed, other in pairs)])
    told = (
        "Images per second of CPU time, from JPEG files to both inputs (224 and 512), and of torchvision's:"
    )
    lines = [told, "", *table(["reader", *found["sizes"]], body)]
    cache = found["cache"]["contestants"].items()
    rates = {name: found["cache"]["bytes"] / min(of["cpu"]) / 1e9 for name, of in cache}
    parts = ", ".join(f"{name} {rate:.2f} GB/s" for name, rate in rates.items())
    return [
        *lines,
        "",
        f"Latent cache, shuffled batches of 64, against its files in blocks of 4 MiB, by CPU time: {parts}.",
    ]


_WRITERS = {
    "step": _steps,
    "peak": _peak,
    "memory": _memory,
    "growth": _growth,
    "recap": _recap,
    "launches": _launches,
    "products": _products,
    "optimizer": _optimizer,
    "draws": _draws,
    "reader": _reader,
    "ranks": _ranks,
}
