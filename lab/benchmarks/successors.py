"""A step of un2CLIP and of DCR's second stage at published size, in bf16 with random weights.

`python -m lab.benchmarks.successors` writes its page in benches/results. Each row runs in a separate process.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
from torch import nn

from diva_rs import Recipe, Teacher, Trainer
from lab.benchmarks.genhancer import WIDTH, tower
from lab.benchmarks.machine import stamp
from lab.benchmarks.memory import forget_peak, resident
from lab.benchmarks.sizes import find
from lab.benchmarks.timing import take_turns

PAGE = Path(__file__).parents[2] / "benches" / "results" / "successors.md"
# The method, and its images; `denoiser_checkpointing`.
ROWS = (("un2clip", 1, True), ("dcr", 2, True))


def unet(side: int, **fields: Any) -> nn.Module:
    """Stable Diffusion 2.1's UNet in bf16."""
    model: nn.Module = diffusers.UNet2DConditionModel(
        **{**find("published").unet, "sample_size": side, **fields}
    )
    return model.to(torch.bfloat16)


def scheduler(**fields: Any) -> Any:
    """Stable Diffusion's noise schedule."""
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return diffusers.DDPMScheduler(**betas, **fields)


def un2clip(checkpoint: bool) -> tuple[Trainer, int]:
    """The whole tower through Stable unCLIP, and the side of its latents."""
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=None,
        image_encoder=None,
        image_normalizer=StableUnCLIPImageNormalizer(WIDTH),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=None,
        text_encoder=None,
        unet=unet(96, class_embed_type="projection", projection_class_embeddings_input_dim=2 * WIDTH),
        scheduler=scheduler(prediction_type="v_prediction"),
        vae=None,
    )
    recipe = Recipe.named("un2clip-openai-vit-l-14-224").replace(
        precision="bf16", batch=None, denoiser_checkpointing=checkpoint
    )
    return Trainer(tower(), Teacher(pipeline, text_condition=torch.zeros(1, 77, 1024)), recipe), 96


def dcr(checkpoint: bool) -> tuple[Trainer, int]:
    """Stage 2: low-rank updates of the tower by the contrast, and the side of its latents."""
    recipe = Recipe.named("dcr-openai-vit-l-14-224")
    recipe = recipe.replace(
        stages=recipe.stages[1:], steps=None, precision="bf16", batch=None, denoiser_checkpointing=checkpoint
    )
    teacher = Teacher(unet(28), scheduler=scheduler(), text_condition=torch.zeros(1, 77, 1024))
    return Trainer(tower(), teacher, recipe), 28


METHODS: dict[str, Callable[[bool], tuple[Trainer, int]]] = {"un2clip": un2clip, "dcr": dcr}


def measure(method: str, images: int, checkpoint: bool) -> dict[str, float]:
    """Seconds of a step, and GiB before the first one and at the peak, in this process."""
    torch.manual_seed(0)
    trainer, side = METHODS[method](checkpoint)
    batch = {"images": torch.rand(images, 3, 224, 224), "latents": torch.randn(images, 4, side, side)}
    before = resident("VmRSS")
    forget_peak()
    times = take_turns({method: lambda: trainer.step(batch)}, 1, warm=False)[method]
    return {"wall": times.wall[0], "cpu": times.cpu[0], "before": before, "peak": resident("VmHWM")}


def page(found: list[dict[str, float]], machine: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# un²CLIP and DCR at published size",
        "",
        "One step in bf16 with OpenAI's ViT-L/14 at 224 pixels and Stable Diffusion 2.1's UNet, with random",
        "weights and given latents: un²CLIP (96 x 96, the whole tower trains), and stage 2 of DCR (28 x 28,",
        "low-rank updates; B images take B² + B predictions and their backward passes). Made by",
        "`python -m lab.benchmarks.successors`.",
        "",
        f"{machine['date']}, {machine['cpu']} ({' '.join(machine['flags'])}), {machine['threads']} threads,",
        f"{machine['memory_gib']} GiB, torch {machine['torch']}, commit {machine['commit']}. Load of other",
        f"processes: {machine['load']}.",
        "",
        "| method | images | checkpointing | seconds | CPU seconds | GiB before | GiB at the peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for (method, images, checkpoint), figures in zip(ROWS, found, strict=True):
        numbers = [f"{figures[part]:.1f}" for part in ("wall", "cpu", "before", "peak")]
        lines.append(f"| {method} | {images} | {'yes' if checkpoint else 'no'} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every row and write the page."""
    machine, found = stamp(torch.device("cpu")), []
    for row in ROWS:
        command = [sys.executable, "-m", "lab.benchmarks.successors", json.dumps(row)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(row, found[-1], flush=True)
    PAGE.write_text(page(found, machine))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(*json.loads(sys.argv[1]))))
    else:
        main()
