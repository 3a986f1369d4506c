"""Scores of a CLIP: pairs of scenes that differ in one attribute, by MMVP's rules, and zero-shot objects."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs.errors import ConfigError, shown
from diva_rs.evaluation.mmvp_vlm import MmvpPair, MmvpVlmResult
from diva_rs.evaluation.statistics import Comparison, compare_outcomes, wilson_interval
from diva_rs.microworld.captions import Tokenizer, caption
from diva_rs.microworld.dataset import World, pictures
from diva_rs.microworld.models import image_embeddings, text_embeddings
from diva_rs.microworld.scenes import PATTERNS, VALUES, Scene, changed

_READ = 256  # captions that a template is compared with
PAIRS = 200  # per pattern: 1,800 in all, a standard error of 1 point at 25 %


@dataclass(frozen=True)
class Pair:
    """Two scenes that differ in ``attribute`` alone, with a statement each that does not fit the other.

    The scenes of another world are whatever its pictures are made from.
    """

    pattern: str
    attribute: str
    scenes: tuple[Any, Any]
    statements: tuple[str, str]


def pairs(world: World, per_pattern: int = PAIRS) -> list[Pair]:
    """``per_pattern`` pairs for each of the nine patterns, in MMVP's order.

    The first scenes are the world's first ``9 * per_pattern`` ones, so the pairs of two splits share none.

    >>> made = pairs(World("test", 18), 2)
    >>> len(made), made[0].scenes[0].differing(made[0].scenes[1])
    (18, ['direction'])
    """
    needed = len(PATTERNS) * per_pattern
    if len(world) < needed:
        raise ConfigError(
            f"per_pattern={per_pattern}: nine patterns need {needed} scenes, the world has {len(world)}"
        )
    made = []
    for block, (pattern, attribute) in enumerate(PATTERNS.items()):
        steps = len(VALUES[attribute]) - 1
        for n in range(per_pattern):
            first = world.scene(block * per_pattern + n)
            second = changed(first, attribute, 1 + n % steps)  # every distance between values equally often
            words = (caption(first, [attribute]), caption(second, [attribute]))
            made.append(Pair(pattern, attribute, (first, second), words))
    return made


def mini_mmvp(
    clip: nn.Module,
    world: World,
    per_pattern: int = PAIRS,
    tokenizer: Tokenizer | None = None,
    images: Callable[[Sequence[Scene]], Tensor] = pictures,
) -> MmvpVlmResult:
    """Score a CLIP on the pairs of ``world`` as MMVP-VLM does.

    For each statement a softmax over the pair's two images; a pair counts if both statements pick their
    image. A tie picks the second image, so it cannot be right for both. Guessing gets 25 %. ``images`` turns
    scenes into pictures (B, 3, 48, 48).

    >>> clip = diva_rs.microworld.new_clip(seed=0)
    >>> 0 <= mini_mmvp(clip, World("validation", 18), 2).average <= 100
    True
    """
    return score_pairs(
        clip,
        pairs(world, per_pattern),
        tokenizer or Tokenizer(),
        images,
        root=f"microworld {world.split}",
        is_test_set=world.split == "test",
    )


@torch.no_grad()
def score_pairs(
    clip: Any,
    listed: Sequence[Pair],
    tokenizer: Callable[[Sequence[str]], Tensor],
    images: Callable[[Sequence[Any]], Tensor],
    **about: Any,
) -> MmvpVlmResult:
    """Score a CLIP on given pairs, as `mini_mmvp` does.

    ``images`` turns the scenes of pairs into pictures (B, 3, H, W) in [0, 1]; ``about`` are further fields of
    the result, such as ``root``.

    >>> clip, world = diva_rs.microworld.new_clip(seed=0), World("validation", 18)
    >>> score_pairs(clip, pairs(world, 2)[:3], world.tokenizer, pictures).asked
    3
    """
    shown = image_embeddings(clip, images, [scene for pair in listed for scene in pair.scenes])
    words = [statement for pair in listed for statement in pair.statements]
    texts = text_embeddings(clip, tokenizer(words))
    width = shown.shape[1]
    # (pairs, statements, images)
    similarity = torch.einsum("psd,pid->psi", texts.view(-1, 2, width), shown.view(-1, 2, width))
    shares = (similarity * 100).softmax(-1)[..., 0]
    decided = []
    for number, (pair, (one, two)) in enumerate(zip(listed, shares.tolist(), strict=True)):
        first, second = 2 * number + 1, 2 * number + 2
        own = {"pattern": pair.pattern, "type": pair.attribute, "statements": pair.statements}
        files = (f"{first}.png", f"{second}.png")
        decided.append(MmvpPair.of((first, second), (one, two), images=files, **own))
    return MmvpVlmResult(tuple(decided), model=type(clip).__name__, **about)


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
        """This score before against another after, on the same images."""
        return compare_outcomes(self.outcomes, after.outcomes, "zero-shot objects")


def zero_shot_objects(
    clip: nn.Module,
    dataset: Any,
    attribute: str | None = None,
    template: str | Callable[[str], str] = "a photo of a {}",
) -> ZeroShotScore:
    """Name the ``attribute`` of each image of ``dataset`` by the nearest of the captions ``template``.

    ``dataset`` is a `World`, or has its ``values``, ``subject``, ``tokenizer``, ``images``, ``labels`` and
    ``captions``. ``attribute`` is by default the dataset's subject; the world's is the object. ``template``
    may be a function of the value. It must say what the dataset's captions say: a word beside the value that
    none of them has raises ConfigError.

    >>> world = diva_rs.microworld.World("validation", 16)
    >>> len(zero_shot_objects(diva_rs.microworld.new_clip(seed=0), world).outcomes)
    16
    """
    attribute = dataset.subject if attribute is None else attribute
    if attribute not in dataset.values:
        raise ConfigError(f"attribute={shown(attribute)}: the dataset has {', '.join(dataset.values)}")
    if isinstance(template, str) and "{}" not in template:
        raise ConfigError(f"template={shown(template)}: {{}} is needed where the value goes")
    numbers = range(len(dataset))
    said = template if callable(template) else lambda value: template.replace("{}", value)
    names = [said(value) for value in dataset.values[attribute]]
    _check_words(names, dataset.captions(numbers[:_READ], 1.0))
    texts = text_embeddings(clip, dataset.tokenizer(names))
    picked = (image_embeddings(clip, dataset.images, numbers) @ texts.T).argmax(dim=1)
    truth = dataset.labels(numbers)[:, list(dataset.values).index(attribute)]
    return ZeroShotScore(tuple((picked == truth).tolist()))


def _check_words(names: Sequence[str], captions: Sequence[str]) -> None:
    """Whether the words that all names share occur in captions: CLIP was trained on no others."""
    frame = set.intersection(*(set(name.split()) for name in names))
    unknown = sorted(frame - set(" ".join(captions).split()) - {"a", "an"})
    if unknown:
        raise ConfigError(
            f"template: {shown(names[0])} does not fit the dataset's captions, such as {shown(captions[0])}: "
            f"none of them has the word {shown(unknown[0])}"
        )
