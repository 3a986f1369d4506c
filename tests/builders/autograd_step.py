"""The whole step as one graph of plain autograd: every draw of the batch at once, no micro-batch, no cut."""

import copy
from types import SimpleNamespace

import torch
from torch import Tensor

from builders.reference import ReferenceStep, gradients_of
from diva_rs import Trainer
from diva_rs.step.draws import sample_keys


class AutogradStep:
    """Copies the models of a fresh `trainer` of an open_clip CLIP; ``terms`` are as the trainer's."""

    def __init__(self, trainer: Trainer, terms, train_denoiser: bool = False) -> None:
        self.trainer, self.terms = trainer, terms or {}
        self.clip, self.original = copy.deepcopy(trainer.clip), copy.deepcopy(trainer.clip)
        self.projector, self.unet = copy.deepcopy(trainer.projector), copy.deepcopy(trainer.teacher.unet)
        self.unet.requires_grad_(train_denoiser)

    def run(self, images: Tensor, ids: list[int] | None = None) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Losses by name, and the gradients by the names of `Trainer.parameters`."""
        trainer, recipe = self.trainer, self.trainer.recipe
        inputs = trainer.step_modules.inputs(images, ids, trainer.epoch, None, trainer.samples_seen)
        latents, noise, timesteps, choice, text = inputs.targets
        plain = ReferenceStep(self.clip, self.unet, None, None, text, self.projector, recipe.to_dict())
        schedule = trainer.teacher.schedule
        predictions, targets = [], []
        for n in range(recipe.draws):
            noisy, target, model_timesteps = schedule.add_noise(latents, noise[:, n], timesteps[:, n])
            condition = plain.condition(inputs.images, None if choice is None else choice[:, n])
            prediction = self.unet(noisy, model_timesteps, encoder_hidden_states=condition).sample
            predictions.append(prediction)
            targets.append(target)
        view = SimpleNamespace(
            tokens=_tokens(self.clip, inputs.images),
            pooled=_pooled(self.clip, inputs.images),
            original=_pooled(self.original, inputs.images).detach(),
            predictions=torch.stack(predictions, 1),
            targets=torch.stack(targets, 1),
            timesteps=timesteps,
            keys=sample_keys(range(len(images)) if ids is None else ids),
            epoch=trainer.epoch,
        )
        losses = {}
        if recipe.denoising:
            error = (view.predictions - view.targets).square().mean()
            losses["denoising"] = recipe.denoising * error
        if recipe.anchor:
            apart = 1 - torch.cosine_similarity(view.pooled, view.original)
            losses["anchor"] = recipe.anchor * apart.mean()
        losses.update({name: weight * function(view) for name, (weight, function) in self.terms.items()})
        total = sum(losses.values())
        total.backward()
        modules = {"": self.clip, "projector.": self.projector, "denoiser.": self.unet}
        losses = {name: float(loss.detach()) for name, loss in {"loss": total, **losses}.items()}
        return losses, gradients_of(modules)


def _tokens(clip, pixels: Tensor) -> Tensor:
    return clip.visual.transformer(clip.visual._embeds(pixels))


def _pooled(clip, pixels: Tensor) -> Tensor:
    return clip.visual.ln_post(_tokens(clip, pixels)[:, 0]) @ clip.visual.proj
