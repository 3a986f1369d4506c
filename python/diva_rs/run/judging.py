"""`judge_images`: the images of a loader judged once, on any number of ranks, into a folder."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from diva_rs.captions.judge import Judge
from diva_rs.captions.judgements import Judgements, evidence_of
from diva_rs.captions.sources import Source, of_batch, sets_of
from diva_rs.captions.store import Row, Unfinished
from diva_rs.captions.vocabulary import Vocabulary
from diva_rs.data.accounting import Accounting
from diva_rs.data.batches import Batch, check_loader, read_batch
from diva_rs.data.checks import Place, check_images
from diva_rs.data.keys import sample_keys
from diva_rs.data.latent_store import content_hash, hash_of_weights
from diva_rs.data.pixels import vae_input
from diva_rs.diffusion import Teacher
from diva_rs.distributed import Ranks, session
from diva_rs.errors import ConfigError, DataError
from diva_rs.recipes.recipe import Recipe
from diva_rs.run.ranks.loaders import check_divided, every_image
from diva_rs.run.ranks.start import check_same

Guess = Callable[[Tensor], Sequence[Mapping[str, str]]]
"""Images (B, 3, H, W) in [0, 1] -> for each of them a word for each name of the vocabulary."""


def judge_images(
    judge: Judge,
    loader: Iterable[Any],
    captions: Vocabulary | Source | None,
    folder: str | os.PathLike[str],
    guess: Guess | None = None,
    rounds: int = 2,
    names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Judgements:
    """Judge every image of one pass over ``loader``, and keep the losses in ``folder``.

    Finished images are written after each batch: where a run was interrupted, the same call continues it, and
    the folder ends in the same bytes. Images that are new in the loader are judged, too. Under a launcher
    each rank judges its own images.

    Args:
        loader: batches with ``images`` in [0, 1], of the size that the teacher is to see, and ``ids``, such
            as ``folder_loader(..., size=512, scale=None)``; ``latents`` in it are used.
        captions: what is judged: a vocabulary; or contrast sets of each image, as a dict from sample keys or
            a function of one (`diva_rs.captions.read_sets`, `swaps`); or None: those that each batch holds as
            ``captions``.
        guess: the words of a vocabulary to start from, such as `diva_rs.captions.Guesses`; see `Guess`.
            None: a name is not said until it is judged.
        rounds, names: for a vocabulary, see `Judge.describe`.
        overwrite: whether to replace the judgements that ``folder`` holds.

    Raises ConfigError, naming what differs, where another teacher, vocabulary, guess or setting made the
    judgements in ``folder``; DataError for images without ids, for images that have other pixels or other
    sets than when they were judged, and for damaged and foreign files.

    >>> import tempfile
    >>> from diva_rs.captions import Guesses, Judge
    >>> clip, teacher, loader = diva_rs.microworld.example("clip", "teacher", "loader")
    >>> tokenizer, encode = diva_rs.microworld.example("tokenizer", "encode")
    >>> words, judge = diva_rs.microworld.vocabulary(), Judge(teacher, draws=2, encode=encode)
    >>> guesses, folder = Guesses(clip, tokenizer, words), tempfile.mkdtemp() + "/judged"
    >>> judged = judge_images(judge, loader, words, folder, guesses, names=["colour"])
    >>> len(judged), str(judged.facts.accounting)
    (8, '8 images used, none left out')
    """
    check_loader(loader)
    vocabulary = captions if isinstance(captions, Vocabulary) else None
    made_by: dict[str, Any] = {
        "teacher": _fingerprint(judge),
        "vocabulary": None if vocabulary is None else vocabulary.digest,
        "judge": judge.settings(),
    }
    if vocabulary is not None:
        made_by |= {
            "guess": getattr(guess, "identity", lambda: guess and "a function")(),
            "rounds": rounds,
            "names": list(vocabulary.attributes if names is None else names),
        }
    with session() as ranks, every_image(loader, ranks):
        check_same("judge", made_by, ranks)
        check_divided(loader, ranks)
        if ranks.first:
            store = Unfinished(folder, made_by, overwrite)
        ranks.wait()
        if not ranks.first:
            store = Unfinished(folder, made_by)
        images = 0
        for number, item in enumerate(tqdm(loader, "judge", unit="batch", disable=None)):
            batch = read_batch(item, number)
            images += len(batch)
            pixels, new = _new(batch, number, store)
            if not isinstance(captions, Vocabulary):
                source = of_batch(item, number) if captions is None else captions
                _check_sets(source, batch, number, store)
            if new:
                indices = [index for index, _ in new.values()]
                pixels = pixels[indices]
                latents = _latents(batch, pixels, indices, judge.teacher)
                keys = np.fromiter(new, np.uint64, len(new))
                if isinstance(captions, Vocabulary):
                    start = None if guess is None else guess(pixels)
                    found = judge.describe(latents, keys, captions, start, rounds, names)
                else:
                    found = judge.judge(latents, keys, sets_of(source, keys))
                store.add(
                    Row.of(key, found.evidence[key], found.given.get(key), content)
                    for key, (_, content) in new.items()
                )
            if ranks.stopping:
                break
        if any(ranks.facts(ranks.stopping)):
            raise KeyboardInterrupt
        accounting = _accounting(loader, images, ranks)
        if ranks.first:
            store.gather()
            facts = Judgements(evidence_of(store.rows.values()), vocabulary).facts
            store.finish(facts.model_copy(update={"accounting": accounting}), vocabulary)
        ranks.wait()
    return Judgements.load(folder)


def _new(batch: Batch, number: int, store: Unfinished) -> tuple[Tensor, dict[int, tuple[int, str]]]:
    """The images of a batch, checked; of those not judged yet: key -> index, and hash of the pixels."""
    if batch.images is None or batch.ids is None:
        raise DataError(f"batch {number} has no {'images' if batch.images is None else 'ids'}")
    check_images(batch.images, "unit", batch=number, ids=batch.ids)
    new: dict[int, tuple[int, str]] = {}
    hashes = [content_hash(image).hex() for image in batch.images.float().cpu().numpy()]
    for index, (key, content) in enumerate(zip(sample_keys(batch.ids).tolist(), hashes, strict=True)):
        row = store.rows.get(key)
        if row is None:
            new.setdefault(key, (index, content))
        elif row.content != content:
            where = Place("images", number, batch.ids).sample(index)
            raise DataError(
                f"{where} has other pixels than when it was judged: load it as then, or overwrite the "
                "judgements"
            )
    return batch.images, new


def _check_sets(source: Source, batch: Batch, number: int, store: Unfinished) -> None:
    """Raise DataError where an image that was judged has other contrast sets now."""
    keys = [] if batch.ids is None else sample_keys(batch.ids).tolist()
    for index, (key, sets) in enumerate(zip(keys, sets_of(source, keys), strict=True)):
        if key in store.rows and tuple(each.set for each in store.rows[key].sets) != sets:
            where = Place("images", number, batch.ids).sample(index)
            raise DataError(
                f"{where} has other contrast sets than when it was judged: give the same, or overwrite the "
                "judgements"
            )


def _latents(batch: Batch, images: Tensor, indices: list[int], teacher: Teacher) -> Tensor:
    """The latents of chosen images of a batch: those of the loader, or made here."""
    if batch.latents is not None:
        return batch.latents[indices]
    height, width = images.shape[-2:]
    home = images.to(teacher.device, torch.float32)
    return teacher.encode(vae_input(home, Recipe(pixels="unit"), (height, width)))


def _fingerprint(judge: Judge) -> dict[str, str]:
    """What decides the losses: the teacher's weights, schedule and precision."""
    teacher = judge.teacher
    modules = [teacher.denoiser]
    with suppress(ConfigError):  # there is no VAE: the loader gives latents
        modules += [] if teacher.vae is None else [teacher.vae]
    if judge.encode is None:
        teacher.texts([""])  # its encoders are loaded when they are used
        modules = teacher.modules()
    weights = {f"{n} {type(module).__name__}": hash_of_weights(module) for n, module in enumerate(modules, 1)}
    schedule = teacher.schedule
    noise = f"{len(schedule)} timesteps, predicts {schedule.prediction_type}"
    return {**weights, "schedule": noise, "precision": str(teacher.dtype)}


def _accounting(loader: Any, images: int, ranks: Ranks) -> Accounting:
    """What all ranks have read together, and what they left out."""
    found = ranks.facts(getattr(loader, "accounting", Accounting(images)))
    if not hasattr(getattr(loader, "dataset", None), "accounting"):
        return sum(found, Accounting())
    total: Accounting = found[0]  # of a folder, whose files every rank has listed
    for other in found[1:]:
        left = other.left_out.get("unreadable")
        if left is not None:
            total.used -= left.count
            total.leave_out("unreadable", left.example, left.count, picture=True)
    return total
