"""DIVA's step in plain PyTorch, as the official code computes it: CLIP, VAE and UNet once per draw, every
patch normalised and projected before any is chosen. Calls open_clip and diffusers, nothing of diva_rs."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype).view(1, 3, 1, 1)


class ReferenceStep:
    """Loss and gradients of one batch; `fields` are the recipe's, as a dict."""

    def __init__(self, clip, unet, vae, scheduler, text, projector, fields):
        self.clip, self.unet, self.vae, self.scheduler = clip, unet, vae, scheduler
        self.text, self.projector, self.fields = text, projector, fields

    def tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """CLIP's first token (B, D) and all local tokens (B, P, D) in the space that the projector reads."""
        visual = self.clip.visual
        if hasattr(visual, "trunk"):
            local = visual.trunk.forward_features(pixels)
            return visual.trunk.forward_head(local), local
        x = visual.transformer(visual._embeds(pixels))
        x = visual.ln_post(x) @ visual.proj
        return x[:, 0], x[:, 1:]

    def condition(self, pixels: Tensor, chosen: Tensor | None) -> Tensor:
        fields = self.fields
        first, local = self.tokens(pixels)
        if fields["condition"] == "random":
            local = torch.stack([sample[index] for sample, index in zip(local, chosen, strict=True)])
        elif fields["condition"] == "window":
            width = fields["window"]
            local = F.avg_pool1d(local.transpose(1, 2), kernel_size=width, stride=width).transpose(1, 2)
        elif fields["condition"] == "class":
            local = local[:, :0]
        visual = self.projector(torch.cat([first[:, None], local], dim=1))
        if fields["class_tokens"] > 1:
            visual = visual.reshape(len(visual), fields["class_tokens"], -1)
        if fields["text"] == "add":
            return visual + self.text[:, : visual.shape[1]]
        if fields["text"] == "broadcast":
            return visual + self.text
        if fields["text"] == "mean":
            return visual + self.text.mean(dim=1, keepdim=True)
        if fields["text"] == "concat":
            return torch.cat([visual, self.text.expand(len(visual), -1, -1)], dim=1)
        return visual

    def clip_pixels(self, images: Tensor, size: tuple[int, int], mean_std) -> Tensor:
        mean, std = (channels(values, images) for values in mean_std)
        if self.fields["resize"] == "bilinear":  # the official order: normalise, then resize
            return F.interpolate((images - mean) / std, size, mode="bilinear", align_corners=False)
        resized = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        return (resized - mean) / std

    def latents(self, images: Tensor, side: int, mean_std) -> Tensor:
        if self.fields["vae_pixels"] == "official":
            mean, std = (channels(values, images) for values in mean_std)
            normalised = F.interpolate(
                (images - mean) / std, (side, side), mode="bilinear", align_corners=False
            )
            imagenet_mean, imagenet_std = (channels(values, images) for values in IMAGENET)
            pixels = (normalised * imagenet_std + imagenet_mean) * 2 - 1
        else:
            pixels = (
                F.interpolate(images, (side, side), mode="bicubic", antialias=True, align_corners=False) * 2
                - 1
            )
        with torch.no_grad():
            return self.vae.encode(pixels).latent_dist.mode() * self.vae.config.scaling_factor

    def run(
        self, images: Tensor, timesteps: Tensor, noise: Tensor, choice: Tensor, mean_std, side: int, size
    ) -> float:
        """Backward once per draw, as the official loop does; returns the weighted loss."""
        draws = timesteps.shape[1]
        weights = self.fields["draw_weights"] or [1 / draws] * draws
        total = 0.0
        for n in range(draws):
            condition = self.condition(self.clip_pixels(images, size, mean_std), choice[:, n])
            latents = self.latents(images, side, mean_std)
            noisy = self.scheduler.add_noise(latents, noise[:, n], timesteps[:, n])
            if self.scheduler.config.prediction_type == "v_prediction":
                target = self.scheduler.get_velocity(latents, noise[:, n], timesteps[:, n])
            else:
                target = noise[:, n]
            prediction = self.unet(noisy, timesteps[:, n], encoder_hidden_states=condition).sample
            error = F.l1_loss if self.fields["loss"] == "l1" else F.mse_loss
            loss = weights[n] * error(prediction, target)
            loss.backward()
            total += float(loss.detach())
        return total


def gradients_of(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """`.grad` of every parameter that has one, by prefixed name."""
    return {
        f"{prefix}{name}": parameter.grad.clone()
        for prefix, module in modules.items()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
