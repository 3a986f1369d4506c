"""Scores of fine detail: every decision of a benchmark, by rule and category."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from diva_rs.errors import ConfigError, shown
from diva_rs.evaluation.bank import Bank
from diva_rs.evaluation.counted import Counted, counted_table
from diva_rs.evaluation.items import Benchmark, Similarity, Task
from diva_rs.evaluation.result import Result


@dataclass(frozen=True)
class Decision(Result):
    """One item, and whether it is right."""

    id: str
    category: str
    scores: tuple[float, ...]  # its similarities, row by row; none for a group of items
    right: bool


@dataclass(frozen=True)
class DetailResult(Counted):
    """One model on one benchmark of fine detail.

    A benchmark may have several scores of the same items, each with its rule: pairs have "group", "text" and
    "image". ``rule`` names the one that counts here; ``result["text"]`` is the same result by another rule.
    """

    name: str  # of the benchmark
    rule: str
    rules: dict[str, tuple[Decision, ...]] = field(repr=False)
    units: dict[str, str] = field(repr=False)  # what a rule counts
    model: str = ""  # its class
    embedding: str = "pooled"
    root: str = ""
    missing: tuple[str, ...] = ()  # published parts that are not in the folder
    is_test_set: bool = True
    confidence: float = 0.95  # of the intervals
    per_second: dict[str, float] = field(default_factory=dict, compare=False)  # images and texts embedded
    asked_of: str = ""  # the data set's `digest`: results of others are not compared
    kind = "detail"
    computed = ("kind", "scores")

    def __getitem__(self, rule: str) -> "DetailResult":
        """The result by another rule. Raises ConfigError if there is none of that name."""
        if rule not in self.rules:
            raise ConfigError(f"{self.name} has no score {shown(rule)}: it has {', '.join(self.rules)}")
        return replace(self, rule=rule)

    @property
    def title(self) -> str:
        return f"{self.name} ({self.rule})"

    @property
    def unit(self) -> str:
        return self.units[self.rule]

    @property
    def answers(self) -> tuple[tuple[Any, str, bool], ...]:
        what = (self.rule, self.asked_of)
        return tuple(((*what, one.id), one.category, one.right) for one in self.rules[self.rule])

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """The scores of each rule."""
        facts = ("right", "asked", "interval", "per_cent", "average", "counts")
        return {rule: {name: getattr(self[rule], name) for name in facts} for rule in self.rules}

    def __str__(self) -> str:
        lines = []
        for rule in self.rules:
            result = self[rule]
            rows, whole = result.counts.items(), (result.right, result.asked)
            listed = [*rows, ("all", whole)] if len(rows) > 1 else [(rule, whole)]
            lines.append(counted_table(listed, result.unit, self.confidence, result.title))
        lines += [f"missing: {name}" for name in self.missing]
        if self.per_second:
            rates = ", ".join(f"{rate:.3g} {kind}" for kind, rate in self.per_second.items())
            lines.append(f"embedded per second: {rates}")
        return "\n".join(lines)

    def records(self) -> list[dict[str, Any]]:
        """One row per item and rule."""
        return [
            {
                "benchmark": self.name,
                "rule": rule,
                "id": one.id,
                "category": one.category,
                "scores": " ".join(f"{score:.9g}" for score in one.scores),
                "right": int(one.right),
            }
            for rule, decisions in self.rules.items()
            for one in decisions
        ]


def score_benchmark(benchmark: Benchmark, bank: Bank, confidence: float = 0.95) -> DetailResult:
    """Score a benchmark with the embeddings of a `Bank`, which computes those that it does not hold."""
    bank.add(benchmark.parts(), benchmark.batch)
    _warn_of_ties(benchmark, bank)
    return DetailResult(
        name=benchmark.name,
        rule=benchmark.tasks[0].rule,
        rules={task.rule: tuple(_decisions(task, bank, benchmark.similarity)) for task in benchmark.tasks},
        units={task.rule: task.unit for task in benchmark.tasks},
        model=type(bank.embedder.model).__name__,
        embedding=bank.embedder.embedding.name,
        root=benchmark.root,
        missing=benchmark.missing,
        is_test_set=benchmark.is_test_set,
        confidence=confidence,
        per_second=bank.per_second(),
        asked_of=benchmark.digest,
    )


def _warn_of_ties(benchmark: Benchmark, bank: Bank) -> None:
    """Warn of items whose options are one to the model."""
    alike = [
        item.where
        for item in benchmark.tasks[0].items
        for side in (item.rows, item.columns)
        if len({id(bank[part]) for part in side}) < len(side)
    ]
    if alike:
        warnings.warn(
            f"{benchmark.name}: {len(alike)} items have texts with the same tokens, first {alike[0]}: cut "
            "off at the model's context, or words that the tokenizer lacks. They count as wrong",
            UserWarning,
            stacklevel=4,
        )


def _decisions(task: Task, bank: Bank, similarity: Similarity) -> Iterator[Decision]:
    single = {}
    for item in task.items:
        matrix = similarity(bank.rows(item.rows), bank.rows(item.columns))
        scores = tuple(matrix.flatten().tolist())
        single[item.id] = Decision(item.id, item.category, scores, task.right(matrix))
    if task.groups is None:
        yield from single.values()
        return
    for name, ids in task.groups.items():
        yield Decision(name, single[ids[0]].category, (), all(single[one].right for one in ids))
