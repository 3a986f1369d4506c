"""Low-rank towers: W = W0 + alpha / r * B A in place of each linear layer's W (LoRA, arXiv 2106.09685).

The tower's own tensors hold W, so that it runs as any other, natively or not. A (r, in) and B (out, r) train:
a step's gradient at W is carried to them, and after each update W is computed from W0 again.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diva_rs._base.settings import hint
from diva_rs._base.tensors import fingerprint
from diva_rs.clip.tower import Tower
from diva_rs.errors import ConfigError, WeightsError


class Matrix(NamedTuple):
    """The weight of a linear layer, or the rows of a fused one that belong to q, k or v."""

    name: str  # the weight's key; of a part with ".q", ".k" or ".v" behind it
    key: str
    weight: nn.Parameter
    bias: nn.Parameter | None
    transposed: bool  # whether the weight is (in, out)
    start: int
    rows: int

    def of(self, tensor: Tensor) -> Tensor:
        """This matrix (out, in) as a view of the weight, or of a tensor of its shape."""
        whole = tensor.detach().T if self.transposed else tensor.detach()
        return whole.narrow(0, self.start, self.rows)


class _Pair(NamedTuple):
    matrix: Matrix
    base: Tensor  # W0
    a: nn.Parameter
    b: nn.Parameter


class LowRank:
    """A and B of every target of a tower, and the way between them and the tower's weights.

    A begins uniform in +-1/sqrt(in), as peft's, from ``seed`` alone, and B at zero, so that nothing changes
    before the first step. They have the weights' dtype and device.

    Args:
        targets: globs over the keys of `matrices`; a fused weight's also match with ".q", ".k", ".v" behind.
        bias: whether the biases of the targets' layers train too.

    >>> from diva_rs.clip import adapt
    >>> low_rank = LowRank(adapt(clip), rank=4, targets=("*mlp*",))
    >>> [(name, tuple(value.shape)) for name, value in low_rank.parameters.items()][:2]
    [('visual.transformer.resblocks.0.mlp.c_fc.weight.lora_A', (4, 32)), (...lora_B', (128, 4))]
    """

    def __init__(
        self,
        tower: Tower,
        rank: int,
        alpha: float | None = None,
        targets: Sequence[str] = ("*",),
        bias: bool = False,
        seed: int = 0,
    ) -> None:
        self.rank, self.alpha = rank, float(rank if alpha is None else alpha)
        self.pairs: list[_Pair] = []
        generator = torch.Generator("cpu").manual_seed(seed)
        with torch.inference_mode(False), torch.no_grad():
            for matrix in _chosen(list(matrices(tower)), targets):
                base = matrix.of(matrix.weight).clone()
                out, width = base.shape
                a = torch.empty(rank, width, dtype=torch.float32, device="cpu")
                a.uniform_(-(width**-0.5), width**-0.5, generator=generator)
                b = base.new_zeros(out, rank)
                self.pairs.append(_Pair(matrix, base, nn.Parameter(a.to(base)), nn.Parameter(b)))
        own = {id(parameter): key for key, parameter in tower.named_parameters().items()}
        biases = [pair.matrix.bias for pair in self.pairs if bias]
        self.parameters: dict[str, nn.Parameter] = {}
        for matrix, _, a, b in self.pairs:
            self.parameters |= {f"{matrix.name}.lora_A": a, f"{matrix.name}.lora_B": b}
        self.parameters |= {own[id(b)]: b for b in biases if b is not None and id(b) in own}

    @property
    def scale(self) -> float:
        """Alpha / rank."""
        return self.alpha / self.rank

    def weights(self, trained: Collection[int]) -> set[int]:
        """The ids of the tower's weights whose A or B has an id among ``trained``."""
        return {id(pair.matrix.weight) for pair in self.pairs if {id(pair.a), id(pair.b)} & {*trained}}

    @torch.no_grad()
    def merge(self) -> None:
        """Compute the tower's weights from W0, A and B."""
        for matrix, base, a, b in self.pairs:
            torch.addmm(base, b, a, alpha=self.scale, out=matrix.of(matrix.weight))

    @torch.no_grad()
    def pull(self) -> None:
        """Add the gradients at the tower's weights to those of A and B that train, and remove them."""
        for matrix, _, a, b in self.pairs:
            if matrix.weight.grad is None:
                continue
            gradient = matrix.of(matrix.weight.grad)
            if a.requires_grad:
                _add(a, (b.T @ gradient).mul_(self.scale))
            if b.requires_grad:
                _add(b, (gradient @ a.T).mul_(self.scale))
        for pair in self.pairs:
            pair.matrix.weight.grad = None

    def facts(self) -> dict[str, Any]:
        """What A and B mean something with: alpha, and a fingerprint of every W0."""
        bases = ((pair.matrix.name, pair.base) for pair in self.pairs)
        return {"alpha": self.alpha, "start": fingerprint(bases)}

    def check(self, saved: Mapping[str, Any] | None) -> None:
        """Raise WeightsError unless ``saved`` are these facts."""
        own = self.facts()
        saved = saved if isinstance(saved, Mapping) else {}
        if saved.get("alpha") != own["alpha"]:
            raise WeightsError(
                f"low_rank_alpha is {saved.get('alpha')} in the saved state, here {self.alpha}"
            )
        if saved.get("start") != own["start"]:
            raise WeightsError(
                f"low_rank={self.rank} needs the CLIP that the saved state began from, and this one has "
                "other weights (training changes it in place): load the model again"
            )


def matrices(tower: Tower) -> Iterator[Matrix]:
    """The weights of the tower's linear layers and its projection, as far as they train; fused ones in parts.

    >>> from diva_rs.clip import adapt
    >>> [matrix.name.removeprefix("visual.") for matrix in matrices(adapt(clip))][:2]
    ['proj', 'transformer.resblocks.0.attn.in_proj_weight.q']
    """
    biases: dict[int, nn.Parameter | None] = {} if tower.proj is None else {id(tower.proj): None}
    for path, module in tower.module.named_modules():
        if callable(getattr(module, "get_base_layer", None)):
            raise ConfigError(
                f"{tower.prefix}{path} has an adapter already: train that one, without low_rank, or merge it "
                "first (peft: model.merge_and_unload())"
            )
        if isinstance(module, (nn.Linear, nn.MultiheadAttention)):
            bias = module.bias if isinstance(module, nn.Linear) else module.in_proj_bias
            biases |= {id(p): bias for p in module.parameters(recurse=False) if p.ndim == 2}
    for key, weight in tower.named_parameters().items():
        if id(weight) not in biases:
            continue
        parts = next((parts for ending, parts in tower.fused.items() if key.endswith(ending)), "")
        transposed = weight is tower.proj and not tower.proj_transposed
        rows = weight.shape[1 if transposed else 0] // max(len(parts), 1)
        for number, part in enumerate(parts or [""]):
            name = f"{key}.{part}" if part else key
            yield Matrix(name, key, weight, biases[id(weight)], transposed, number * rows, rows)


def _chosen(found: Sequence[Matrix], targets: Sequence[str]) -> list[Matrix]:
    """Those that some glob matches; a glob that matches none is a ConfigError with near keys."""
    taken: set[str] = set()
    for glob in targets:
        matched = {matrix.name for matrix in found if any(fnmatchcase(n, glob) for n in matrix[:2])}
        if not matched:
            pieces = {piece: None for matrix in found for piece in matrix.name.split(".")}
            longest = max(glob.replace("*", ".").split("."), key=len)
            known = ", ".join([matrix.name for matrix in found][:8])
            raise ConfigError(
                f"low_rank_targets: {glob!r} matches no matrix of the vision tower{hint(longest, pieces)}. "
                f"There are {len(found)}: {known}{', ...' if len(found) > 8 else ''}"
            )
        taken |= matched
    return [matrix for matrix in found if matrix.name in taken]


def _add(parameter: nn.Parameter, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
