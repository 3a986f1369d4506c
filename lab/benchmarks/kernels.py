"""Recap with condition assembly, and draws, each against plain PyTorch."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import diva_rs._native as _native
from diva_rs.step.draws import DrawPlan
from lab.benchmarks.timing import take_turns


@dataclass(frozen=True)
class Shape:
    """Sizes of a vision tower's tokens, of the choice among them, and of the condition."""

    name: str
    patches: int
    choose: int
    width: int
    embed: int
    condition: int = 1024


SHAPES = (
    Shape("ViT-L-14 at 224", 256, 76, 1024, 768),  # OpenAI's
    Shape("ViT-H-14 at 378", 729, 364, 1280, 1024),  # DFN's
)
TINY = (Shape("tiny", 16, 5, 32, 20, 24),)


class Bridges:
    """Three ways from tokens (B, 1 + P, W) to the condition (B, N, 1 + k, C) and back.

    "indexed last" normalises and projects all tokens and then chooses; "indexed first" chooses before;
    "ours" is the native bridge. Text is one vector added to each. Backward gives the gradient of the tokens,
    the norm, CLIP's projection and the projector.
    """

    def __init__(self, shape: Shape, batch: int, draws: int, device: str = "cpu") -> None:
        torch.manual_seed(0)
        b, n, k = batch, draws, shape.choose
        with torch.device(device):
            self.tokens = torch.randn(b, 1 + shape.patches, shape.width)
            self.choice = torch.randint(0, shape.patches, (b, n, k))
            self.text = torch.randn(1, 77, shape.condition)
            self.gradient = torch.randn(b, n, 1 + k, shape.condition)
            self.norm = nn.LayerNorm(shape.width)
            self.proj = nn.Parameter(torch.randn(shape.width, shape.embed) * shape.width**-0.5)
            self.projector = nn.Linear(shape.embed, shape.condition)
        self.draws = n
        self.bridge = _native.Bridge(
            (self.norm.weight, self.norm.bias, self.norm.eps),
            (self.proj, False),
            dict(self.projector.named_parameters()),
            "random",
            None,
            "mean",
        )
        named = {"norm.weight": self.norm.weight, "norm.bias": self.norm.bias, "proj": self.proj}
        named |= {f"projector.{name}": value for name, value in self.projector.named_parameters()}
        self.parameters: list[Any] = [named[name] for name in self.bridge.param_names]

    def chosen(self, tokens: Tensor) -> Tensor:
        """(B, N, 1 + k, ...) by plain indexing."""
        rows = torch.arange(len(tokens), device=tokens.device)[:, None, None].expand_as(self.choice)
        first = tokens[:, None, :1].expand(-1, self.draws, -1, -1)
        return torch.cat([first, tokens[:, 1:][rows, self.choice]], dim=2)

    def head(self, tokens: Tensor) -> Tensor:
        normalised: Tensor = self.norm(tokens)
        return normalised @ self.proj

    def plain(self, first: bool) -> tuple[Tensor, list[Tensor]]:
        tokens = self.tokens.detach().requires_grad_()
        features = self.head(self.chosen(tokens)) if first else self.chosen(self.head(tokens))
        condition = self.projector(features) + self.text.mean(1, keepdim=True)
        given = [tokens, *self.parameters]
        at_tokens, *others = torch.autograd.grad(condition, given, self.gradient)
        return at_tokens, others

    def ours(self) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad():
            _, tape = self.bridge.forward(self.tokens, self.text, self.choice)
            return self.bridge.backward(tape, self.gradient)

    def ways(self) -> dict[str, Any]:
        """Name -> a call that returns the gradients."""
        return {
            "indexed last": partial(self.plain, False),
            "indexed first": partial(self.plain, True),
            "ours": self.ours,
        }


def recap(
    rounds: int, device: str = "cpu", shapes: tuple[Shape, ...] = SHAPES, batch: int = 16
) -> dict[str, Any]:
    """Seconds of one draw forward and backward for each shape, in float32."""
    found: dict[str, Any] = {"batch": batch, "shapes": {}}
    for shape in shapes:
        times = take_turns(Bridges(shape, batch, 1, device).ways(), rounds, torch.device(device))
        found["shapes"][shape.name] = {
            "patches": shape.patches,
            "choose": shape.choose,
            "contestants": {name: t.to_dict() for name, t in times.items()},
        }
    return found


def draws(
    rounds: int, batch: int = 64, number: int = 2, patches: int = 256, choose: int = 76
) -> dict[str, Any]:
    """Seconds to draw timesteps, noise (4 x 64 x 64) and tokens of a batch: ours, and torch's."""
    latent = (4, 64, 64)
    plan = DrawPlan(0, number, latent, patches, choose=choose, replacement=True)
    lead = (batch, number)

    def plain() -> tuple[Tensor, ...]:
        return (
            torch.randint(0, 1000, lead),
            torch.randn(*lead, *latent),
            torch.randint(0, patches, (*lead, choose)),
        )

    times = take_turns({"torch": plain, "ours": partial(plan.draw, range(batch))}, rounds)
    return {
        "batch": batch,
        "draws": number,
        "contestants": {name: t.to_dict() for name, t in times.items()},
    }
