"""The tiny CLIP, and its embeddings of scenes and captions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.arguments import checked, refused_by, takes
from diva_rs._base.kinds import function, having, model, tensor
from diva_rs._base.optional import require
from diva_rs._base.settings import integer
from diva_rs.microworld.captions import Tokenizer
from diva_rs.microworld.rendering import SIDE

MEAN, STD = 0.5, 0.25  # of the pixels, near enough; the same for all channels
_EMBED, _WIDTH = 64, 96


@takes(seed=integer(0, (1 << 63) - 1))
def new_clip(seed: int) -> nn.Module:
    """The tiny CLIP as an ordinary ``open_clip.CLIP`` with fresh weights: 48 pixels, 16 patches.

    Raises:
        DependencyError: open_clip is not installed.

    >>> sum(p.numel() for p in new_clip(0).parameters()) < 800_000
    True
    """
    open_clip = require("open_clip", extra="open-clip")
    tokenizer = Tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip: nn.Module = open_clip.model.CLIP(
            embed_dim=_EMBED,
            vision_cfg={"image_size": SIDE, "layers": 4, "width": _WIDTH, "head_width": 32, "patch_size": 12},
            text_cfg={
                "context_length": tokenizer.context_length,
                "vocab_size": tokenizer.vocab_size,
                "width": _WIDTH,
                "heads": 3,
                "layers": 2,
            },
        )
    # Where open_clip models keep it, and where adapters look for it.
    clip.visual.image_mean, clip.visual.image_std = (MEAN,) * 3, (STD,) * 3  # type: ignore[union-attr]
    return clip.eval()


@takes(
    clip=model("encode_image"),
    images=function("a function of items that makes their pictures"),
    items=having("a list of items", "__len__", "__getitem__"),
    batch=integer(1),
)
@torch.no_grad()
def image_embeddings(
    clip: Any, images: Callable[[Any], Tensor], items: Sequence[Any], batch: int = 256
) -> Tensor:
    """Unit embeddings (N, D) of ``items``, of which ``images`` makes pictures (B, 3, H, W) in [0, 1].

    >>> image_embeddings(new_clip(0), lambda items: torch.rand(len(items), 3, 48, 48), range(3)).shape
    torch.Size([3, 64])
    """
    parts = []
    with refused_by("the model", "these pictures"):
        for start in range(0, len(items), batch):
            pictures = checked("images(items)", images(items[start : start + batch]), tensor("(B, 3, H, W)"))
            parts.append(clip.encode_image((pictures - MEAN) / STD, normalize=True))
        return torch.cat(parts)


@takes(clip=model("encode_text"), tokens=tensor("(N, L)", whole=True), batch=integer(1))
@torch.no_grad()
def text_embeddings(clip: Any, tokens: Tensor, batch: int = 1024) -> Tensor:
    """Unit embeddings (N, D) of token ids (N, L).

    >>> text_embeddings(new_clip(0), Tokenizer()("a photo of a fish")).shape
    torch.Size([1, 64])
    """
    with refused_by("the model", "these tokens"):
        return torch.cat([clip.encode_text(part, normalize=True) for part in torch.split(tokens, batch)])
