"""Judged values written out as captions: one at a time, as JSONL, and as shards that open_clip trains on."""

import io
import json
import logging
import os
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from random import Random
from typing import Any, Protocol

from diva_rs._base.files import as_path, make_folder, replacing, sync, write_json
from diva_rs._base.optional import require
from diva_rs.captions.judgements import Judgements
from diva_rs.data.decode import decode, load
from diva_rs.data.keys import augment_seed
from diva_rs.data.metadata import upright
from diva_rs.errors import ConfigError, DataError, shown

logger = logging.getLogger("diva_rs.captions")

# Endings of the formats that open_clip reads, and the ending under which it looks for each.
_COPIED = {"jpg": "jpg", "jpeg": "jpg", "jfif": "jpg", "jpe": "jpg", "png": "png", "webp": "webp"}


class Files(Protocol):
    """Image files: a `diva_rs.data.ImageFolder`, an `ImageShards`, or what has the same method."""

    def files(self) -> Iterator[tuple[int, str, Callable[[], bytes]]]:
        """The sample id and the name of each file, and a function that reads its content."""


class Writer:
    """Writes an image's judged values as captions: the subject, and in any order a part of the others.

    The template, the part and the order are a function of (seed, sample key, epoch, number of the caption).

    Args:
        judged: judgements with a `Vocabulary`.
        share: the probability that an attribute is said.
        seed: decides the draws.

    Raises ConfigError for judgements without a vocabulary.

    >>> judged = diva_rs.microworld.example("judged")
    >>> writer = Writer(judged, share=1.0)
    >>> writer.caption(next(iter(judged))).split()[:3]
    ['a', 'photo', 'of']
    """

    def __init__(self, judged: Judgements, share: float = 0.5, seed: int = 0) -> None:
        if judged.vocabulary is None:
            raise ConfigError("the judgements have no vocabulary, which makes captions: judge with one")
        if not 0 <= share <= 1:
            raise ConfigError(f"share={shown(share)}: a number from 0 to 1 is needed")
        self.judged, self.vocabulary = judged, judged.vocabulary
        self.share, self.seed = share, seed

    def values(self, key: int) -> dict[str, str]:
        """The judged words by name that captions of an image may say; none without a judgement."""
        found = self.judged.values(key) if key in self.judged else {}
        known = (self.vocabulary.SUBJECT, *self.vocabulary.attributes)
        return {name: found[name] for name in known if found.get(name) in self.vocabulary.words(name)}

    def caption(self, key: int, epoch: int = 0, number: int = 0) -> str:
        """Caption ``number`` of an image in an epoch; DataError for an image without a judged value."""
        return self.vocabulary.caption(*self._drawn(key, epoch, number)[:3])

    def negatives(self, key: int, count: int, epoch: int = 0, number: int = 0) -> list[str]:
        """At most ``count`` sentences that differ from `caption` in one judged word, drawn likewise."""
        values, order, template, random = self._drawn(key, epoch, number)
        others = list[tuple[int, float, str, str]]()
        for name, word in values.items():
            words = sorted(
                (w for w in self.vocabulary.words(name) if w != word), key=lambda _: random.random()
            )
            others += [(place, random.random(), name, other) for place, other in enumerate(words)]
        # One of each name before a second one: subjects are more than the words of an attribute.
        chosen = [{**values, name: other} for _, _, name, other in sorted(others)[:count]]
        return [self.vocabulary.caption(other, order, template) for other in chosen]

    def _drawn(self, key: int, epoch: int, number: int) -> tuple[dict[str, str], list[str], int, Random]:
        """Values, order and template of a caption, and the generator behind them."""
        values, subject = self.values(key), self.vocabulary.SUBJECT
        if not values:
            raise DataError(f"sample {key} has no judged value to write")
        random = Random(augment_seed(augment_seed(self.seed, key, epoch), number))
        template = int(random.random() * len(self.vocabulary.templates))
        order = sorted((name for name in values if name != subject), key=lambda _: random.random())
        said = [name for name in order if random.random() < self.share]
        if subject not in values:  # a caption says something
            said = said or order[:1]
        chosen = {name: values[name] for name in values if name == subject or name in said}
        return chosen, said, template, random

    def to_jsonl(self, images: Files, path: str | os.PathLike[str], captions: int = 1) -> int:
        """Write a line for each caption: ``{"file_name": "cats/1.jpg", "text": "a photo of a black cat"}``.

        As ``metadata.jsonl`` in the image folder, the library `datasets` finds the file. ``captions`` is the
        number for each image. Images without a judged value are left out, which the log says. Returns the
        number of lines. Raises ConfigError where the file exists, and DataError where every image is left
        out.
        """
        lines = 0
        with replacing(_new(path)) as place:
            with place.open("w", encoding="utf-8") as file:
                for key, name, _ in self._judged(images, captions):
                    for number in range(captions):
                        row = {"file_name": name, "text": self.caption(key, number=number)}
                        file.write(json.dumps(row) + "\n")
                        lines += 1
            sync(place)
        return lines

    def to_shards(
        self, images: Files, folder: str | os.PathLike[str], captions: int = 1, per_shard: int = 1000
    ) -> int:
        """Write webdataset shards ``00000.tar``, ...: image, caption (``.txt``) and values (``.json``).

        open_clip trains on them (``--dataset-type webdataset``) and finds their sizes in ``sizes.json``.
        JPEG, PNG and WebP files are copied; others, and those that are turned by EXIF data, become PNG. With
        several ``captions``, an image is there several times. Otherwise as `to_jsonl`; returns the number of
        samples.
        """
        if per_shard < 1:
            raise ConfigError(f"per_shard={per_shard}: a number of samples from 1 is needed")
        wds, sizes = require("webdataset", extra="data"), dict[str, int]()
        with replacing(_new(folder)) as place:
            place.mkdir()
            samples = self._samples(images, captions)
            while first := next(samples, None):
                shard = place / f"{len(sizes):05}.tar"
                with shard.open("wb") as file, wds.TarWriter(file, mtime=0) as tar:
                    for number, sample in enumerate(chain([first], islice(samples, per_shard - 1)), 1):
                        tar.write(sample)
                        sizes[shard.name] = number
                sync(shard)
            write_json(place / "sizes.json", sizes)
        return sum(sizes.values())

    def _samples(self, images: Files, captions: int) -> Iterator[dict[str, Any]]:
        """What webdataset's writer takes."""
        for key, name, read in self._judged(images, captions):
            ending, data = _encoded(name, read())
            about = json.dumps({"file_name": name, "values": self.values(key)})
            for number in range(captions):
                text = self.caption(key, number=number)
                yield {"__key__": f"{key:020}_{number}", ending: data, "txt": text, "json": about}

    def _judged(self, images: Files, captions: int) -> Iterator[tuple[int, str, Callable[[], bytes]]]:
        """The files that have a judged value; at the end the log says how many have none."""
        if captions < 1:
            raise ConfigError(f"captions={captions}: a number of captions from 1 is needed")
        used = total = 0
        for total, (key, name, read) in enumerate(images.files(), 1):  # noqa: B007
            if self.values(key):
                used += 1
                yield key, name, read
        if not used:
            raise DataError(
                f"none of {total} images has a judged value: give the images that were judged, read as then"
            )
        level = logging.WARNING if used < total else logging.INFO
        logger.log(level, "%s images have captions, %s have no judged value", used, total - used)


def _encoded(name: str, data: bytes) -> tuple[str, bytes]:
    """The ending and the content of an image file that every reader shows as it was judged: upright."""
    ending, stored = _COPIED.get(name.rpartition(".")[2].lower()), load(data, name)
    if ending is not None and upright(stored) is stored:
        return ending, data
    content = io.BytesIO()
    decode(data, name).save(content, "PNG")
    return "png", content.getvalue()


def _new(path: str | os.PathLike[str]) -> Path:
    """A path at which nothing is yet, in a folder that is there."""
    place = as_path(path)
    if os.path.lexists(place):
        raise ConfigError(f"{place} exists already: give another name, or remove it")
    make_folder(place.parent)
    return place
