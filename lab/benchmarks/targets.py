"""What was aimed at, beside what was measured: met or not."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

Record = dict[str, Any]


class Target(NamedTuple):
    """One line: ``found`` is None where nothing of the kind was measured."""

    what: str
    sign: str  # ">=" or "<="
    bound: float
    found: float | None
    unit: str = "x"

    @property
    def met(self) -> str:
        """ "met", "not met" or "not measured"."""
        if self.found is None:
            return "not measured"
        good = self.found >= self.bound if self.sign == ">=" else self.found <= self.bound
        return "met" if good else "not met"

    def cells(self) -> list[str]:
        """For a table."""
        found = "" if self.found is None else self._told(self.found)
        return [self.what, f"{'≥' if self.sign == '>=' else '≤'} {self._told(self.bound)}", found, self.met]

    def _told(self, value: float) -> str:
        return f"{value:.0%}" if self.unit == "%" else f"{value:.2f}{self.unit}"


def targets(records: Sequence[Record]) -> list[Target]:
    """All targets against the newest records that measured them.

    >>> {target.met for target in targets([])}
    {'not measured'}
    """
    from lab.benchmarks.table import ratio, shares

    def row(size: str, precision: str | None, name: str) -> Record | None:
        for record in reversed(records):
            fits = record["size"] == size and precision in (None, record["precision"])
            if fits and name in record["rows"]:
                return record["rows"][name]  # type: ignore[no-any-return]
        return None

    def step(size: str, precision: str, of: str, to: str) -> float | None:
        found = row(size, precision, "step")
        return None if found is None else ratio(found["contestants"], of, to)

    def lines() -> Iterator[Target]:
        where = "published, bf16: step against "
        yield Target(where + "official", ">=", 1.5, step("published", "bf16", "official", "ours"))
        cached = step("published", "bf16", "official", "ours, cached")
        yield Target(where + "official, cached latents", ">=", 2.0, cached)
        yield Target(where + "best plain PyTorch", ">=", 1.15, step("published", "bf16", "plain", "ours"))
        both = row("published", "bf16", "step"), row("published", "bf16", "peak")
        share = None
        if both[0] is not None and both[1] is not None:
            share = shares("ours", both[0]["contestants"]["ours"], both[1])["bf16"]
        yield Target("published, bf16: share of the GEMM peak", ">=", 0.65, share, "%")
        memory = row("published", "bf16", "memory")
        used = None if memory is None else memory["gib"]["ours"]["peak"] / memory["gib"]["official"]["peak"]
        yield Target("published, bf16: peak memory against official", "<=", 0.6, used)
        for precision in ("fp32", "bf16"):
            where = f"microworld, {precision}: step against "
            yield Target(where + "official", ">=", 3.0, step("microworld", precision, "official", "ours"))
            plain = step("microworld", precision, "plain", "ours")
            yield Target(where + "best plain PyTorch", ">=", 1.5, plain)
        recap = row("microworld", None, "recap")
        for name in ("ViT-L-14 at 224", "ViT-H-14 at 378"):
            times = None if recap is None else recap["shapes"][name]["contestants"]
            found = None if times is None else ratio(times, "indexed last", "ours")
            yield Target(f"recap and assembly, {name}, against indexing", ">=", 5.0, found)
        drawn = row("microworld", None, "draws")
        found = None if drawn is None else ratio(drawn["contestants"], "torch", "ours")
        yield Target("draws against torch.randn and randint", ">=", 1.0, found)
        grown = row("microworld", None, "growth")
        if grown is not None:
            tower = {n: statistics.median(times["wall"]) for n, times in grown["tower"].items()}
            found = tower["8"] / tower["1"]
        yield Target("vision tower's time, N = 8 against N = 1", "<=", 1.1, None if grown is None else found)
        ranks = row("microworld", None, "ranks")
        speed = None
        if ranks is not None:
            speed = statistics.median(ranks["one"]) / statistics.median(ranks["two"])
        yield Target("two ranks against one process of two threads", ">=", 0.8, speed)

    return list(lines())
