"""The worlds of the lab: images for pretraining, for feedback and for scores, behind one interface.

`Data` is the interface. The microworld is one implementation (`lab.worlds.micro`), a folder of images with a
table of attributes the other one (`lab.worlds.table`). ``lab.worlds.drawn`` draws such a folder.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from diva_rs.captions import Vocabulary
from diva_rs.errors import DataError
from diva_rs.microworld.captions import Tokenizer
from diva_rs.microworld.scores import Pair
from lab.pretraining.data import Captioned
from lab.worlds.even import Even
from lab.worlds.micro import MicroworldData
from lab.worlds.table import Table

__all__ = ["Data", "MicroworldData", "Table", "data_of"]


class Data(Protocol):
    """The images of a world, by what the lab uses them for.

    Attributes:
        side: height and width of the images in pixels.
        tokenizer: of the captions; the models' text towers have its words and its length.
        vocabulary: the words of all captions.
        share: probability that a caption of CLIP's pretraining names an attribute: of each, of all, or by how
            many of its pairs are right.
    """

    side: int
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    share: float | Mapping[str, float] | Even

    # The caption of a subject alone: zero-shot classification compares these.
    def template(self, subject: str) -> str: ...

    # JSON values that name the world in the checkpoints' manifest; empty: the microworld.
    def identity(self) -> dict[str, Any]: ...

    # At most ``size`` images on which CLIP, VAE and denoisers are trained.
    def pretraining(self, size: int, seed: int) -> Captioned: ...

    # At most ``size`` images for post-training; their captions are for controls and ceilings alone.
    def feedback(self, size: int) -> Captioned: ...

    # At most ``size`` images on which probes are fitted.
    def fitted(self, size: int) -> Captioned: ...

    # At most ``size`` images of a split for zero-shot and probes, beside those of the pairs.
    def scored(self, split: str, size: int, per_pattern: int) -> Captioned: ...

    # At most ``per_pattern`` pairs of each attribute.
    def pairs(self, split: str, per_pattern: int) -> Sequence[Pair]: ...

    # The items of pairs as (B, 3, side, side) float32 in [0, 1].
    def pictures(self, items: Sequence[Any]) -> Tensor: ...


def data_of(identity: Mapping[str, Any]) -> Data:
    """The world that a manifest names by `Data.identity`. Raises DataError if its table has changed."""
    if not identity:
        return MicroworldData()
    if not Path(identity["table"]).is_file():
        raise DataError(
            f"{identity['table']} is missing: the checkpoints were trained on it. Put it back, or write its "
            "place into manifest.json"
        )
    table = Table(identity["table"], identity["side"])
    if table.identity()["digest"] != identity["digest"]:
        raise DataError(f"{table.path} has changed since the checkpoints were trained on it")
    return table
