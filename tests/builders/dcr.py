"""DCR's step in plain PyTorch, and a run for `builders.killed` of both stages on the microworld."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import diva_rs
from diva_rs import Recipe
from diva_rs.microworld import Microworld
from diva_rs.microworld.dataset import World


def stages(recipe: Recipe, *steps: int | None, **fields: Any) -> tuple[Any, ...]:
    """The recipe's stages in so many steps each; 0: left out."""
    pairs = zip(recipe.stages, steps, strict=True)
    return tuple(stage.model_copy(update={"steps": n, **fields}) for stage, n in pairs if n != 0)


class Reference:
    """The loss of both stages, with open_clip and diffusers alone."""

    def __init__(self, clip: Any, projector: nn.Module, unet: Any, scheduler: Any, text: Tensor) -> None:
        self.clip, self.projector, self.text = clip, projector, text
        self.unet, self.scheduler = unet.requires_grad_(False), scheduler

    def condition(self, pixels: Tensor) -> Tensor:
        """(B, 77, C): one vector of each image, added to every text token."""
        return self.projector(self.clip.encode_image(pixels))[:, None] + self.text

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        return self.scheduler.get_velocity(latents, noise, t) if velocity else noise

    def first(self, pixels: Tensor, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Stage 1 of the paper: the plain squared error."""
        noisy = self.scheduler.add_noise(latents, noise, t)
        prediction = self.unet(noisy, t, encoder_hidden_states=self.condition(pixels)).sample
        return F.mse_loss(prediction, self.target(latents, noise, t))

    def contrast(
        self, pixels: Tensor, augmented: Tensor, latents: Tensor, noise: Tensor, t: Tensor, group: int
    ) -> Tensor:
        """The contrast: every noisy latent of a group under every condition of it, in one graph."""
        noisy, target = self.scheduler.add_noise(latents, noise, t), self.target(latents, noise, t)
        own, views, losses = self.condition(pixels), self.condition(augmented), []
        for start in range(0, len(pixels), group):
            rows = torch.arange(start, min(start + group, len(pixels)))
            n = len(rows)
            noised, conditions = noisy[rows].repeat_interleave(n, 0), own[rows].repeat(n, 1, 1)
            steps = t[rows].repeat_interleave(n, 0)
            all_pairs = self.unet(noised, steps, encoder_hidden_states=conditions).sample
            unit = F.normalize(all_pairs.flatten(1), dim=1).view(n, n, -1)
            anchors = unit[torch.arange(n), torch.arange(n)]
            positives = [
                self.unet(noisy[rows], t[rows], encoder_hidden_states=views[rows]).sample,
                target[rows],
            ]
            near = torch.stack([(anchors * F.normalize(p.flatten(1), dim=1)).sum(1) for p in positives], 1)
            apart = torch.einsum("id,ijd->ij", anchors, unit)
            apart = apart.masked_fill(torch.eye(n, dtype=torch.bool), -torch.inf)
            every = torch.logsumexp(torch.cat([near, apart], 1) / 0.1, dim=1)
            losses.append(every - near.mean(1) / 0.1)
        return torch.cat(losses).mean()


def run(folder: Path, callbacks: Any = ()) -> None:
    """Both stages on the microworld, with its own CLIP and diffusion model."""
    world = Microworld()
    recipe = Recipe.named("dcr-openai-vit-l-14-224")
    recipe = recipe.replace(stages=stages(recipe, 3, 3, lr=1e-3), image_size=None, batch=4, contrast_group=2)
    recipe = recipe.replace(low_rank=4, checkpoint_every=1, log_every=1)
    data = torch.utils.data.TensorDataset(World("train", 20).images(range(20)))
    loader = torch.utils.data.DataLoader(data, batch_size=2, shuffle=True)
    options: dict[str, Any] = {"output_dir": folder, "callbacks": callbacks, "progress": False}
    diva_rs.post_train(world.clip(), world.teacher(), loader, recipe, **options)
