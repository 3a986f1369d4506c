"""Terms of the loss over texts: images towards judged captions, and zero-shot answers as they were."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, logsigmoid, softmax

import diva_rs._native as _native
from diva_rs.captions.judgements import Judgements
from diva_rs.captions.sets import ContrastSet
from diva_rs.captions.texts import Form, Texts
from diva_rs.captions.vocabulary import Vocabulary
from diva_rs.captions.written import Writer
from diva_rs.data.keys import augment_seed
from diva_rs.errors import ConfigError, DataError


class CaptionTerm:
    """Caption feedback: how far CLIP's softmax over contrast sets is from the diffusion model's posteriors.

    The loss of an image is the mean over its chosen sets of ``weight * KL(posterior || softmax of CLIP's
    logits)``, and that of a batch the mean over its images. Only sets with a weight are chosen; an image
    without one counts as 0, so that micro-batches and ranks add up to the mean over all images.

    Args:
        judged: the judgements by sample key, which is made of the loader's ``ids``.
        clip: the model that trains. Its text tower and logit scale are used, which do not train.
        tokenizer: the model's own.
        sets: most sets of an image in a step. They are drawn by (seed, key, epoch).
        context: the probability that a caption says one of the image's other judged values, drawn likewise.
            The subject is always said, and the template is drawn. Sets that no vocabulary made stay as they
            are.
        temperature: the posteriors are taken to the power ``1 / temperature`` and normalised: above 1 they
            are flatter than they were judged, below 1 sharper.
        form: "softmax" over the captions of a set; "sigmoid": the sum over its captions of the KL of their
            probabilities under SigLIP's logits (arXiv 2303.15343); None: that in which the model was trained.
        seed: decides the draws.

    Raises ConfigError where a setting is out of range, and in a step DataError where the judgements hold no
    image of the batch.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> tokenizer, judged = diva_rs.microworld.example("tokenizer", "judged")
    >>> term = CaptionTerm(judged, clip, tokenizer)
    >>> trainer = Trainer(clip, teacher, terms={"captions": (0.3, term)})
    >>> ids = list(judged)[:2]
    >>> loss = trainer.step(images[:2], ids)
    >>> trainer.loss_names
    ('loss', 'denoising', 'captions')
    """

    def __init__(
        self,
        judged: Judgements,
        clip: Any,
        tokenizer: Any,
        sets: int = 2,
        context: float = 0.5,
        temperature: float = 1.0,
        form: Form | None = None,
        seed: int = 0,
    ) -> None:
        if sets < 1 or temperature <= 0 or not 0 <= context <= 1:
            raise ConfigError(
                f"sets={sets}, context={context}, temperature={temperature}: sets is at least 1, context is "
                "from 0 to 1, and temperature above 0"
            )
        self.judged, self.texts = judged, Texts(clip, tokenizer, form)
        self.writer = None if judged.vocabulary is None else Writer(judged)
        self.sets, self.context, self.temperature, self.seed = sets, context, temperature, seed

    def __call__(self, view: _native.View) -> Tensor:
        pooled = view.pooled
        loss = pooled.new_zeros(())
        chosen = sorted(self._chosen(view), key=lambda one: len(one.captions))
        for size, group in groupby(chosen, key=lambda one: len(one.captions)):
            rows, shares, captions, posteriors = zip(*group, strict=True)
            texts = self.texts([caption for several in captions for caption in several])
            images = rows_of(pooled, rows).unsqueeze(1)
            logits = self.texts.logits(images, texts.view(len(rows), size, -1)).squeeze(1)
            apart = self._apart(logits, like(pooled, np.stack(posteriors)))
            loss = loss + apart @ like(pooled, np.array(shares))
        return loss

    def identity(self) -> dict[str, Any]:
        """The judgements and the settings: a run resumes only with the same."""
        settings = {name: getattr(self, name) for name in ("sets", "context", "temperature", "seed")}
        return {"judged": self.judged.digest, "form": self.texts.form, **settings}

    def _chosen(self, view: _native.View) -> Iterator["_Chosen"]:
        keys = judged_keys(self.judged, view.keys)
        for row, key in keys.items():
            random = Random(augment_seed(self.seed, key, view.epoch))
            verdicts = [verdict for verdict in self.judged[key] if verdict.weight > 0]
            verdicts = sorted(verdicts, key=lambda _: random.random())[: self.sets]
            values = self.writer.values(key) if self.writer else {}
            for verdict in verdicts:
                powers = verdict.posterior ** (1 / self.temperature)
                share = verdict.weight / len(verdicts) / len(view.keys)
                captions = self._captions(verdict.set, values, random)
                yield _Chosen(row, share, captions, powers / powers.sum())

    def _captions(self, given: ContrastSet, values: Mapping[str, str], random: Random) -> Sequence[str]:
        """The captions of a set, in which a part of the image's other values is said."""
        vocabulary = self.judged.vocabulary
        if vocabulary is None or given.name not in vocabulary.names():
            return given.captions
        said = {
            name: word
            for name, word in values.items()
            if name == Vocabulary.SUBJECT or random.random() < self.context
        }
        made = vocabulary.set_of(given.name, said, int(random.random() * len(vocabulary.templates)))
        return made.captions if made.words == given.words else given.captions

    def _apart(self, logits: Tensor, posteriors: Tensor) -> Tensor:
        """(S, K), (S, K) -> (S,): the divergence from the posteriors, of which some may be 0."""
        if self.texts.form == "softmax":
            return kl_div(log_softmax(logits, 1), posteriors, reduction="none").sum(1)
        right = kl_div(logsigmoid(logits), posteriors, reduction="none")
        return (right + kl_div(logsigmoid(-logits), 1 - posteriors, reduction="none")).sum(1)


class WrittenTerm:
    """CLIP's contrastive loss over a batch of images and captions that say what the diffusion model judged.

    A caption says the judged subject and a random part of the other values in any order, drawn by (seed,
    key, epoch); see `Writer`. The loss is the mean of two cross-entropies: of each image over the distinct
    texts of the batch, and of each caption over the images, of which those with one caption share its target.
    "sigmoid" is SigLIP's loss (arXiv 2303.15343): over all pairs of an image and a distinct text, per image.
    Images without a judged value take no part.

    Micro-batches do not change the loss. Of several ranks, each compares the images of its own batch alone,
    and their gradients are averaged: two ranks are not one rank with twice the images.

    Args:
        share: the probability that a caption says an attribute.
        hard: hard negatives of each image: its caption with another word of one contrast set in it. They are
            further texts, for all images of the batch.

    The other arguments are those of `CaptionTerm`; the judgements need a vocabulary.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> tokenizer, judged = diva_rs.microworld.example("tokenizer", "judged")
    >>> term = WrittenTerm(judged, clip, tokenizer, hard=1)
    >>> loss = Trainer(clip, teacher, terms={"written": (0.1, term)}).step(images, list(judged))
    """

    def __init__(
        self,
        judged: Judgements,
        clip: Any,
        tokenizer: Any,
        share: float = 0.5,
        hard: int = 0,
        form: Form | None = None,
        seed: int = 0,
    ) -> None:
        if hard < 0:
            raise ConfigError(f"hard={hard}: a number of hard negatives from 0 is needed")
        self.writer, self.texts, self.hard = Writer(judged, share, seed), Texts(clip, tokenizer, form), hard

    def __call__(self, view: _native.View) -> Tensor:
        keys = judged_keys(self.writer.judged, view.keys)
        keys = {row: key for row, key in keys.items() if self.writer.values(key)}
        if not keys:
            return view.pooled.new_zeros(())
        written = [self.writer.caption(key, view.epoch) for key in keys.values()]
        hard = [self.writer.negatives(key, self.hard, view.epoch) for key in keys.values()]
        texts = list(dict.fromkeys(chain(written, *hard)))
        own = like(view.pooled, np.array([[float(text == said) for text in texts] for said in written]))
        logits = self.texts.logits(rows_of(view.pooled, keys), self.texts(texts))  # (images, texts)
        if self.texts.form == "sigmoid":
            return -logsigmoid((2 * own - 1) * logits).sum() / len(keys)
        return -(own * (log_softmax(logits, 1) + log_softmax(logits, 0))).sum() / (2 * len(keys))

    def identity(self) -> dict[str, Any]:
        """The judgements and the settings: a run resumes only with the same."""
        settings = {"share": self.writer.share, "hard": self.hard, "seed": self.writer.seed}
        return {"judged": self.writer.judged.digest, "form": self.texts.form, **settings}


class KeepTerm:
    """What keeps zero-shot: CLIP's softmax over a bank of texts stays what it was before training.

    The mean over the batch of KL(softmax of the untouched model's logits || softmax of the student's), at the
    model's logit scale. Arguments are as for `CaptionTerm`.

    Args:
        texts: two or more, such as one sentence for each class.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> tokenizer = diva_rs.microworld.example("tokenizer")
    >>> keep = KeepTerm(clip, tokenizer, ["a photo of a fish", "a photo of a cup"])
    >>> loss = Trainer(clip, teacher, terms={"keep": (0.1, keep)}).step(images)
    """

    needs_original = True  # a run resumes only from the CLIP that it began with

    def __init__(self, clip: Any, tokenizer: Any, texts: Sequence[str]) -> None:
        if isinstance(texts, str) or len(texts) < 2:
            raise ConfigError("texts is to hold two or more texts, such as one for each class")
        self.texts = Texts(clip, tokenizer)
        self.bank = self.texts(texts)  # (T, D)
        self._names = list(texts)

    def __call__(self, view: _native.View) -> Tensor:
        before = softmax(self.texts.logits(view.original, self.bank), 1)
        after = log_softmax(self.texts.logits(view.pooled, self.bank), 1)
        return kl_div(after, before.detach(), reduction="batchmean")

    def identity(self) -> list[str]:
        """The texts: a run resumes only with the same."""
        return self._names


class _Chosen(NamedTuple):
    row: int  # of the batch
    share: float  # of the batch's loss
    captions: Sequence[str]
    posterior: np.ndarray[Any, Any]


def judged_keys(judged: Judgements, keys: Iterable[int]) -> dict[int, int]:
    """Row of the batch -> key, of the images that have judgements."""
    numbers = [int(key) for key in keys]
    found = {row: key for row, key in enumerate(numbers) if key in judged}
    if not found:
        raise DataError(
            f"no image of the batch was judged, the first one's key is {numbers[0]}: the loader must give "
            "the same ids as when its images were judged"
        )
    return found


def rows_of(tensor: Tensor, rows: Iterable[int]) -> Tensor:
    """Rows of a tensor, by numbers of the host."""
    # Indexing with a tensor has a deterministic gradient on CUDA, index_select has not.
    return tensor[torch.tensor(list(rows), device="cpu").to(tensor.device)]


def like(tensor: Tensor, values: np.ndarray[Any, Any]) -> Tensor:
    """Numbers of the host in the dtype and on the device of a tensor."""
    return torch.from_numpy(values).to(tensor.dtype).to(tensor.device)
