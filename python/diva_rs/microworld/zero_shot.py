"""Zero-shot classification of the world's objects: what post-training must not lose."""

from dataclasses import dataclass

from torch import nn

from diva_rs.errors import ConfigError, shown
from diva_rs.evaluation.statistics import Comparison, compare_outcomes, wilson_interval
from diva_rs.microworld.dataset import Captioned
from diva_rs.microworld.embedding import image_embeddings, text_embeddings


@dataclass(frozen=True)
class ZeroShotScore:
    """Whether each image was named rightly."""

    outcomes: tuple[bool, ...]

    @property
    def accuracy(self) -> float:
        """Share of the images whose object was picked, in per cent."""
        return 100 * sum(self.outcomes) / len(self.outcomes)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy, in per cent."""
        low, high = wilson_interval(sum(self.outcomes), len(self.outcomes))
        return 100 * low, 100 * high

    def compare(self, after: "ZeroShotScore") -> Comparison:
        """This score before against another after, on the same images.

        >>> ZeroShotScore((True, False)).compare(ZeroShotScore((True, True))).difference
        50.0
        """
        return compare_outcomes(self.outcomes, after.outcomes, "zero-shot objects")


def zero_shot_objects(
    clip: nn.Module, dataset: Captioned, attribute: str | None = None, template: str = "a photo of a {}"
) -> ZeroShotScore:
    """Name the ``attribute`` of each image of ``dataset`` by the nearest of the captions ``template``.

    ``attribute`` is by default the dataset's subject; the world's is the object.

    >>> world = diva_rs.microworld.World("validation", 16)
    >>> len(zero_shot_objects(diva_rs.microworld.new_clip(seed=0), world).outcomes)
    16
    """
    attribute = dataset.subject if attribute is None else attribute
    if attribute not in dataset.values:
        raise ConfigError(f"attribute={shown(attribute)}: the dataset has {', '.join(dataset.values)}")
    if "{}" not in template:
        raise ConfigError(f"template={shown(template)}: {{}} is needed where the value goes")
    numbers = range(len(dataset))
    texts = text_embeddings(
        clip, dataset.tokenizer([template.replace("{}", value) for value in dataset.values[attribute]])
    )
    picked = (image_embeddings(clip, dataset.images, numbers) @ texts.T).argmax(dim=1)
    truth = dataset.labels(numbers)[:, list(dataset.values).index(attribute)]
    return ZeroShotScore(tuple((picked == truth).tolist()))
