"""What is measured during training, by `post_train`'s arguments."""

import math
import operator
from dataclasses import dataclass, field
from typing import Any

from diva_rs.errors import ConfigError, shown
from diva_rs.evaluation.measures import Metric, as_metrics

ARGUMENTS = ("evaluate", "eval_every", "best", "best_on_test", "guard")


@dataclass(frozen=True)
class Bound:
    """A bound of a score: "min" and "max" are values, "drop" is below the score before training."""

    kind: str
    value: float

    @classmethod
    def of(cls, bound: Any) -> "Bound":
        """From a number, the lowest score allowed, or a pair of kind and number; raises ValueError."""
        kind, value = bound if isinstance(bound, (tuple, list)) else ("min", bound)
        if kind not in ("min", "max", "drop") or not math.isfinite(value) or (kind == "drop" and value < 0):
            raise ValueError(bound)
        return cls(kind, float(value))

    def broken_by(self, score: float, before: float) -> str | None:
        """How a score, at first ``before``, breaks the bound ("below 0.5"), as NaN does; None if not."""
        limit = before - self.value if self.kind == "drop" else self.value
        if self.kind == "max":
            return None if score <= limit else f"above {limit:g}"
        return None if score >= limit else f"below {limit:g}"


@dataclass(frozen=True)
class Evaluation:
    """`post_train`'s arguments of the same names, checked."""

    evaluate: dict[str, Metric] = field(default_factory=dict)
    eval_every: int | None = None
    best: tuple[str, str] | None = None  # a score, and whether "max" or "min" is better
    guard: dict[str, Bound] = field(default_factory=dict)
    best_on_test: bool = False  # whether the score may be one of a test set

    @classmethod
    def of(
        cls,
        evaluate: Any = None,
        eval_every: int | None = None,
        best: Any = None,
        best_on_test: bool | None = None,
        guard: Any = None,
    ) -> "Evaluation":
        """From `post_train`'s arguments; empty where there is nothing to evaluate."""
        if evaluate is None:
            if (eval_every, best, guard) != (None, None, None):
                raise ConfigError("eval_every, best and guard need scores: give evaluate= as well")
            return cls()
        if best_on_test and best is None:
            raise ConfigError("best_on_test=True allows a score for best=: give best= as well")
        if eval_every is not None and operator.index(eval_every) < 1:
            raise ConfigError(f"eval_every={eval_every}: give a number of steps from 1, or None")
        pair = (best, "max") if isinstance(best, str) else best
        if pair is not None and not (isinstance(pair, (tuple, list)) and [*pair[1:]] in (["max"], ["min"])):
            raise ConfigError(f"best={shown(best)}: give a score, or (score, 'min') where lower is better")
        try:
            bounds = {name: Bound.of(bound) for name, bound in dict(guard or {}).items()}
        except (TypeError, ValueError, OverflowError) as err:
            raise ConfigError(
                f"guard={shown(guard)}: give a mapping of scores to the lowest score that is allowed, or to "
                "('min', lowest), ('max', highest) or ('drop', points below the score before training)"
            ) from err
        chosen = None if pair is None else (pair[0], pair[1])
        return cls(as_metrics(evaluate), eval_every, chosen, bounds, bool(best_on_test))
