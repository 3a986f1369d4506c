"""The denoising losses of images under captions."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diva_rs._native as _native
from diva_rs.diffusion import Teacher
from diva_rs.errors import ConfigError, DataError, ShapeError, shown
from diva_rs.native.choose import choose_denoiser
from diva_rs.recipes.recipe import Recipe
from diva_rs.step.draws import DrawPlan
from diva_rs.step.precision import products_of

Array = np.ndarray[Any, np.dtype[Any]]
Losses = dict[str, Array]  # (n,) of one image by caption
Encode = Callable[[list[str]], Tensor]

_TEXTS = 512  # encoded captions that are kept


class Measure:
    """Computes losses, natively where it can; ``recipe`` gives timesteps, loss, seed and backend.

    Raises ConfigError for a timestep that the teacher does not have.
    """

    def __init__(self, teacher: Teacher, recipe: Recipe, encode: Encode | None) -> None:
        self.teacher, self.seed = teacher, recipe.seed
        self.encode = teacher.texts if encode is None else encode
        self.range = recipe.timestep_range or (0, len(teacher.schedule))
        if self.range[1] > len(teacher.schedule):
            steps = len(teacher.schedule)
            raise ConfigError(f"timestep_range={recipe.timestep_range}: the teacher has {steps} timesteps")
        self.dtype = torch.float64 if teacher.dtype == torch.float64 else torch.float32
        self._part = choose_denoiser(teacher, recipe)
        wide = False
        if teacher.dtype == torch.bfloat16 and self._part.backend == "native":
            wide = products_of(recipe.replace(precision="bf16"), teacher.device) == "fp32"
        self._core = _native.Judge(
            self._part.network, teacher.schedule, recipe.loss, recipe.denoiser_batch, wide
        )
        self._texts: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(
        self, latents: Tensor, keys: Array, captions: Sequence[Sequence[str]], draws: range
    ) -> list[Losses]:
        """The losses of each image (B) under its captions, any number of them, over the draws of the range.

        Raises DataError where one is not finite.
        """
        images = [image for image, texts in enumerate(captions) if texts]
        if not images or not draws:
            return [{text: np.zeros(0, np.float32) for text in texts} for texts in captions]
        if self._part.snapshot is not None:
            self._part.snapshot.check()
        rows = {text: row for row, text in enumerate(dict.fromkeys(text for of in captions for text in of))}
        pairs = [(at, rows[text]) for at, image in enumerate(images) for text in captions[image]]
        home = latents[images].detach().to(self.teacher.device, self.dtype)
        plan = DrawPlan(self.seed, draws.stop, tuple(home.shape[1:]), 0, timestep_range=self.range)
        timesteps, noise, _ = plan.draw(keys[images]).tensors(home)
        chosen = slice(draws.start, draws.stop, draws.step)
        found = self._core.losses(
            home, noise[:, chosen], timesteps[:, chosen], self._encoded(list(rows)).to(home), np.array(pairs)
        )
        each = iter(found.cpu().numpy())
        losses = [{text: next(each) for text in texts} for texts in captions]
        for key, of in zip(keys.tolist(), losses, strict=True):
            for text, values in of.items():
                if not np.isfinite(values).all():
                    raise DataError(f"the loss of sample {key} under {shown(text)} is not finite")
        return losses

    def _encoded(self, texts: list[str]) -> Tensor:
        """Text tokens (M, L, C); those of the last captions are kept."""
        new = [text for text in texts if text not in self._texts]
        if new:
            tokens, width = self.encode(new).detach(), self.teacher.condition_width
            if tokens.ndim != 3 or len(tokens) != len(new) or tokens.shape[-1] != width:
                raise ShapeError(f"encode gave {tuple(tokens.shape)}, expected ({len(new)}, L, {width})")
            self._texts.update(zip(new, tokens, strict=True))
        found = torch.stack([self._texts[text] for text in texts])
        for text in texts:
            self._texts.move_to_end(text)
        while len(self._texts) > _TEXTS:
            self._texts.popitem(last=False)
        return found
