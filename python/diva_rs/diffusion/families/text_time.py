"""SDXL's added embedding: pooled text and image sizes, beside what the cross-attention reads."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diva_rs._base.tensors import described, is_dense
from diva_rs.diffusion.frozen import moved
from diva_rs.errors import ConfigError, ShapeError

_SIZES = 6  # original height and width, crop top and left, target height and width
_SCORED = 5  # the refiner's: an aesthetic score in the place of the target size
_SCORE = 6.0  # diffusers StableDiffusionXLImg2ImgPipeline: aesthetic_score


class TextTime:
    """added_cond_kwargs of an SDXL UNet (arXiv 2307.01952, sections 2.1 and 2.2), the same for every sample.

    ``given`` holds "text_embeds" (1, D) and "time_ids" (1, n), both, one or none of them. Without it the
    pooled text is zero, as in diffusers' SDXL pipeline for the empty prompt, and the sizes are those of the
    image, not cropped; SDXL's refiner takes an aesthetic score besides. ``factor`` gives the pixels per
    latent along a side, ``pooled`` the width of the pooled text where it is known.
    """

    def __init__(
        self,
        config: Any,
        given: Mapping[str, Tensor],
        factor: Callable[[], int],
        pooled: Callable[[], int | None] = lambda: None,
    ) -> None:
        for name, tensor in given.items():
            if name not in ("text_embeds", "time_ids"):
                raise ConfigError(f"added_cond_kwargs has {name!r}, expected text_embeds and time_ids")
            if not is_dense(tensor) or tensor.ndim != 2 or len(tensor) != 1:
                raise ShapeError(
                    f"added_cond_kwargs[{name!r}] is {described(tensor)}, expected a tensor (1, n), "
                    "one for all samples"
                )
        self.text, self.time_ids = given.get("text_embeds"), given.get("time_ids")
        self.factor, self._pooled = factor, pooled
        # diffusers UNet2DConditionModel.get_aug_embed: the pooled text, then an embedding of each id.
        self.total = int(config.projection_class_embeddings_input_dim)
        self.each, self._cross = config.addition_time_embed_dim, config.cross_attention_dim
        self._cache: dict[tuple[Any, ...], dict[str, Tensor]] = {}
        if given:
            _ = self.sizes

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """The width of the pooled text, and the number of ids."""
        text = None if self.text is None else self.text.shape[1]
        ids = None if self.time_ids is None else self.time_ids.shape[1]
        if text is None and ids is None:
            text = self._pooled()
            if text is None and self.total - _SCORED * self.each == self._cross:
                raise ConfigError(
                    f"this UNet may be SDXL's refiner, which takes {_SCORED} time_ids where the base model "
                    f"takes {_SIZES}: give its pipeline or folder, which has the text encoder, or "
                    "Teacher(added_cond_kwargs=...) with text_embeds and time_ids"
                )
        if ids is None:
            ids = _SCORED if text is not None and text + _SCORED * self.each == self.total else _SIZES
        text = self.total - ids * self.each if text is None else text
        if text <= 0 or text + ids * self.each != self.total:
            raise ShapeError(
                f"this UNet's added embedding takes {self.total} values, but text_embeds of {text} and "
                f"{ids} time_ids of {self.each} each make {text + ids * self.each}"
            )
        return text, ids

    def like(self, noisy: Tensor, text: Tensor | None = None) -> dict[str, Tensor]:
        """The keyword argument for a batch ``noisy`` (B, C, h, w): text_embeds (B, D), time_ids (B, n).

        ``text`` (B, D) takes the place of the one text for all samples.
        """
        key = (noisy.device, noisy.dtype, *noisy.shape[-2:])
        if key not in self._cache:
            self._cache[key] = self._made(noisy)
        found = {name: tensor.expand(len(noisy), -1) for name, tensor in self._cache[key].items()}
        return found if text is None else {**found, "text_embeds": text}

    def _made(self, noisy: Tensor) -> dict[str, Tensor]:
        text, time_ids = self.text, self.time_ids
        if text is None:
            text = noisy.new_zeros(1, self.sizes[0])
        if time_ids is None:
            size = [side * self.factor() for side in noisy.shape[-2:]]
            ids = [*size, 0, 0, *(size if self.sizes[1] == _SIZES else [_SCORE])]
            time_ids = torch.tensor([ids], dtype=torch.float32, device="cpu")
        return {
            "text_embeds": moved(text.detach(), noisy.device, noisy.dtype),
            "time_ids": moved(time_ids.detach(), noisy.device),
        }

    def native(self, weight: Tensor) -> tuple[dict[str, int], dict[str, Tensor]] | str:
        """The native network's configuration and fixed inputs for weights like ``weight``, or why not."""
        text_width, ids = self.sizes
        if self.time_ids is None and ids != _SIZES:
            return "its aesthetic score is not given: added_cond_kwargs with time_ids would"
        text = self.text if self.text is not None else weight.new_zeros(1, text_width)
        fields, fixed = {"addition_time_embed_dim": self.each}, {"text_embeds": text.detach()}
        if self.time_ids is None:
            return {**fields, "pixels_per_latent": self.factor()}, fixed
        return {**fields, "pixels_per_latent": 1}, {**fixed, "time_ids": self.time_ids}
