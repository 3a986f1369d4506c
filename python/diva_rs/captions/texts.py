"""The text side of a CLIP, frozen: embeddings of captions, each computed once, and the logits of images."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from diva_rs.clip import unwrap
from diva_rs.errors import ConfigError, shown
from diva_rs.evaluation.embedder import check_text_tower, text_embedding
from diva_rs.evaluation.measures import device_of, evaluating
from diva_rs.evaluation.text_side import TextSide

Form = Literal["softmax", "sigmoid"]


class Texts:
    """The text tower and the logit scale of a CLIP, as they are when this is made.

    Args:
        clip: a model of open_clip, transformers (CLIP, MetaCLIP 2, SigLIP) or OpenAI's `clip`. Its text tower
            must not change.
        tokenizer: the model's own.
        form: "softmax" over the texts of an image, as CLIP is trained, or "sigmoid" of each pair, as SigLIP
            (arXiv 2303.15343) is; None: the form of the model.
        batch: texts that are embedded at a time.
        most: embeddings that are kept; when they are exceeded, all are discarded.

    Raises ConfigError for a model without a text tower or a logit scale, and for another model's tokenizer.
    """

    def __init__(
        self, clip: Any, tokenizer: Any, form: Form | None = None, batch: int = 64, most: int = 1 << 14
    ) -> None:
        self.model: Any = unwrap(clip)
        check_text_tower(self.model)
        self._tokenize = TextSide.of(self.model).checked(tokenizer)
        self._batch, self._most = batch, most
        scale, bias = (getattr(self.model, name, None) for name in ("logit_scale", "logit_bias"))
        if not isinstance(scale, Tensor):
            raise ConfigError(f"{type(self.model).__name__} has no logit_scale: load the full model")
        if form not in (None, "softmax", "sigmoid"):
            raise ConfigError(f"form={shown(form)}: give 'softmax', 'sigmoid' or None, the model's own")
        self.form: Form = form or ("sigmoid" if isinstance(bias, Tensor) else "softmax")
        self._scale = scale.detach().exp().reshape(()).clone()
        bias = bias if isinstance(bias, Tensor) else torch.zeros_like(scale)
        self._bias = bias.detach().reshape(()).clone()
        self._places: dict[str, int] = {}
        self._rows: Tensor | None = None  # (texts, D)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return device_of(self.model)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(N, D): the L2-normalised embeddings of N texts, in the model's dtype and where it is."""
        new = [text for text in dict.fromkeys(texts) if text not in self._places]
        if len(self._places) + len(new) > self._most:
            self._places, self._rows, new = {}, None, list(dict.fromkeys(texts))
        if new:
            rows = self._embedded(new)
            kept = [] if self._rows is None else [self._rows.to(rows.device)]
            self._rows = torch.cat([*kept, rows])
            self._places.update(zip(new, range(len(self._places), len(self._rows)), strict=True))
        assert self._rows is not None
        places = torch.tensor([self._places[text] for text in texts], device="cpu")
        return self._rows.index_select(0, places.to(self._rows.device))

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """The logits (..., M, N) of image embeddings (..., M, D), of any length, and texts (..., N, D)."""
        scale, bias = self._scale.to(images.device), self._bias.to(images.device)  # the model may have moved
        return scale * (normalize(images, dim=-1) @ texts.to(images.device).mT) + bias

    def _embedded(self, texts: list[str]) -> Tensor:
        """In batches of one size: a text's embedding is the same to the bit, independent of the others."""
        rows = []
        with evaluating(self.model) as model:
            for start in range(0, len(texts), self._batch):
                some = texts[start : start + self._batch]
                full = some + some[:1] * (self._batch - len(some))
                found = text_embedding(model, self._tokenize(full).to(self.device))
                rows.append(normalize(found, dim=-1)[: len(some)])
        return torch.cat(rows)
