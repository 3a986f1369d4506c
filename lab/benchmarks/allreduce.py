"""The cost of several ranks: bytes per step, seconds of an all-reduce, and two ranks against one.

`python -m lab.benchmarks.allreduce` needs two cores. The ranks are processes of this machine that
communicate through gloo, so the figures do not predict NCCL between GPUs. Times are medians of runs in turns.
See docs/scaling.md.
"""

import os
import statistics
import time
from typing import Any

import open_clip
import torch

import diva_rs
from diva_rs import Recipe, Trainer
from diva_rs.distributed import Ranks
from lab.benchmarks.ranks import apart, steps

PUBLISHED = ("ViT-L-14", "ViT-L-14-336", "ViT-H-14", "ViT-SO400M-14-SigLIP", "ViT-SO400M-14-SigLIP-384")
SIZES = (1 << 20, 1 << 23, 1 << 26, 1 << 28)  # bytes
BATCH, STEPS = 4, 21


def payload(name: str, width: int = 1024) -> tuple[int, int]:
    """Trained parameters of a published CLIP with its projector, and the bytes that a rank sends per step."""
    from diva_rs.clip import adapt

    with torch.device("meta"):
        tower = adapt(open_clip.create_model(name, device="meta"))
    values = sum(parameter.numel() for parameter in tower.named_parameters().values())
    values += (tower.embed_dim + 1) * width
    return values, 4 * (values + 3)


def student() -> Any:
    """A ViT of 21 million parameters."""
    torch.manual_seed(0)
    vision = {"image_size": 128, "layers": 12, "width": 384, "head_width": 64, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 2, "layers": 1}
    return open_clip.model.CLIP(embed_dim=256, vision_cfg=vision, text_cfg=text)


def teacher() -> diva_rs.Teacher:
    """A UNet of one million parameters on 16 x 16 latents."""
    import diffusers

    torch.manual_seed(1)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=64,
    )
    return diva_rs.Teacher(unet, scheduler=diffusers.DDPMScheduler(), text_condition=torch.zeros(1, 8, 64))


def all_reduce(ranks: Ranks) -> dict[int, float]:
    """Seconds of an all-reduce for each size: the median of nine."""
    found = {}
    for size in SIZES:
        flat = torch.zeros(size // 4)
        times = []
        for _ in range(9):
            ranks.wait()
            start = time.perf_counter()
            ranks.add_up(flat)
            times.append(time.perf_counter() - start)
        found[size] = statistics.median(times)
    return found


def timed(ranks: Ranks, batch: int) -> dict[str, Any]:
    """A step of ``batch`` images per rank: see `lab.benchmarks.ranks.steps`."""
    trainer = Trainer(student(), teacher(), Recipe(draws=1, density=0.3, seed=ranks.rank))
    given = {
        "images": torch.rand(batch, 3, 128, 128),
        "latents": torch.randn(batch, 4, 16, 16),
        "ids": list(range(ranks.rank * batch, (ranks.rank + 1) * batch)),
    }
    return steps(ranks, trainer, given, STEPS)


def main() -> None:
    """Print the three tables and the load of the machine."""
    print("bytes that each rank gives to a step (float32 gradient, three losses)")
    for name in PUBLISHED:
        values, size = payload(name)
        print(f"  {name:26} {values / 1e6:8.1f} M parameters {size / 1e9:6.2f} GB")
    print("\nall-reduce of two ranks over gloo, on this machine")
    for size, seconds in apart(2, all_reduce).items():
        print(f"  {size / 1e6:8.1f} MB {1e3 * seconds:8.2f} ms {size / seconds / 1e9:6.2f} GB/s")
    print(f"\na step of {2 * BATCH} images")
    for threads in (1, 2):
        found = apart(1, lambda ranks: timed(ranks, 2 * BATCH), threads)
        print(f"  1 rank, {threads} thread{'s' * (threads > 1):1}   {1e3 * found['seconds']:8.1f} ms")
    found = apart(2, lambda ranks: timed(ranks, BATCH))
    print(f"  2 ranks, 1 thread each {1e3 * found['seconds']:8.1f} ms, {found['sent'] / 1e6:.1f} MB")
    load = os.getloadavg()[0]
    print(f"\n{os.cpu_count()} cores, load {load:.1f} at the end (these runs themselves are up to 2 of it)")


if __name__ == "__main__":
    main()
