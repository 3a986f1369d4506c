"""Training of the tiny CLIP, so that its text tower represents details and its vision tower does not.

Contrastive learning from captions that leave out most details makes both towers blind: a word without
matching pictures gets no separate direction, and then no vision tower can raise a pair's score. So the text
tower first learns from text alone and is then locked (as LiT, arXiv 2111.07991, locks the vision tower).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs.microworld.models import MEAN, STD
from lab.pretraining.data import Captioned, Pixels, batch_numbers
from lab.pretraining.loop import NOTHING, Keep, Optimizers, Progress, cosine

_TEXT_SCALE = 20.0  # inverse temperature between two captions of a scene
_DETAILS = 0.3  # weight of each attribute's loss beside that of the object
_CLOSE = 20.0  # weight of 1 - cos between image and caption


def train_clip(
    clip: Any,
    dataset: Captioned,
    pixels: Pixels,
    steps: int,
    share: float | Mapping[str, float] | Callable[[int], Mapping[str, float]],
    batch: int = 128,
    lr: float = 1e-3,
    matrices: float = 2e-3,
    seed: int = 0,
    keep: Keep = NOTHING,
) -> dict[str, float]:
    """Train the vision tower of an open_clip model on short captions.

    A caption names an attribute with its probability in ``share``, or with that of all; a function gives the
    probabilities of a step.

    The loss is CLIP's, the mean of both cross-entropies over the batch's similarities, and 1 - cos between
    image and caption (alignment, arXiv 2005.10242): what captions do not name then varies less in the
    embedding, and what they name seldom varies in the words' direction. The text tower is locked.

    Returns:
        the last running means: "loss".
    """
    trained = nn.ModuleList([clip.visual])
    trained.logit_scale = clip.logit_scale
    optimizers = Optimizers(trained, lr, matrices, cosine(steps))
    progress = Progress("clip", steps)
    clip.train()
    for step in keep.steps(progress, model=trained, optimizers=optimizers):
        numbers, epoch = batch_numbers(len(pixels), batch, step, seed)
        named = share(step) if callable(share) else share
        tokens = dataset.tokenizer(dataset.captions(numbers, named, epoch))
        with torch.no_grad():
            texts = clip.encode_text(tokens, normalize=True)
        images = clip.encode_image((pixels[numbers] - MEAN) / STD, normalize=True)
        loss = contrastive(images, texts, clip.logit_scale, tokens)
        loss = loss + _CLOSE * (1 - (images * texts).sum(1)).mean()
        optimizers.step(loss, step)
        with torch.no_grad():
            clip.logit_scale.clamp_(max=math.log(100))  # as CLIP's own training does
        progress.update(step, loss=loss)
    clip.eval()
    return progress.last


def train_text(
    clip: Any,
    dataset: Captioned,
    size: int,
    steps: int,
    batch: int = 128,
    lr: float = 1e-3,
    matrices: float = 2e-3,
    seed: int = 0,
    keep: Keep = NOTHING,
) -> dict[str, float]:
    """Train the text tower of an open_clip model on the captions of ``size`` items alone.

    Two captions of a scene name the object and different halves of the attributes. They form a positive pair
    within the batch (SimCSE's loss, arXiv 2104.08821, with captions in place of dropout).

    Returns:
        the last running means: "loss".
    """
    trained = nn.ModuleDict({"transformer": clip.transformer, "ln_final": clip.ln_final})
    trained["token_embedding"] = clip.token_embedding
    trained.positional_embedding, trained.text_projection = clip.positional_embedding, clip.text_projection
    optimizers = Optimizers(trained, lr, matrices, cosine(steps))
    progress = Progress("text", steps)
    clip.train()
    for step in keep.steps(progress, model=trained, optimizers=optimizers):
        numbers, epoch = batch_numbers(size, batch, step, seed)
        first, second = (
            clip.encode_text(
                dataset.tokenizer(dataset.captions(numbers, 0.5, 2 * epoch + half)), normalize=True
            )
            for half in (0, 1)
        )
        logits, truth = _TEXT_SCALE * first @ second.T, torch.arange(len(numbers))
        loss = _both_ways(logits, truth)
        optimizers.step(loss, step)
        progress.update(step, loss=loss)
    clip.eval()
    return progress.last


def train_classifier(
    visual: Any,
    dataset: Captioned,
    pixels: Pixels,
    steps: int,
    batch: int = 64,
    lr: float = 2e-3,
    matrices: float = 5e-3,
    seed: int = 0,
    keep: Keep = NOTHING,
) -> dict[str, float]:
    """Train a vision tower to classify objects before any caption, as LiT and BASIC do with ImageNet.

    From random weights, so small a tower needs thousands of steps of a contrastive loss before it separates
    any objects; after this training it needs hundreds. The embedding classifies the object, and the mean of
    the patch tokens every attribute: like a CLIP of full size, the patches represent details that the
    embedding leaves out. The linear heads are discarded.

    Returns:
        the last running means: "loss", and in [0, 1] the "accuracy" of the object and of all "details".
    """
    whiten_patches(visual, pixels, seed)
    labels, subject = dataset.labels(range(len(pixels))), list(dataset.values).index(dataset.subject)
    width, embedded = visual.proj.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(embedded, len(dataset.values[dataset.subject]))
        heads = nn.ModuleList(nn.Linear(width, len(words)) for words in dataset.values.values())
    trained = nn.ModuleList([visual, head, heads])
    optimizers = Optimizers(trained, lr, matrices, cosine(steps))
    progress = Progress("objects", steps)
    visual.train()
    visual.output_tokens = True
    for step in keep.steps(progress, model=trained, optimizers=optimizers):
        numbers, _ = batch_numbers(len(pixels), batch, step, seed)
        embedding, patches = visual((pixels[numbers] - MEAN) / STD)
        truth = labels[torch.tensor(numbers)]
        logits = [head(embedding), *(one(patches.mean(1)) for one in heads)]
        truths = [truth[:, subject], *truth.unbind(1)]
        first, *details = map(nn.functional.cross_entropy, logits, truths)
        loss = first + _DETAILS * torch.stack(details).sum()
        optimizers.step(loss, step)
        right = [(one.argmax(1) == own).float().mean() for one, own in zip(logits, truths, strict=True)]
        progress.update(step, loss=loss, accuracy=right[0], details=torch.stack(right[1:]).mean())
    visual.output_tokens = False
    visual.eval()
    return progress.last


@torch.no_grad()
def whiten_patches(visual: Any, pixels: Pixels, seed: int, images: int = 4096) -> None:
    """Start the patch embedding of an open_clip vision tower as a whitening of the data's patches.

    Its rows are the principal components of the patches, divided by their standard deviations and rotated at
    random. Against the usual start it saves a third of the steps until objects are told apart.
    """
    side, width = visual.conv1.kernel_size[0], visual.conv1.out_channels
    whole = (pixels[range(min(images, len(pixels)))] - MEAN) / STD
    patches = (
        whole.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    )
    centred = patches - patches.mean(0)
    variances, components = torch.linalg.eigh(centred.T @ centred / len(centred))
    variances, components = variances.flip(0)[:width], components.flip(1)[:, :width]
    rotation = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed))).Q
    # Components that hardly vary are noise: they are not blown up to the size of the others.
    start = components / (variances + 0.1 * variances.mean()).sqrt() @ rotation
    visual.conv1.weight.copy_(0.5 * start.T.reshape(visual.conv1.weight.shape))


def contrastive(images: Tensor, texts: Tensor, logit_scale: Tensor, tokens: Tensor) -> Tensor:
    """CLIP's loss of unit embeddings (B, D) and (B, D) of captions with ``tokens`` (B, L).

    Captions that are the same to the word are all right for each other's images, in equal shares (UniCL,
    arXiv 2204.03610): in a world of eight objects CLIP's one right caption per image would be mostly noise.
    """
    logits = logit_scale.exp() * images @ texts.T
    same = (tokens[:, None] == tokens[None]).all(-1).float()
    return _both_ways(logits, same / same.sum(1, keepdim=True))


def _both_ways(logits: Tensor, truth: Tensor) -> Tensor:
    cross_entropy = nn.functional.cross_entropy
    return (cross_entropy(logits, truth) + cross_entropy(logits.T, truth)) / 2
