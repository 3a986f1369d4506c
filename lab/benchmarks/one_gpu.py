"""Two ranks on one GPU: a few steps of a tiny CLIP, then the weights of both ranks are compared.

`torchrun --standalone --nproc_per_node=2 -m lab.benchmarks.one_gpu`. NCCL refuses two ranks on one device in
many of its versions; then gloo is used.
"""

import os
from typing import Any

import torch
import torch.distributed as dist

import diva_rs
from lab.benchmarks.models import Models
from lab.benchmarks.sizes import find


def main() -> None:
    """Train on both ranks, compare, and print one line."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    backend = _backend(device)
    models = Models(find("tiny"), device=str(device))
    images = models.images().repeat(4, 1, 1, 1)
    data = torch.utils.data.TensorDataset(images.cpu())
    sampler: Any = torch.utils.data.DistributedSampler(data, shuffle=False)
    loader = torch.utils.data.DataLoader(data, batch_size=2, sampler=sampler)
    teacher = diva_rs.Teacher(models.unet, models.vae, models.scheduler, models.text)
    diva_rs.post_train(models.clip, teacher, loader, batch=4, steps=2, lr=1e-3, progress=False)
    weight = next(models.clip.visual.parameters()).detach().clone()
    others = [torch.empty_like(weight) for _ in range(dist.get_world_size())]
    dist.all_gather(others, weight)
    same = all(torch.equal(weight, other) for other in others)
    if dist.get_rank() == 0:
        print(f"two ranks on {device} over {backend}: weights {'are equal' if same else 'DIFFER'}")
    dist.destroy_process_group()


def _backend(device: torch.device) -> str:
    """Start the process group: NCCL if it takes two ranks on this device, else gloo."""
    if device.type == "cuda":
        try:
            dist.init_process_group("nccl")
            dist.all_reduce(torch.ones(1, device=device))
            return "nccl"
        except RuntimeError as err:
            print(f"rank {os.environ['RANK']}: NCCL: {str(err).splitlines()[0]}")
            dist.destroy_process_group()
    dist.init_process_group("gloo")
    return "gloo"


if __name__ == "__main__":
    main()
