"""Embeddings of images and texts, each computed once per model, in batches."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from diva_rs.data.decode import decode, load
from diva_rs.data.keys import sample_keys
from diva_rs.errors import DataError
from diva_rs.evaluation.embedder import Embedder
from diva_rs.evaluation.items import Part, Picture

T = TypeVar("T", str, Picture)


class Bank:
    """The embeddings of one model, float32 on its device: L2-normalised, unless the image embedding is not.

    A text or image that occurs twice is embedded once, also over several benchmarks. Images of published
    benchmarks are read as they are stored, without EXIF rotation, as the benchmarks' own code reads them.

    >>> clip, preprocess, tokenizer = diva_rs.microworld.example("clip", "preprocess", "tokenizer")
    >>> from diva_rs.evaluation.measures import evaluating
    >>> with evaluating(clip) as model:
    ...     bank = Bank(Embedder(model, preprocess, tokenizer))
    ...     bank.add(["a photo of a fish", "a photo of a cup", "a photo of a fish"])
    ...     bank["a photo of a fish"].shape, bank.counts["texts"]
    (torch.Size([64]), 2)
    """

    def __init__(self, embedder: Embedder, batch: int = 64, progress: bool = False) -> None:
        self.embedder, self.batch, self.progress = embedder, batch, progress
        self.counts = {"images": 0, "texts": 0}  # embedded so far
        self.seconds = {"images": 0.0, "texts": 0.0}
        self._rows: dict[Part, Tensor] = {}
        self._tokens: dict[tuple[int, ...], Tensor] = {}

    def add(self, parts: Iterable[Part], batch: int | None = None) -> None:
        """Embed the texts and images that are not embedded yet, ``batch`` at a time."""
        new = [part for part in dict.fromkeys(parts) if part not in self._rows]
        texts = [part for part in new if isinstance(part, str)]
        images = [part for part in new if isinstance(part, Picture)]
        self._embed("texts", texts, self._texts, batch or self.batch)
        self._embed("images", images, self._images, batch or self.batch)

    def __getitem__(self, part: Part) -> Tensor:
        """(D,): the embedding of a text or image that was added."""
        return self._rows[part]

    def rows(self, parts: Iterable[Part]) -> Tensor:
        """(N, D): the embeddings of several."""
        return torch.stack([self._rows[part] for part in parts])

    def per_second(self) -> dict[str, float]:
        """Images and texts embedded per second, reading included."""
        return {kind: count / self.seconds[kind] for kind, count in self.counts.items() if count}

    def _embed(
        self, kind: str, parts: Sequence[T], embed: Callable[[Sequence[T]], list[Tensor]], batch: int
    ) -> None:
        started = time.perf_counter()
        with tqdm(total=len(parts), desc=kind, disable=not (self.progress and parts)) as bar:
            for start in range(0, len(parts), batch):
                some = parts[start : start + batch]
                rows = embed(some)
                good = torch.stack(rows).isfinite().all(dim=1).tolist()
                if not all(good):
                    part = some[good.index(False)]
                    name = part.name if isinstance(part, Picture) else repr(part)
                    raise DataError(f"the embedding of {name} is not finite")
                self._rows.update(zip(some, rows, strict=True))
                bar.update(len(some))
        self.counts[kind] += len(parts)
        self.seconds[kind] += time.perf_counter() - started

    def _texts(self, texts: Sequence[str]) -> list[Tensor]:
        tokens: Any = self.embedder.tokenize(texts)
        ids = tokens if isinstance(tokens, Tensor) else tokens["input_ids"]
        rows = normalize(self.embedder.encode_text(tokens.to(self.embedder.device)).float(), dim=-1)
        # Texts of the same tokens, for example cut off before they differ, are a tie to the bit.
        keys = [tuple(row) for row in ids.tolist()]
        return [self._tokens.setdefault(key, row) for key, row in zip(keys, rows, strict=True)]

    def _images(self, pictures: Sequence[Picture]) -> list[Tensor]:
        pixels = torch.stack([self._pixels(picture) for picture in pictures]).to(self.embedder.device)
        named = [int(sample_keys([p.key if p.id is None else p.id])[0]) for p in pictures]
        rows = self.embedder.encode_image(pixels, named).float()
        return list(normalize(rows, dim=-1) if self.embedder.embedding.normalized else rows)

    def _pixels(self, picture: Picture) -> Tensor:
        read = decode if picture.decoded else load
        return self.embedder.transform(read(picture.source, picture.name))
