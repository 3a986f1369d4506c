"""One training step against plain PyTorch, as ratios within one run.

Contestants, each doing the same work (B images, N draws, gradients on every CLIP parameter and the
projector):

* official: as the official code computes it. CLIP and VAE once per draw, every patch normalised and
  projected, float32 weights (under autocast in bf16).
* plain: what a strong engineer writes. CLIP and VAE once per step, frozen weights cast to bf16 once.
* diva_rs: `Trainer.accumulate`.

They take turns within one run, so that a change of the machine's speed hits all; medians and ratios are
printed.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

import diva_rs
from diva_rs.demo import small_clip, small_teacher

CHOOSE, DRAWS = 20, 2


class Plain(nn.Module):
    """DIVA's step written with open_clip and diffusers alone."""

    def __init__(self, precision: str, per_draw: bool) -> None:
        super().__init__()
        self.clip, teacher = small_clip(), small_teacher()
        self.per_draw = per_draw
        self.autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")
        frozen = torch.bfloat16 if precision == "bf16" and not per_draw else torch.float32
        self.unet, self.vae = teacher.unet.to(frozen), teacher.vae.to(frozen)
        self.text = teacher.text("")
        self.alphas = teacher.schedule.alphas_cumprod
        self.projector = nn.Linear(128, 128)
        self.frozen = frozen

    def tokens(self, images: Tensor) -> Tensor:
        """(B, 1+P, 128), normalised and projected."""
        visual = self.clip.visual
        x = visual.transformer(visual._embeds(images))
        return visual.ln_post(x) @ visual.proj

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """Posterior mean, scaled."""
        posterior = self.vae.encode((images * 2 - 1).to(self.frozen)).latent_dist
        return posterior.mode().float() * self.vae.config.scaling_factor

    def draw_loss(self, tokens: Tensor, latents: Tensor) -> Tensor:
        """The denoising loss of one draw."""
        batch = len(latents)
        timesteps = torch.randint(0, 1000, (batch,))
        noise = torch.randn_like(latents)
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        choice = torch.rand(batch, tokens.shape[1] - 1).argsort(1)[:, :CHOOSE] + 1
        rows = torch.cat(
            [tokens[:, :1], tokens.gather(1, choice[..., None].expand(-1, -1, tokens.shape[-1]))], 1
        )
        condition = self.projector(rows) + self.text.mean(1, keepdim=True)
        prediction = self.unet(noisy.to(self.frozen), timesteps, condition.to(self.frozen)).sample
        return nn.functional.mse_loss(prediction.float(), noise)

    def step(self, images: Tensor) -> None:
        """Forward and backward over all draws."""
        small = nn.functional.interpolate(images, 64, mode="bicubic", antialias=True)
        for parameter in self.parameters():
            parameter.grad = None
        with self.autocast:
            if self.per_draw:
                for _ in range(DRAWS):
                    (self.draw_loss(self.tokens(small), self.latents(images)) / DRAWS).backward()
            else:
                tokens, latents = self.tokens(small), self.latents(images)
                torch.stack([self.draw_loss(tokens, latents) for _ in range(DRAWS)]).mean().backward()


def contestants(precision: str) -> dict[str, object]:
    """Name -> step function of images."""
    recipe = diva_rs.Recipe(choose=CHOOSE, draws=DRAWS, precision=precision)
    trainer = diva_rs.Trainer(small_clip(), small_teacher(), recipe)

    def ours(images: Tensor) -> None:
        trainer.discard()
        trainer.accumulate(images)

    return {
        "official": Plain(precision, per_draw=True).step,
        "plain": Plain(precision, per_draw=False).step,
        "diva_rs": ours,
    }


def main() -> None:
    """Time the contestants in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    arguments = parser.parse_args()
    images = torch.rand(arguments.batch, 3, 128, 128)
    steps = contestants(arguments.precision)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step(images)
    for _ in range(arguments.rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step(images)
            times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    machine = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"batch {arguments.batch}, {DRAWS} draws, {arguments.precision}, {machine}")
    print(f"{'contestant':<12}{'median ms':>12}{'min ms':>10}{'max ms':>10}{'diva_rs is':>14}")
    for name, values in times.items():
        ratio = medians[name] / medians["diva_rs"]
        figures = [medians[name] * 1e3, min(values) * 1e3, max(values) * 1e3]
        print(f"{name:<12}{figures[0]:>12.1f}{figures[1]:>10.1f}{figures[2]:>10.1f}{ratio:>13.2f}x")


if __name__ == "__main__":
    main()
