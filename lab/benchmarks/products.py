"""A step in bf16 with the products of a CPU's own bf16 instructions, and with those of float32."""

from typing import Any

from diva_rs.step.precision import measured, products_of
from lab.benchmarks.contestants import Ours
from lab.benchmarks.models import Models
from lab.benchmarks.timing import take_turns


def products(models: Models, rounds: int) -> dict[str, Any]:
    """Seconds of our step either way, in turns, what a recipe's "auto" chooses, and by which FLOP/s; empty
    where there is no choice.

    >>> from lab.benchmarks.sizes import find
    >>> found = products(Models(find("tiny"), "bf16"), rounds=1)
    >>> found["chosen"] in found["contestants"], sorted(found["measured"])
    (True, ['bf16', 'fp32'])
    """
    chosen = products_of(models.recipe, models.device)
    if chosen is None:
        return {}
    ours, images = Ours(models), models.images()

    def step(way: str) -> None:
        ours.trainer.step_modules.multiply(way)
        ours.step(images)

    times = take_turns({way: lambda way=way: step(way) for way in ("bf16", "fp32")}, rounds)  # type: ignore[misc]
    contestants = {way: one.to_dict() for way, one in times.items()}
    return {"contestants": contestants, "chosen": chosen, "measured": measured()}
