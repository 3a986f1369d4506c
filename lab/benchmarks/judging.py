"""What a judged contrast set costs, in floating-point operations: `python -m lab.benchmarks.judging`."""

from collections.abc import Sequence

import torch

from lab.benchmarks.flops import counted
from lab.benchmarks.models import Models
from lab.benchmarks.sizes import Size, find

DRAWS = 8
SETTLED = 5.8  # draws of a set where sets are settled early: measured on the microworld, of at most 8


def count(size: Size, side: int) -> dict[str, int]:
    """FLOPs of one draw under one caption, of encoding a caption, and of feedback by one draw, on latents of
    ``side``: feedback is the denoiser forward, and backward to the condition.

    >>> found = count(find("tiny"), 8)
    >>> found["draw"] < found["feedback"] < 4 * found["draw"]
    True
    """
    models = Models(size, device="meta")
    noisy = torch.empty(1, size.latent_shape[0], side, side, device="meta")
    timesteps = torch.empty(1, dtype=torch.int64, device="meta")
    condition = models.text.clone().requires_grad_()

    def judged() -> None:
        with torch.no_grad():
            models.unet(noisy, timesteps, models.text)

    def encoded() -> None:
        with torch.no_grad():
            models.text_encoder(models.prompt)

    return {
        "draw": counted(judged),
        "text": counted(encoded),
        "feedback": counted(lambda: models.unet(noisy, timesteps, condition).sample.sum().backward()),
    }


def table(size: Size, sides: Sequence[int], captions: Sequence[int] = (2, 4, 6, 8)) -> str:
    """GFLOP of a judged set of K captions, as Markdown, beside a step of DIVA with its two draws."""
    lines = [
        f"| latents | K | {DRAWS} draws | settled early ({SETTLED} draws) | of it texts | DIVA's two draws |",
        "|---|---|---|---|---|---|",
    ]
    for side in sides:
        found = {name: flops / 1e9 for name, flops in count(size, side).items()}
        for k in captions:
            texts = 2 * k * found["text"]  # each caption in two wordings
            sets = [k * draws * found["draw"] + texts for draws in (DRAWS, SETTLED)]
            cells = [*sets, texts, 2 * found["feedback"]]
            lines.append(f"| {side}x{side} | {k} | " + " | ".join(f"{cell:,.0f}" for cell in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(find("published"), (64, 32)))
