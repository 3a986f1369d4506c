"""A target that fails in every way that the engine must see."""

import os
import random
import time
from pathlib import Path


class Failing:
    """Case 1 aborts, 2 has a wrong outcome, 3 hangs, 4 leaves the process; the others are in order."""

    def warm_up(self) -> None:
        pass

    def run(self, rng: random.Random) -> str:
        cases = {random.Random(f"selftest 0 {number}").random(): number for number in range(6)}
        number = cases[rng.random()]
        if number == 1:
            os.abort()
        assert number != 2, "a wrong outcome"
        if number == 3:
            time.sleep(60)
        if number == 4:
            os._exit(7)
        return "result"

    def keep(self, place: Path) -> None:
        place.mkdir()


def target(scratch: Path) -> Failing:
    return Failing()
