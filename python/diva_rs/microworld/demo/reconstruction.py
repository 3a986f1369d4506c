"""What the frozen denoiser makes of noisy images under CLIP's condition: pictures of the feedback itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diva_rs._base.files import replacing
from diva_rs._base.optional import require
from diva_rs.diffusion import Teacher
from diva_rs.recipes.recipe import Recipe
from diva_rs.step.draws import Draws, draw
from diva_rs.step.modules import StepModules

TIMESTEP = 600  # of 1000: more noise than image, so that what is seen again came through the condition
_SHOWN = 8  # images in the picture; the losses are over all


@dataclass(frozen=True)
class View:
    """One way to see the images: the title above, and pictures (N, 3, H, W) in [0, 1]."""

    title: str
    pictures: Tensor


@torch.no_grad()
def views(
    teacher: Teacher,
    vae: Any,
    recipe: Recipe,
    images: Tensor,
    clips: dict[str, tuple[nn.Module, nn.Module]],
) -> list[View]:
    """The images, what the denoiser gets, and what it makes of that in one step under several conditions.

    ``images`` are (N, 3, H, W) in [0, 1]; ``clips`` maps a title to a CLIP and the projector trained for it.
    Every condition gets the same noise and the same choice of tokens.
    """
    one = recipe.replace(draws=1, draw_weights=None, denoiser_batch=None, anchor=0.0, pixels="unit")
    shown, kept = [View("image", images)], float(teacher.schedule.alphas_cumprod[TIMESTEP])
    for title, (clip, projector) in clips.items():
        modules = StepModules(clip, teacher, one)
        modules.projector.load_state_dict(projector.state_dict())
        inputs = modules.inputs(images, None, 0, _draws(teacher, modules, one, len(images)), 0)
        assert inputs.targets is not None
        latents, noise, timesteps, choice, text, _ = inputs.targets
        noisy, target, _ = teacher.schedule.add_noise(latents, noise[:, 0], timesteps[:, 0])
        condition, _ = modules.bridge.forward(modules.tokens(inputs.images), text, choice)
        ways = {title: condition[:, 0]}  # of its one draw
        if len(shown) == 1:
            shown.append(View("with noise", _decoded(vae, noisy)))
            ways = {"text alone": text.expand(len(images), -1, -1), **ways}
        for name, given in ways.items():
            prediction = teacher.denoise(noisy, timesteps[:, 0], given)
            loss = float((prediction - target).square().mean())
            # What a predicted velocity stands for (Salimans and Ho, arXiv 2202.00512, appendix D).
            clean = kept**0.5 * noisy - (1 - kept) ** 0.5 * prediction
            shown.append(View(f"{name}\nloss {loss:.4f}", _decoded(vae, clean)))
    return shown


def write_picture(path: Path, shown: list[View]) -> None:
    """A row of the first images for every view, as a PNG."""
    require("matplotlib", extra="demo")
    from matplotlib.figure import Figure

    rows = min(_SHOWN, len(shown[0].pictures))
    figure = Figure(figsize=(1.25 * rows + 1.5, 1.3 * len(shown)), layout="constrained")
    for row, view in enumerate(shown):
        for place in range(rows):
            axes = figure.add_subplot(len(shown), rows, row * rows + place + 1)
            axes.imshow(view.pictures[place].permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if place == 0:
                axes.set_ylabel(view.title, rotation=0, ha="right", va="center", fontsize=9)
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=100)


def _draws(teacher: Teacher, modules: StepModules, recipe: Recipe, count: int) -> Draws:
    patches, latent_shape = modules.tower.patches, teacher.latent_shape
    chosen = recipe.chosen(patches) or None
    drawn = draw(0, list(range(count)), 1, latent_shape=latent_shape, patches=patches, choose=chosen)
    return Draws(np.full_like(drawn.timesteps, TIMESTEP), drawn.noise, drawn.tokens)


def _decoded(vae: Any, latents: Tensor) -> Tensor:
    pictures: Tensor = vae.decode(latents / vae.config.scaling_factor).sample
    return (pictures / 2 + 0.5).clamp(0, 1)
