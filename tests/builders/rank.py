"""FeedbackLoss under DistributedDataParallel on two ranks: its draws, losses and gradients."""

from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from builders.small import images, small_clip, small_teacher
from diva_rs import FeedbackLoss, Recipe
from diva_rs.distributed import session

RECIPE = Recipe(precision="fp64", draws=2, density=0.5, anchor=0.1, timesteps="uniform")
SIZES = ((3, 2), (1, 4))  # uneven batches: per call, per rank


def batch_of(rank: int, call: int = 0, size: int = 3) -> torch.Tensor:
    """The images of one rank in one call."""
    return images(size, seed=10 * call + rank, dtype=torch.float64)


def feedback_loss(vision_only: bool = False, low_rank: bool = False) -> FeedbackLoss:
    """The same student and teacher on every rank, and in the test."""
    clip = small_clip(torch.float64)
    recipe = RECIPE.replace(low_rank=2) if low_rank else RECIPE
    feedback = FeedbackLoss(clip.visual if vision_only else clip, small_teacher(torch.float64), recipe)
    if low_rank:
        for pair in feedback.step_modules.low_rank.pairs:
            torch.nn.init.constant_(pair.b, 0.01)  # at zero A has no gradient
    return feedback


def gradients(feedback: FeedbackLoss) -> dict[str, torch.Tensor]:
    """A copy of every gradient, by name."""
    named = {
        **feedback.step_modules.parts["tower"],
        **dict(feedback.projector.named_parameters(prefix="projector")),
    }
    return {name: parameter.grad.clone() for name, parameter in named.items()}


def noise(feedback: FeedbackLoss, batch: torch.Tensor) -> torch.Tensor:
    """The noise that the next call will draw for this batch."""
    inputs = feedback.step_modules.inputs(batch, None, feedback.epoch, None, feedback.samples_seen)
    return inputs.targets[1]


def work(rank: int) -> dict[str, Any]:
    """What this rank sees and computes."""
    seen: dict[str, Any] = {}
    feedback = feedback_loss()
    wrapped = DistributedDataParallel(feedback, find_unused_parameters=True)
    seen["noise"] = noise(feedback, batch_of(rank))
    loss = wrapped(batch_of(rank))
    loss.backward()
    seen["loss"], seen["default ids"] = loss.detach(), gradients(feedback)

    wrapped.zero_grad()
    names = [f"{rank}-{i}.jpg" for i in range(3)]
    wrapped(batch_of(rank), ids=names).backward()
    seen["own ids"] = gradients(feedback)

    # Without the text tower every parameter takes part; a second call would raise if one did not.
    vision = feedback_loss(vision_only=True)
    wrapped = DistributedDataParallel(vision)
    for call in range(2):
        wrapped.zero_grad()
        wrapped(batch_of(rank, call)).backward()
    seen["vision only"] = gradients(vision)

    low_rank = feedback_loss(low_rank=True)
    wrapped = DistributedDataParallel(low_rank, find_unused_parameters=True)
    wrapped(batch_of(rank)).backward()
    seen["low rank"] = gradients(low_rank)

    uneven = feedback_loss()
    seen["uneven"] = []
    for call, sizes in enumerate(SIZES):
        batch = batch_of(rank, call, sizes[rank])
        seen["uneven"].append(noise(uneven, batch))
        uneven(batch)
    return seen


def two_ranks(place: Path, world: int) -> dict[str, Any]:
    """What each of the ranks that `builders.rank_runs` starts sees."""
    with session() as ranks:
        return work(ranks.rank)
