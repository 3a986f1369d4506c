"""What a judged contrast set costs, in operations and in time: `python -m lab.benchmarks.judging`."""

from collections.abc import Sequence

import torch
from torch import Tensor

import diva_rs
from diva_rs.captions import ContrastSet, Judge
from lab.benchmarks.flops import counted
from lab.benchmarks.machine import stamp
from lab.benchmarks.models import Models
from lab.benchmarks.sizes import Size, find
from lab.benchmarks.timing import take_turns

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


def seconds(size: Size, side: int, rounds: int = 2) -> dict[str, float]:
    """CPU seconds in bf16, natively: "judged", two draws of one image under two captions, and "feedback", the
    denoiser forward and backward to the condition for two draws.

    >>> sorted(seconds(find("tiny"), 8, rounds=1))
    ['feedback', 'judged']
    """
    models = Models(size, "bf16").only_what_is_needed()
    teacher = diva_rs.Teacher(models.unet, vae=models.vae, scheduler=models.scheduler)
    latents = torch.randn(1, size.latent_shape[0], side, side)
    judge = Judge(teacher, draws=2, encode=lambda texts: models.text.expand(len(texts), -1, -1))
    sets = [[ContrastSet("colour", ("a red car", "a blue car"), ("red", "blue"))]]
    condition = models.text.repeat(2, 1, 1).requires_grad_()
    noisy, timesteps = latents.repeat(2, 1, 1, 1), torch.tensor([100, 900])
    network = diva_rs.native.native_denoiser(teacher)

    def feedback() -> tuple[Tensor, ...]:
        return torch.autograd.grad(network.predict(noisy, timesteps, condition).sum(), condition)

    times = take_turns(
        {"judged": lambda: judge.losses(latents, [0], sets, range(2)), "feedback": feedback}, rounds
    )
    return {name: min(each.cpu) for name, each in times.items()}


def timed(size: Size, sides: Sequence[int]) -> str:
    """`seconds` as Markdown."""
    lines = ["| latents | two captions, two draws | DIVA's two draws |", "|---|---|---|"]
    for side in sides:
        found = seconds(size, side)
        lines.append(f"| {side}x{side} | {found['judged']:.1f} | {found['feedback']:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    machine, size = stamp(torch.device("cpu")), find("published")
    print(table(size, (64, 32)))
    print(f"\n{machine['cpu']} ({' '.join(machine['flags'])}), {machine['threads']} threads, CPU seconds:\n")
    print(timed(size, (64, 32)))
