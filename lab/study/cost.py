"""What a run costs: floating-point operations of the teacher and of the tower, counted by PyTorch.

The backward pass of a frozen network is counted as one forward pass, that of a trained one as two.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diva_rs.captions import Judgements
from diva_rs.diffusion import Teacher
from diva_rs.recipes.recipe import Recipe
from lab.benchmarks.flops import counted
from lab.study.arms import Arm
from lab.study.data import TrainingImages

COSTS = {
    "steps": "steps",
    "teacher_gflops": "teacher, GFLOPs",
    "tower_gflops": "tower, GFLOPs",
    "cpu_seconds": "processor, s",
}


def cost(
    arm: Arm,
    clip: nn.Module,
    teacher: Teacher | None,
    images: TrainingImages,
    fields: Mapping[str, Any],
) -> dict[str, float]:
    """The figures of `COSTS` but for the time; ``fields`` are those of the run's recipe.

    Conditions count as long as the empty text. What is done once for all runs does not count: the latents of
    the VAE, and `judging`.
    """
    tower = _forward(clip.encode_image, images.pixels[[0]])
    if arm.supervised:
        text = _forward(clip.encode_text, images.dataset.tokenizer([""]))
        seen = fields["steps"] * min(64, len(images.pixels))
        return {"steps": fields["steps"], "teacher_gflops": 0.0, "tower_gflops": seen * (3 * tower + text)}
    recipe, batch = Recipe(**fields), min(fields["batch"], len(images.pixels))
    found = {"steps": 0.0, "teacher_gflops": 0.0, "tower_gflops": 0.0}
    each = 0.0 if teacher is None else predicted(teacher, images)
    for stage in recipe.plan():
        trained = {group.name.partition(":")[0] for group in stage.groups}
        contrast = bool(stage.weights["contrast"])
        # Of each image: under its own condition; with the contrast also that of its view and of the others.
        predictions = recipe.draws * (min(recipe.contrast_group or batch, batch) + 1 if contrast else 1)
        views = (2 if contrast else 1) * (3 if "tower" in trained else 1) + bool(stage.weights["anchor"])
        seen = (stage.steps or 0) * batch
        found["steps"] += stage.steps or 0
        found["teacher_gflops"] += seen * predictions * each * (3 if "denoiser" in trained else 2)
        found["tower_gflops"] += seen * views * tower
    return found


def judging(judged: Judgements, teacher: Teacher, images: TrainingImages) -> float:
    """GFLOPs of the predictions that the judgements were made of, without those of earlier rounds."""
    losses = sum(one.losses.size for sets in judged.evidence.values() for one in sets)
    return losses * predicted(teacher, images)


def predicted(teacher: Teacher, images: TrainingImages) -> float:
    """GFLOPs of one prediction of one image."""
    condition = torch.zeros(1, teacher.text().shape[1], teacher.condition_width)
    return _forward(teacher.denoise, images.latents[:1], torch.tensor([1]), condition)


@torch.no_grad()
def _forward(call: Any, *inputs: Any) -> float:
    # FlopCounterMode has no figure for the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH):
        return counted(lambda: call(*inputs)) / 1e9
