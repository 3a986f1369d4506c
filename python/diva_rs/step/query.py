"""What the denoiser is given of a batch beside the student's tokens: latents, draws and text."""

from typing import Any

import numpy as np
from torch import Tensor

from diva_rs.data.batches import Batch
from diva_rs.data.checks import check_finite
from diva_rs.diffusion import Teacher
from diva_rs.errors import ConfigError, DataError, ShapeError
from diva_rs.native.choose import Encoder
from diva_rs.recipes.recipe import Recipe
from diva_rs.step.draws import DrawPlan, Draws


class QueryReader:
    """Reads batches for one teacher, a tower of so many ``patches``, and the device and dtype of ``home``.

    Raises ConfigError at once where the recipe does not fit the models.
    """

    def __init__(self, teacher: Teacher, recipe: Recipe, patches: int, home: Tensor) -> None:
        self.teacher, self.recipe, self.patches = teacher, recipe, patches
        self._home = home
        self.encoder = Encoder(teacher, recipe)
        self.chosen = recipe.chosen(patches)  # k, where the condition is random
        self._plans: dict[tuple[int, ...], DrawPlan] = {}
        if teacher.slots.split is not None and recipe.text != "none":
            raise ConfigError(
                f"text={recipe.text!r}: this teacher's condition has two slots "
                f"({teacher.family.entry}), which no text joins: use text='none', or one slot for the "
                "condition, as Teacher(..., slot='tokens') gives Flux and Stable Diffusion 3"
            )
        steps = len(teacher.schedule)
        self._range = recipe.timestep_range or (0, steps)
        if self._range[1] > steps:
            raise ConfigError(
                f"timestep_range={recipe.timestep_range} ends beyond the teacher's {steps} timesteps: "
                f"end it at {steps} or before"
            )

    def of(self, batch: Batch, draws: Draws | None) -> dict[str, Any]:
        """The arguments of `_native.Batch`; with ``draws``, nothing is drawn."""
        size, shape, encoder = self._latents(batch)
        sampled = None
        if self.recipe.latent == "sample" and batch.latents is None:
            if encoder is None:
                raise ConfigError(
                    "this teacher works on pixels, which have no posterior to draw from: use latent='mean'"
                )
            sampled = shape
        return {
            "text": self._text(len(batch)),
            "drawn": self._plan(shape).native if draws is None else self._given(draws, len(batch), shape),
            "latents": batch.latents,
            "size": size,
            "encoder": encoder,
            "sampled": sampled,
            "pooled_noise": self.teacher.family.pooled_noise,
        }

    def _latents(self, batch: Batch) -> tuple[tuple[int, int], tuple[int, ...], Any]:
        """The size of the images that latents are made from, the shape of a latent, and what makes it."""
        if batch.latents is not None:
            channels, shape = self.teacher.latent_shape[0], tuple(batch.latents.shape)
            if shape[1] != channels:
                raise ShapeError(f"latents is {shape}, the teacher denoises (B, {channels}, h, w)")
            return (0, 0), shape[1:], None
        side = self.recipe.image_size
        size = (side, side) if side is not None else self.teacher.image_size
        return size, self.teacher.latents_of(size), self.encoder.network()

    def _plan(self, latent_shape: tuple[int, ...]) -> DrawPlan:
        if latent_shape not in self._plans:
            recipe = self.recipe
            drawn = recipe.condition == "random"
            self._plans[latent_shape] = DrawPlan(
                seed=recipe.seed,
                draws=recipe.draws,
                latent_shape=latent_shape,
                patches=self.patches,
                choose=self.chosen if drawn and not recipe.bernoulli else None,
                density=recipe.density if drawn and recipe.bernoulli else None,
                replacement=recipe.replacement,
                timesteps=recipe.timesteps,
                timestep_range=self._range,
                logit_mean=recipe.logit_mean,
                logit_std=recipe.logit_std,
            )
        return self._plans[latent_shape]

    def _given(self, draws: Any, batch: int, latent: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Explicit draws as tensors, if they fit; their values are looked at where they are on the host."""
        if not isinstance(draws, Draws):
            raise ConfigError(
                f"draws is a {type(draws).__name__}: give diva_rs.Draws(timesteps, noise, tokens), or what "
                "diva_rs.draw returns"
            )
        lead = (batch, self.recipe.draws)
        wanted = {"timesteps": lead, "noise": (*lead, *latent)}
        if self.recipe.condition == "random":
            wanted["tokens"] = (*lead, self.chosen)
        for name, shape in wanted.items():
            found = tuple(getattr(draws, name).shape)
            if found != shape:
                raise ShapeError(
                    f"draws.{name} is {found}, this batch and recipe need {shape}: B samples, N = "
                    f"recipe.draws{', k chosen patches' if name == 'tokens' else ''}"
                )
        _check_values("timesteps", draws.timesteps, 0, len(self.teacher.schedule))
        if "tokens" in wanted:
            _check_values("tokens", draws.tokens, -1, self.patches)
        timesteps, noise, tokens = draws.tensors(self._home)
        check_finite(noise, "draws.noise")
        return timesteps, noise.detach(), tokens if "tokens" in wanted else None

    def _text(self, batch: int) -> Tensor:
        text = self.teacher.text(self.recipe.prompt)
        if len(text) not in (1, batch):
            raise ShapeError(
                f"text_condition is {tuple(text.shape)}, the batch has {batch} samples: give one text for "
                "all, or batches of that size (drop_last=True)"
            )
        return text.to(self._home)


def _check_values(name: str, values: Any, low: int, high: int) -> None:
    if isinstance(values, Tensor) and values.device.type != "cpu":
        return
    values = np.asarray(values)
    if values.size and (int(values.min()) < low or int(values.max()) >= high):
        raise DataError(
            f"draws.{name} reaches from {values.min()} to {values.max()}, valid are {low} to {high - 1}"
        )
