"""DIVA's step in three ways: as the official code computes it, in tuned plain PyTorch, and ours.

All compute the same loss and the same gradients of CLIP's vision tower and of the projector
(`lab/tests/test_bench.py`). None updates the weights: that work is the same for all.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import diva_rs
from diva_rs.data.pixels import IMAGENET_MEAN, IMAGENET_STD, OPENAI_MEAN, OPENAI_STD
from diva_rs.errors import ConfigError
from lab.benchmarks.models import STEPS, Models


class Drawn(NamedTuple):
    """Tensors of N draws for B images: `diva_rs.Draws` on the device."""

    timesteps: Tensor  # (B, N)
    noise: Tensor  # (B, N, C, h, w)
    tokens: Tensor  # (B, N, k)


class Contestant:
    """Runs one step forward and backward; `step` returns the loss and leaves the gradients in ``.grad``."""

    name = ""

    def __init__(self, models: Models) -> None:
        self.models, self.clip = models, models.clip
        self.draws = models.recipe.draws
        self.home = models.text
        self.projector = models.projector()

    def step(self, images: Tensor, draws: diva_rs.Draws | None = None) -> Tensor:
        """The loss of a batch (B, 3, H, W) in [0, 1]; without ``draws`` it makes its own."""
        raise NotImplementedError

    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything that trains, by name."""
        named = {f"visual.{name}": p for name, p in self.clip.visual.named_parameters()}
        return named | {f"projector.{name}": p for name, p in self.projector.named_parameters()}

    def clear(self) -> None:
        """Discard all gradients."""
        for parameter in self.parameters().values():
            parameter.grad = None


class Plain(Contestant):
    """The common part of both ways in plain PyTorch."""

    def __init__(self, models: Models) -> None:
        super().__init__(models)
        self.alphas = models.scheduler.alphas_cumprod.to(models.device)
        self.clip_side = int(models.size.clip["vision_cfg"]["image_size"])
        self.scale = float(models.vae.config.scaling_factor)
        self.mean, self.std = self.channels(OPENAI_MEAN), self.channels(OPENAI_STD)
        self.vae_mean, self.vae_std = self.channels(IMAGENET_MEAN), self.channels(IMAGENET_STD)
        device = "cpu" if models.device.type == "meta" else models.device.type
        bf16 = models.precision == "bf16"
        self.autocast: Callable[[], Any] = lambda: torch.autocast(device, torch.bfloat16, enabled=bf16)

    def channels(self, values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, device=self.models.device).view(1, 3, 1, 1)

    def drawn(self, batch: int, draws: diva_rs.Draws | None) -> Drawn:
        """Draws as PyTorch makes them, or the given ones."""
        if draws is not None:
            return Drawn(*(part.to(self.models.device) for part in draws.tensors(torch.empty(()))))
        lead, device = (batch, self.draws), self.models.device
        return Drawn(
            torch.randint(0, STEPS, lead, device=device),
            torch.randn(*lead, *self.models.size.latent_shape, device=device),
            torch.randint(0, self.models.patches, (*lead, self.models.size.choose), device=device),
        )

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        noisy: Tensor = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        return noisy

    def sequence(self, pixels: Tensor) -> Tensor:
        """CLIP's tokens (B, 1 + P, W) after the last block."""
        visual = self.clip.visual
        tokens: Tensor = visual.transformer(visual._embeds(pixels))
        return tokens


class Official(Plain):
    """The step of github.com/baaivision/DIVA (models/SD_with_OpenAICLIP.py).

    Float32 weights under bf16 autocast: frozen weights are cast at every use. Once per
    step: CLIP's text tower and the VAE. Once per draw: CLIP's vision tower, the teacher's text encoder, a
    softmax over one class, backward.
    """

    name = "official"

    def step(self, images: Tensor, draws: diva_rs.Draws | None = None) -> Tensor:
        self.clear()
        drawn, models = self.drawn(len(images), draws), self.models
        normalised = (images - self.mean) / self.std
        total = torch.zeros((), device=models.device)
        with self.autocast():
            with torch.no_grad():
                classes = F.normalize(self.clip.encode_text(models.prompt).float(), dim=-1)  # (1, D)
            small = F.interpolate(normalised, self.clip_side, mode="bilinear", align_corners=False)
            pixels = (normalised * self.vae_std + self.vae_mean) * 2 - 1
            latents = models.vae.encode(pixels).latent_dist.mode().float() * self.scale
            for n in range(self.draws):
                noise, timesteps = drawn.noise[:, n], drawn.timesteps[:, n]
                features = self.features(small, drawn.tokens[:, n]).float()
                shares = (100 * features[:, 0] @ classes.T).softmax(-1)  # (B, 1): all ones
                text = models.text_encoder(models.prompt).last_hidden_state[:, : features.shape[1]]
                condition = shares[:, :, None] * text + self.projector(features)
                noisy = self.add_noise(latents, noise, timesteps)
                prediction = models.unet(noisy, timesteps, condition).sample.float()
                loss = F.mse_loss(prediction, noise) / self.draws
                torch.autograd.backward(loss)
                total += loss.detach()
        return total

    def features(self, small: Tensor, choice: Tensor) -> Tensor:
        """The class token and the chosen patches, (B, 1 + k, D)."""
        tokens, visual = self.sequence(small), self.clip.visual
        rows = torch.arange(len(tokens), device=choice.device)[:, None].expand_as(choice)
        chosen = torch.cat([tokens[:, :1], tokens[:, 1:][rows, choice]], dim=1)
        projected: Tensor = visual.ln_post(chosen) @ visual.proj
        return projected


class BestPlain(Plain):
    """A tuned step with open_clip and diffusers.

    Frozen weights cast to bf16 once, text encoded once per run, CLIP and VAE once per step, only the chosen
    tokens normalised and projected. `lab.benchmarks.steps.fastest_plain` measures which of ``batched``,
    ``channels_last`` and ``compiled`` help.
    """

    name = "plain"

    def __init__(
        self,
        models: Models,
        batched: bool = False,
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__(models)
        self.dtype, self.batched = models.dtype, batched
        self.layout: Any = torch.channels_last if channels_last else torch.contiguous_format
        self.unet, self.vae = (self.own(module, channels_last) for module in (models.unet, models.vae))
        self.denoise: Any = torch.compile(self.unet) if compiled else self.unet
        self.tokens: Any = torch.compile(self.sequence) if compiled else self.sequence
        self.choices = {"batched": batched, "channels_last": channels_last, "compiled": compiled}

    def own(self, module: Any, channels_last: bool) -> Any:
        """The module, or a copy where dtype or layout must differ: all contestants share the original."""
        if module.dtype == self.dtype and not channels_last:
            return module
        # Cast first, then copy around the casts: memory never holds a second float32 UNet.
        weights = {id(p): p.detach().to(self.dtype) for p in module.parameters()}
        memo: dict[int, Any] = {key: nn.Parameter(p, requires_grad=False) for key, p in weights.items()}
        own = copy.deepcopy(module, memo)
        return own.to(memory_format=self.layout) if channels_last else own

    def step(self, images: Tensor, draws: diva_rs.Draws | None = None) -> Tensor:
        self.clear()
        drawn = self.drawn(len(images), draws)
        normalised = (images - self.mean) / self.std
        small = F.interpolate(normalised, self.clip_side, mode="bilinear", align_corners=False)
        with torch.no_grad():
            pixels = ((normalised * self.vae_std + self.vae_mean) * 2 - 1).to(self.dtype)
            pixels = pixels.contiguous(memory_format=self.layout)
            latents = self.vae.encode(pixels).latent_dist.mode().float() * self.scale
        with self.autocast():
            tokens = self.tokens(small)
        # CLIP's graph runs backward once: the draws accumulate their gradients at the tokens.
        leaf = tokens.detach().requires_grad_()
        passes = [slice(0, self.draws)] if self.batched else [slice(n, n + 1) for n in range(self.draws)]
        total = torch.zeros((), device=self.models.device)
        for part in passes:
            loss = self.loss(leaf, latents, Drawn(*(field[:, part] for field in drawn)))
            torch.autograd.backward(loss)
            total += loss.detach()
        torch.autograd.backward(tokens, leaf.grad)
        return total

    def loss(self, tokens: Tensor, latents: Tensor, drawn: Drawn) -> Tensor:
        """The loss of n draws, whose images follow each other in the batch."""
        n = drawn.timesteps.shape[1]
        noise, timesteps = drawn.noise.flatten(0, 1), drawn.timesteps.flatten()
        noisy = self.add_noise(latents.repeat_interleave(n, 0), noise, timesteps)
        choice = drawn.tokens.flatten(1)[..., None].expand(-1, -1, tokens.shape[-1])
        chosen = tokens[:, 1:].gather(1, choice)  # (B, n * k, W)
        chosen = chosen.view(len(tokens), n, -1, tokens.shape[-1])
        first = tokens[:, None, :1].expand(-1, n, -1, -1)
        with self.autocast():
            visual = self.clip.visual
            features = visual.ln_post(torch.cat([first, chosen], dim=2).flatten(0, 1)) @ visual.proj
            condition = self.projector(features) + self.models.text[:, : features.shape[1]]
        inputs = noisy.to(self.dtype).contiguous(memory_format=self.layout)
        prediction = self.denoise(inputs, timesteps, condition.to(self.dtype)).sample
        return F.mse_loss(prediction.float(), noise) * (n / self.draws)


class Ours(Contestant):
    """`Trainer.accumulate`; with ``cached``, latents come from a cache instead of the VAE.

    Both ways may share a trainer, and with it the denoiser's weights.
    """

    name = "ours"

    def __init__(self, models: Models, cached: bool = False, trainer: diva_rs.Trainer | None = None) -> None:
        super().__init__(models)
        if trainer is None:
            teacher = diva_rs.Teacher(
                models.unet, vae=models.vae, scheduler=models.scheduler, text_condition=models.text.clone()
            )
            trainer = diva_rs.Trainer(models.clip, teacher, models.recipe)
        self.trainer = trainer
        self.projector = self.trainer.projector
        self.cached = cached
        self.latents: Tensor | None = None

    def step(self, images: Tensor, draws: diva_rs.Draws | None = None) -> Tensor:
        self.clear()
        self.trainer.discard()
        batch: dict[str, Any] = {"images": images}
        if self.cached:
            if self.latents is None or len(self.latents) != len(images):
                self.latents = self._encode(images)
            batch["latents"] = self.latents
        return self.trainer.accumulate(batch, draws=draws)

    def _encode(self, images: Tensor) -> Tensor:
        from diva_rs.data.pixels import vae_input

        size = (self.models.size.side, self.models.size.side)
        assert self.trainer.teacher is not None
        return self.trainer.teacher.encode(vae_input(images, self.models.recipe, size))


NAMES = ("official", "plain", "ours", "ours, cached")


def make(name: str, models: Models, **choices: bool) -> Contestant:
    """The contestant of that name."""
    if name == "official":
        return Official(models)
    if name == "plain":
        return BestPlain(models, **choices)
    if name in ("ours", "ours, cached"):
        return Ours(models, cached=name != "ours")
    raise ConfigError(f"contestant {name!r} is unknown: use one of {', '.join(NAMES)}")
