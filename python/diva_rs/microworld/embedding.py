"""The tiny CLIP, and its embeddings of scenes and captions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.optional import require
from diva_rs.microworld.captions import Tokenizer
from diva_rs.microworld.rendering import SIDE

MEAN, STD = 0.5, 0.25  # of the pixels, near enough; the same for all channels


def new_clip(seed: int) -> nn.Module:
    """The tiny CLIP as an ordinary ``open_clip.CLIP`` with fresh weights: 48 pixels, 16 patches.

    >>> sum(p.numel() for p in new_clip(0).parameters()) < 800_000
    True
    """
    open_clip = require("open_clip", extra="open-clip")
    tokenizer = Tokenizer()
    vision = {"image_size": SIDE, "layers": 4, "width": 96, "head_width": 32, "patch_size": 12}
    text = {
        "context_length": tokenizer.context_length,
        "vocab_size": tokenizer.vocab_size,
        "width": 96,
        "heads": 3,
        "layers": 2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip: nn.Module = open_clip.model.CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text)
    # open_clip models have these attributes, and adapters read them.
    clip.visual.image_mean, clip.visual.image_std = (MEAN,) * 3, (STD,) * 3  # type: ignore[union-attr]
    return clip.eval()


@torch.no_grad()
def image_embeddings(
    clip: Any, images: Callable[[Any], Tensor], items: Sequence[Any], batch: int = 256
) -> Tensor:
    """Unit embeddings (N, D) of ``items``, of which ``images`` makes pictures (B, 3, H, W) in [0, 1].

    >>> image_embeddings(new_clip(0), lambda items: torch.rand(len(items), 3, 48, 48), range(3)).shape
    torch.Size([3, 64])
    """
    parts = []
    for start in range(0, len(items), batch):
        pixels = (images(items[start : start + batch]) - MEAN) / STD
        parts.append(clip.encode_image(pixels, normalize=True))
    return torch.cat(parts)


@torch.no_grad()
def text_embeddings(clip: Any, tokens: Tensor, batch: int = 1024) -> Tensor:
    """Unit embeddings (N, D) of token ids (N, L).

    >>> text_embeddings(new_clip(0), Tokenizer()("a photo of a fish")).shape
    torch.Size([1, 64])
    """
    return torch.cat([clip.encode_text(part, normalize=True) for part in torch.split(tokens, batch)])
