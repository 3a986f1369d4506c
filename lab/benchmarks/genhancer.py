"""A step of GenHancer's first stage; `python -m lab.benchmarks.genhancer` writes its page in benches/results.

The denoiser of 1.3 billion parameters and the projectors train by AdamW, OpenAI's ViT-L/14 is frozen; random
weights, latents of 28 x 28, matrix products in bf16. Each way runs in a process of its own.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
import torch.nn.functional as F  # noqa: N812
import transformers
from torch import Tensor, nn

from diva_rs import Recipe, Stage, Teacher, Trainer
from lab.benchmarks.machine import stamp
from lab.benchmarks.memory import forget_peak, resident
from lab.benchmarks.timing import take_turns

PAGE = Path(__file__).parents[2] / "benches" / "results" / "genhancer.md"
TOKENS, POOLED, WIDTH, CHANNELS, SIDE = 4096, 768, 768, 16, 28
GUIDANCE = 4.0
BATCH = 1
WAYS = {
    "plain PyTorch, autocast": "plain",
    "diva-rs, diffusers' network": "torch",
    "diva-rs, native": "native",
    "diva-rs, native, denoiser_checkpointing": "checkpointing",
}
# What is measured: half of the blocks, and all of them in the way that fits beside AdamW's moments.
PARTS = {1: tuple(WAYS), 2: ("diva-rs, native, denoiser_checkpointing",)}


def denoiser(doubles: int) -> nn.Module:
    """GenHancer's denoiser in diffusers' terms, with random weights: it has 2 double blocks."""
    flux: type[nn.Module] = diffusers.FluxTransformer2DModel
    return flux(num_layers=doubles, num_single_layers=2 * doubles, guidance_embeds=True)


def tower() -> nn.Module:
    """OpenAI's ViT-L/14 with random weights."""
    config = transformers.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=WIDTH,
    )
    clip: nn.Module = transformers.CLIPVisionModelWithProjection(config)
    return clip.eval()


def ours(
    model: nn.Module, backend: Literal["torch", "native"], checkpoint: bool
) -> Callable[[dict[str, Tensor]], Tensor]:
    """The step of a `Trainer`: gradients and the update."""
    recipe = Recipe(
        condition="class",
        text="none",
        projector="mlp",
        draws=1,
        timesteps="logit-normal",
        precision="bf16",
        backend=backend,
        denoiser_checkpointing=checkpoint,
        stages=(Stage(train=("projector", "denoiser"), steps=100, optimizer="adamw"),),
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    trainer = Trainer(tower(), Teacher(model, scheduler=scheduler, guidance=GUIDANCE), recipe)
    return trainer.step


def plain(model: nn.Module) -> Callable[[dict[str, Tensor]], Tensor]:
    """The same step in PyTorch."""
    clip = tower().requires_grad_(False)
    projectors = nn.ModuleDict({"tokens": projector(TOKENS), "pooled": projector(POOLED)})
    trained = [*model.parameters(), *projectors.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    rows = SIDE // 2
    image = diffusers.FluxPipeline._prepare_latent_image_ids(1, rows, rows, "cpu", torch.float32)

    def step(batch: dict[str, Tensor]) -> Tensor:
        latents, pixels = batch["latents"], batch["pixel_values"]
        t = torch.randn(len(latents)).sigmoid()
        noise = torch.randn_like(latents)
        level = t.view(-1, 1, 1, 1)
        noisy = (1 - level) * latents + level * noise
        packed = diffusers.FluxPipeline._pack_latents(noisy, *noisy.shape)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                embedding = clip(pixels).image_embeds
            output = model(
                packed,
                projectors["tokens"](embedding).unsqueeze(1),
                projectors["pooled"](embedding),
                t,
                image,
                torch.zeros(1, 3),
                torch.full((len(t),), GUIDANCE),
                return_dict=False,
            )[0]
        prediction = diffusers.FluxPipeline._unpack_latents(output, SIDE, SIDE, vae_scale_factor=1)
        loss: Any = F.mse_loss(prediction.float(), noise - latents)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        result: Tensor = loss.detach()
        return result

    return step


def projector(width: int) -> nn.Module:
    """LayerNorm, linear, GELU, linear."""
    return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, width), nn.GELU(), nn.Linear(width, width))


def measure(way: str, doubles: int, rounds: int = 2) -> dict[str, float]:
    """Seconds of a step, and GiB before the first one and at the peak, of one way in this process."""
    torch.manual_seed(0)
    model = denoiser(doubles)
    if way == "plain":
        step = plain(model)
    else:
        step = ours(model, "torch" if way == "torch" else "native", way == "checkpointing")
    batch = {
        "pixel_values": torch.rand(BATCH, 3, 224, 224),
        "latents": torch.randn(BATCH, CHANNELS, SIDE, SIDE),
    }
    before = resident("VmRSS")
    forget_peak()
    times = take_turns({way: lambda: step(batch)}, rounds)[way]
    return {"wall": min(times.wall), "cpu": min(times.cpu), "before": before, "peak": resident("VmHWM")}


def page(found: dict[tuple[str, int], dict[str, float]], machine: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# GenHancer's first stage",
        "",
        "One step of stage 1: the denoiser (`FluxTransformer2DModel`, 2 double and 4 single blocks, 1.31",
        "billion parameters) and both projectors train by AdamW from random weights, OpenAI's ViT-L/14 is",
        f"frozen. Latents of 16 x 28 x 28, batch {BATCH}, one draw each, float32 weights under bf16 matrix",
        "products, gradients clipped at 1. Plain PyTorch has AdamW's fused kernel. The faster of two steps",
        "after a first one. Made by `python -m lab.benchmarks.genhancer`.",
        "",
        f"{machine['date']}, {machine['cpu']} ({' '.join(machine['flags'])}), {machine['threads']} threads,",
        f"{machine['memory_gib']} GiB, torch {machine['torch']}, commit {machine['commit']}. Load of other",
        f"processes: {machine['load']}.",
        "",
        "| blocks | way | seconds | CPU seconds | GiB before | GiB at the peak |",
        "|---|---|---|---|---|---|",
    ]
    for (name, doubles), figures in found.items():
        numbers = [f"{figures[part]:.1f}" for part in ("wall", "cpu", "before", "peak")]
        lines.append(f"| {doubles} + {2 * doubles} | {name} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every way and write the page."""
    machine, found = stamp(torch.device("cpu")), {}
    for doubles, names in PARTS.items():
        for name in names:
            command = [sys.executable, "-m", "lab.benchmarks.genhancer", WAYS[name], str(doubles)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            found[name, doubles] = json.loads(done.stdout.splitlines()[-1])
            print(name, found[name, doubles], flush=True)
    PAGE.write_text(page(found, machine))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
