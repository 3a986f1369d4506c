"""The whole step as one graph of plain autograd: every draw of the batch at once, no micro-batch, no cut."""

import copy
from types import SimpleNamespace

import torch
from torch import Tensor

import diva_rs._native as _native
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
        pixels, augmented = inputs.images[: len(images)], inputs.images[len(images) :]
        keys = sample_keys(range(len(images)) if ids is None else ids)
        latents, noise, timesteps, choice, text, _ = inputs.targets
        plain = ReferenceStep(self.clip, self.unet, None, None, text, self.projector, recipe.to_dict())
        schedule = trainer.teacher.schedule
        predictions, targets, contrasts = [], [], []
        for n in range(recipe.draws):
            noisy, target, model_timesteps = schedule.add_noise(latents, noise[:, n], timesteps[:, n])
            chosen = None if choice is None else choice[:, n]
            condition = plain.condition(pixels, chosen)
            prediction = self.unet(noisy, model_timesteps, encoder_hidden_states=condition).sample
            predictions.append(prediction)
            targets.append(target)
            if recipe.contrast:
                group, count = recipe.contrast_group, recipe.contrast_negatives
                others = _native.negatives(recipe.seed, keys, trainer.epoch, n, group, count)

                def predict(rows, conditions, noisy=noisy, steps=model_timesteps):
                    return self.unet(noisy[rows], steps[rows], encoder_hidden_states=conditions).sample

                both = condition, plain.condition(augmented, chosen)
                rows = contrast_rows(predict, *both, target, others, recipe.contrast_temperature)
                contrasts.append(recipe.weights()[n] * rows.mean())
        view = SimpleNamespace(
            tokens=_tokens(self.clip, pixels),
            pooled=_pooled(self.clip, pixels),
            original=_pooled(self.original, pixels).detach(),
            predictions=torch.stack(predictions, 1),
            targets=torch.stack(targets, 1),
            timesteps=timesteps,
            keys=keys,
            epoch=trainer.epoch,
        )
        losses = {}
        if recipe.denoising:
            error = (view.predictions - view.targets).square().mean()
            losses["denoising"] = recipe.denoising * error
        if recipe.contrast:
            losses["contrast"] = recipe.contrast * sum(contrasts)
        if recipe.anchor:
            losses["anchor"] = recipe.anchor * ANCHORS[recipe.anchor_kind](view.pooled, view.original)
        losses.update({name: weight * function(view) for name, (weight, function) in self.terms.items()})
        total = sum(losses.values())
        total.backward()
        modules = {"": self.clip, "projector.": self.projector, "denoiser.": self.unet}
        losses = {name: float(loss.detach()) for name, loss in {"loss": total, **losses}.items()}
        return losses, gradients_of(modules)


def contrast_rows(predict, conditions, augmented, targets, negatives, temperature) -> Tensor:
    """DCR's loss of each image (B,): ``predict(rows, conditions)`` of rows' noisy latents, in one graph."""
    losses = []
    for i, others in enumerate(negatives):
        candidates = torch.cat([conditions[i : i + 1], augmented[i : i + 1], conditions[others]])
        own, view, *apart = predict([i] * len(candidates), candidates).flatten(1)
        candidates = torch.stack([view, targets[i].flatten(), *apart])
        logits = torch.cosine_similarity(own[None], candidates, dim=1) / temperature
        for positive in (0, 1):
            losses.append(torch.nn.functional.cross_entropy(logits[None], torch.tensor([positive])))
    return torch.stack(losses).reshape(-1, 2).mean(1)


def _cosine(ours: Tensor, original: Tensor) -> Tensor:
    return (1 - torch.cosine_similarity(ours, original)).mean()


def _squared(ours: Tensor, original: Tensor) -> Tensor:
    return torch.linalg.vector_norm(ours - original, dim=1).pow(2).mean()


def _kernel(ours: Tensor, original: Tensor) -> Tensor:
    def matrix(x: Tensor) -> Tensor:
        raw = (x @ x.T / x.shape[1] + 1) ** 3
        return raw / torch.outer(raw.diagonal(), raw.diagonal()).sqrt()

    return torch.nn.functional.mse_loss(matrix(ours), matrix(original))


def _both(ours: Tensor, original: Tensor) -> Tensor:
    return _squared(ours, original) + _kernel(ours, original) / 2


ANCHORS = {"cosine": _cosine, "squared": _squared, "kernel": _kernel, "squared+kernel": _both}


def _tokens(clip, pixels: Tensor) -> Tensor:
    return clip.visual.transformer(clip.visual._embeds(pixels))


def _pooled(clip, pixels: Tensor) -> Tensor:
    return clip.visual.ln_post(_tokens(clip, pixels)[:, 0]) @ clip.visual.proj
