"""Conditions as plain PyTorch computes them, over every kind of recap, join, head and projector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs import _native

BATCH, PATCHES, WIDTH, JOINT, CHANNELS, TEXT, WINDOW = 3, 9, 16, 12, 10, 11, 2

RECAPS = ("class", "without-replacement", "with-replacement", "bernoulli", "window", "all", "text")
JOINS = ("add", "mean", "concat", "none")
HEADS = ("norm+proj", "norm+transposed", "plain-norm+proj", "proj", "norm", "weight-only-norm", "nothing")
PROJECTORS = ("linear", "linear-without-bias", "mlp")


@dataclass
class Case:
    """One bridge with inputs for it. ``params`` are in the order of ``Bridge.param_names``."""

    recap: str
    join: str
    head: str
    norm: nn.LayerNorm | None
    proj: Tensor | None
    projector: nn.Module
    tokens: Tensor
    text: Tensor
    choice: Tensor | None

    @property
    def transposed(self) -> bool:
        return "transposed" in self.head

    @property
    def params(self) -> dict[str, Tensor]:
        norm = {f"norm.{key}": param for key, param in (self.norm.named_parameters() if self.norm else ())}
        proj = {} if self.proj is None else {"proj": self.proj}
        return norm | proj | {f"projector.{key}": param for key, param in self.projector.named_parameters()}

    def bridge(self, kernel: Any = None) -> _native.Bridge:
        kind = {"class": "class", "window": "window", "all": "all", "text": "text"}.get(self.recap, "random")
        return _native.Bridge(
            None if self.norm is None else (self.norm.weight, self.norm.bias, self.norm.eps),
            None if self.proj is None else (self.proj, self.transposed),
            dict(self.projector.named_parameters()),
            kind,
            WINDOW if kind == "window" else None,
            self.join,
            kernel,
        )

    def reference(self) -> Tensor:
        """The definition: project every token, choose, apply the projector, join the text."""
        dtype = next(iter(self.projector.parameters())).dtype
        text = self.text.to(dtype)
        if self.recap == "text":
            return text.expand(self.tokens.shape[0], -1, -1).unsqueeze(1)
        rows = self.tokens.to(dtype)
        if self.norm is not None:
            rows = self.norm(rows)
        if self.proj is not None:
            rows = rows @ (self.proj.T if self.transposed else self.proj)
        batch, patches = rows.shape[0], rows.shape[1] - 1
        if self.recap == "class":
            rows = rows[:, None, :1]
        elif self.recap == "all":
            rows = rows[:, None]
        elif self.recap == "window":
            windows = [
                rows[:, 1 + at * WINDOW : 1 + (at + 1) * WINDOW].mean(1) for at in range(patches // WINDOW)
            ]
            rows = torch.stack([rows[:, 0], *windows], 1)[:, None]
        else:
            assert self.choice is not None
            samples = [
                torch.stack([rows[at, [0, *(1 + choice.clamp(min=0)).tolist()]] for choice in draws])
                for at, draws in enumerate(self.choice)
            ]
            rows = torch.stack(samples)
        rows = self.projector(rows)
        if self.choice is not None:
            kept = torch.cat([torch.ones_like(self.choice[..., :1]), self.choice + 1], -1) > 0
            rows = rows * kept[..., None]
        draws, count = rows.shape[1:3]
        if self.join == "add":
            return rows + text[:, None, :count]
        if self.join == "mean":
            return rows + text.mean(1)[:, None, None]
        if self.join == "concat":
            return torch.cat([rows, text[:, None].expand(batch, draws, -1, -1)], 2)
        return rows


def build(
    recap: str,
    join: str = "mean",
    head: str = "norm+proj",
    projector: str = "linear",
    text_batch: int = 1,
    dtype: torch.dtype = torch.float64,
    contiguous: bool = True,
) -> Case:
    """A case with random weights, the same for the same arguments."""
    generator = torch.Generator().manual_seed(7)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    norm = None
    if "norm" in head:
        affine = not head.startswith("plain")
        norm = nn.LayerNorm(WIDTH, eps=1e-5, elementwise_affine=affine, bias=not head.startswith("weight"))
    proj = normal(WIDTH, JOINT) / 4 if "proj" in head or "transposed" in head else None
    if proj is not None and "transposed" in head:
        proj = proj.T.contiguous()
    width = WIDTH if proj is None else JOINT
    if projector == "mlp":
        module: nn.Module = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 14), nn.GELU(), nn.Linear(14, CHANNELS)
        )
    else:
        module = nn.Linear(width, CHANNELS, bias=projector == "linear")
    for part in (norm, module):
        for param in part.parameters() if part is not None else ():
            param.data = normal(*param.shape) / 2 + (param.dim() == 1) * 0.5
    tokens = normal(BATCH, 1 + PATCHES, WIDTH) + 0.3
    if not contiguous:
        tokens = tokens.transpose(1, 2).contiguous().transpose(1, 2)
    choice = CHOICES[recap](generator) if recap in CHOICES else None
    return Case(recap, join, head, norm, proj, module, tokens, normal(text_batch, TEXT, CHANNELS), choice)


def _without_replacement(generator: torch.Generator) -> Tensor:
    rows = [torch.randperm(PATCHES, generator=generator)[:4] for _ in range(BATCH * 2)]
    return torch.stack(rows).reshape(BATCH, 2, 4)


def _with_replacement(generator: torch.Generator) -> Tensor:
    # 24 picks of 9 patches: every sample has duplicates within a draw and across its three draws.
    return torch.randint(PATCHES, (BATCH, 3, 8), generator=generator)


def _bernoulli(generator: torch.Generator) -> Tensor:
    kept = torch.rand(BATCH, 2, PATCHES, generator=generator) < 0.4
    kept[1, 0] = False  # a draw without any patch
    kept[2, 1] = True
    return torch.where(kept, torch.arange(PATCHES), torch.tensor(-1))


CHOICES = {
    "without-replacement": _without_replacement,
    "with-replacement": _with_replacement,
    "bernoulli": _bernoulli,
}


def gradients(case: Case, grad: Tensor) -> dict[str, Tensor]:
    """Gradient of every input by autograd through ``Case.reference``; zeros where nothing depends on it."""
    inputs = {"tokens": case.tokens, **case.params}
    for tensor in inputs.values():
        tensor.requires_grad_(True)
    condition = case.reference()
    if not condition.requires_grad:
        return {key: torch.zeros_like(tensor) for key, tensor in inputs.items()}
    found = torch.autograd.grad(condition, list(inputs.values()), grad, allow_unused=True)
    return {
        key: torch.zeros_like(tensor) if d is None else d
        for (key, tensor), d in zip(inputs.items(), found, strict=True)
    }


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest error over the largest value; of an expected zero, the largest value found."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    error = (found.double() - expected.double()).abs().max().item()
    return error / (expected.abs().max().item() or 1.0)
