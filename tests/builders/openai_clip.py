"""A stand-in with the layout of OpenAI's `clip` package, which is not on PyPI under a name of its own.

Module names, parameter names and the order of operations are those of clip/model.py: blocks run
sequence-first (LND), the vision transformer normalises and projects the class token alone, and has no
method that stops before that. That the stand-in is faithful is itself tested: open_clip's converter of
OpenAI checkpoints takes its state dict, and the two give the same embedding.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int, mask: Tensor | None = None) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        layers = [
            ("c_fc", nn.Linear(width, 4 * width)),
            ("gelu", QuickGELU()),
            ("c_proj", nn.Linear(4 * width, width)),
        ]
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ln_2 = nn.LayerNorm(width)
        self.attn_mask = mask

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        mask = None if self.attn_mask is None else self.attn_mask.to(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, mask: Tensor | None = None) -> None:
        super().__init__()
        self.width, self.layers = width, layers
        self.resblocks = nn.Sequential(*(ResidualAttentionBlock(width, heads, mask) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class VisionTransformer(nn.Module):
    def __init__(self, resolution: int, patch: int, width: int, layers: int, heads: int, out: int) -> None:
        super().__init__()
        self.input_resolution, self.output_dim = resolution, out
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((resolution // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, out))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)  # (B, W, h, w)
        x = x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)  # (B, P, W)
        first = self.class_embedding + torch.zeros_like(x[:, :1])
        x = self.ln_pre(torch.cat([first, x], dim=1) + self.positional_embedding)
        x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        return self.ln_post(x[:, 0, :]) @ self.proj


class CLIP(nn.Module):
    """The full model; vision heads are width // 64 in the original, which its loaders take for granted."""

    def __init__(
        self,
        embed: int = 24,
        resolution: int = 32,
        patch: int = 8,
        width: int = 64,
        layers: int = 2,
        context: int = 8,
        vocabulary: int = 64,
    ) -> None:
        super().__init__()
        self.context_length, self.vocab_size, text = context, vocabulary, 64
        self.visual = VisionTransformer(resolution, patch, width, layers, width // 64, embed)
        mask = torch.full((self.context_length, self.context_length), float("-inf")).triu(1)
        self.transformer = Transformer(text, 1, 1, mask)
        self.token_embedding = nn.Embedding(self.vocab_size, text)
        self.positional_embedding = nn.Parameter(torch.randn(self.context_length, text))
        self.ln_final = nn.LayerNorm(text)
        self.text_projection = nn.Parameter(torch.randn(text, embed))
        self.logit_scale = nn.Parameter(torch.zeros([]))

    def encode_image(self, image: Tensor) -> Tensor:
        return self.visual(image.type(self.visual.conv1.weight.dtype))

    def encode_text(self, text: Tensor) -> Tensor:
        x = self.token_embedding(text) + self.positional_embedding
        x = self.ln_final(self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2))
        return x[torch.arange(x.shape[0]), text.argmax(dim=-1)] @ self.text_projection
