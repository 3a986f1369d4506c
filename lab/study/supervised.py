"""The upper bound: the vision tower fine-tuned on captions of the details."""

from typing import Any

import torch
from torch import nn

from diva_rs.microworld.models import MEAN, STD
from lab.pretraining.clip import contrastive
from lab.pretraining.data import batch_numbers
from lab.pretraining.loop import cosine, set_rate
from lab.study.data import TrainingImages


def fine_tune(
    clip: Any, images: TrainingImages, steps: int, seed: int, batch: int = 64, lr: float = 3e-4
) -> list[float]:
    """Train the vision tower of ``clip`` contrastively on short captions that name half of the details.

    The text tower is locked. The named half of the details changes at every use, so that captions differ in
    single words. Returns the losses.
    """
    batch = min(batch, len(images.pixels))
    parameters = list(clip.visual.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    losses = []
    for step in range(steps):
        numbers, epoch = batch_numbers(len(images.pixels), batch, step, seed)
        tokens = images.dataset.tokenizer(images.dataset.captions(numbers, 0.5, epoch))
        with torch.no_grad():
            texts = clip.encode_text(tokens, normalize=True)
        rows = clip.encode_image((images.pixels[numbers] - MEAN) / STD, normalize=True)
        loss = contrastive(rows, texts, clip.logit_scale.detach(), tokens)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        set_rate(optimizer, lr * cosine(steps)(step))
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
