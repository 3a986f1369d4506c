"""The microworld as a world of the lab: see `lab.worlds.Data`."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from diva_rs.microworld.dataset import World, pictures
from diva_rs.microworld.rendering import SIDE
from diva_rs.microworld.scenes import PATTERNS
from diva_rs.microworld.scores import Pair, pairs
from lab.worlds.even import Even


class MicroworldData:
    """Disjoint ranges of scene numbers; there are always as many as are wanted."""

    side, tokenizer, vocabulary = SIDE, World.tokenizer, World.vocabulary
    share: float | Mapping[str, float] | Even = Even()

    def template(self, subject: str) -> str:
        """With "a" before every object, as the tiny CLIPs have always been scored."""
        return f"a photo of a {subject}"

    def identity(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def pretraining(self, size: int, seed: int) -> World:
        """Scenes of the train split."""
        return World("train", size, seed)

    def feedback(self, size: int) -> World:
        """Scenes of the train split that no pretraining has used."""
        return World("train", size, start=1 << 20)

    def fitted(self, size: int) -> World:
        """The last scenes of the train split."""
        return World("train", size, start=(1 << 24) - size)

    def scored(self, split: str, size: int, per_pattern: int) -> World:
        """The scenes of a split after those of the pairs."""
        return World(split, size, start=len(PATTERNS) * per_pattern)

    def pairs(self, split: str, per_pattern: int) -> list[Pair]:
        """The pairs of `diva_rs.microworld.pairs`; their items are scenes."""
        return pairs(World(split, len(PATTERNS) * per_pattern), per_pattern)

    def pictures(self, items: Sequence[Any]) -> Tensor:
        """Scenes as (B, 3, 48, 48)."""
        return pictures(items)
