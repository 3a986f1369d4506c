"""What several ranks cost: bytes per step, seconds of an all-reduce, and two ranks against one.

`python benches/ranks.py` needs two cores. The ranks are processes of this machine that talk through gloo; the
numbers say what the code does, not what NCCL does between GPUs. Times are medians, and what is compared takes
turns, as a machine is seldom idle. docs/scaling.md says what follows from them.
"""

import multiprocessing
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import open_clip
import torch

import diva_rs
from diva_rs import Recipe, Trainer
from diva_rs.distributed import Ranks, session
from diva_rs.distributed.together import Together
from diva_rs.feed import Feed

PUBLISHED = ("ViT-L-14", "ViT-L-14-336", "ViT-H-14", "ViT-SO400M-14-SigLIP", "ViT-SO400M-14-SigLIP-384")
SIZES = (1 << 20, 1 << 23, 1 << 26, 1 << 28)  # bytes
BATCH, STEPS = 4, 21


def payload(name: str, width: int = 1024) -> tuple[int, int]:
    """Trained parameters of a published CLIP and its projector, and the bytes that a rank gives to a step."""
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
    """Seconds to add up flat tensors of some sizes: the median of nine."""
    found = {}
    for size in SIZES:
        flat = torch.zeros(size // 4)
        times = []
        for _ in range(9):
            ranks.wait()
            start = time.perf_counter()
            ranks.finish(ranks.add_up(flat))
            times.append(time.perf_counter() - start)
        found[size] = statistics.median(times)
    return found


def steps(ranks: Ranks, batch: int) -> tuple[float, float, int]:
    """Median seconds of a step of ``batch`` images per rank, and the bytes that were sent.

    Buckets leave during the backward pass (the first figure) or after it (the second), step by step in turn.
    """
    trainer = Trainer(student(), teacher(), Recipe(draws=1, density=0.3, seed=ranks.rank))
    together = Together(trainer, ranks)
    given = {"images": torch.rand(batch, 3, 128, 128), "latents": torch.randn(batch, 4, 16, 16)}
    times: dict[bool, list[float]] = {True: [], False: []}
    start = time.perf_counter()
    for number, (_, own, samples) in enumerate(together.rounds(Feed([given] * STEPS, seed=0), epoch=0)):
        overlap = together.reducer.overlap = number % 2 == 0
        together.train(own, samples, enough=batch * ranks.world)
        if number:  # the first one warms up
            times[overlap].append(time.perf_counter() - start)
        start = time.perf_counter()
    together.discard()
    return statistics.median(times[True]), statistics.median(times[False]), together.reducer.sent


def apart(world: int, work: Callable[[Ranks], Any], threads: int = 1) -> Any:
    """What ``work`` gives on rank 0 of ``world`` forked ranks of so many threads each."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def rank(number: int) -> None:
        known = {"RANK": number, "WORLD_SIZE": world, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in known.items()})
        torch.set_num_threads(threads)
        with session() as ranks:
            found = work(ranks)
            if ranks.first:
                theirs.send(found)

    processes = [fork.Process(target=rank, args=(number,)) for number in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit("a rank failed")
    return ours.recv()


def main() -> None:
    """Print the three tables, and how busy the machine was."""
    print("bytes that each rank gives to a step (float32 gradient, three losses)")
    for name in PUBLISHED:
        values, size = payload(name)
        print(f"  {name:26} {values / 1e6:8.1f} M parameters {size / 1e9:6.2f} GB")
    print("\nall-reduce of two ranks over gloo, on this machine")
    for size, seconds in apart(2, all_reduce).items():
        print(f"  {size / 1e6:8.1f} MB {1e3 * seconds:8.2f} ms {size / seconds / 1e9:6.2f} GB/s")
    print(f"\na step of {2 * BATCH} images")
    for threads in (1, 2):
        both = apart(1, lambda ranks: steps(ranks, 2 * BATCH), threads)[:2]
        print(f"  1 rank, {threads} thread{'s' * (threads > 1):1}            {1e3 * sum(both) / 2:8.1f} ms")
    *both, sent = apart(2, lambda ranks: steps(ranks, BATCH))
    for how, seconds in zip(("sent during the backward pass", "sent after it"), both, strict=True):
        print(f"  2 ranks, 1 thread each, {how:30} {1e3 * seconds:8.1f} ms, {sent / 1e6:.1f} MB")
    load = os.getloadavg()[0]
    print(f"\n{os.cpu_count()} cores, load {load:.1f} at the end (these runs themselves are up to 2 of it)")


if __name__ == "__main__":
    main()
