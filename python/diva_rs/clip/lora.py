"""Low-rank towers: W = W0 + alpha / r * B A in place of each linear layer's W (LoRA, arXiv 2106.09685).

The tower's own tensors hold W, so that it runs as any other, natively or not. A (r, in) and B (out, r) train:
a step's gradient at W is carried to them, and after each update W is computed from W0 again.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diva_rs._base.settings import hint
from diva_rs._base.tensors import fingerprint
from diva_rs.clip.tower import Tower
from diva_rs.clip.wrappers import adapters
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


class Pair(NamedTuple):
    """What trains in place of a matrix."""

    matrix: Matrix
    base: Tensor  # W0
    a: nn.Parameter
    b: nn.Parameter


class LowRank:
    """A and B of every target of a tower, and the way between them and the tower's weights.

    ``parameters`` are A and B by the matrix's name, as ``<name>.lora_A`` (r, in) and ``<name>.lora_B``
    (out, r), and the biases that train.

    A begins uniform in +-1/sqrt(in), as peft's, from ``seed`` alone, and B at zero, so that nothing changes
    before the first step. They have the weights' dtype and device.

    Args:
        targets: globs over the keys of `matrices`; a fused weight's also match with ".q", ".k", ".v" behind.
        bias: whether the biases of the targets' layers train too.
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
        self.pairs: list[Pair] = []
        generator = torch.Generator("cpu").manual_seed(seed)
        with torch.inference_mode(False), torch.no_grad():
            for matrix in _chosen(list(matrices(tower)), targets):
                base = matrix.of(matrix.weight).clone()
                out, width = base.shape
                a = torch.empty(rank, width, dtype=torch.float32, device="cpu")
                a.uniform_(-(width**-0.5), width**-0.5, generator=generator)
                b = base.new_zeros(out, rank)
                self.pairs.append(Pair(matrix, base, nn.Parameter(a.to(base)), nn.Parameter(b)))
        biases = {id(pair.matrix.bias) for pair in self.pairs if bias}
        taken = {id(pair.matrix.weight) for pair in self.pairs} | biases
        named = tower.named_parameters()
        trained = {key: value for key, value in named.items() if id(value) in biases}
        self.parameters: dict[str, nn.Parameter] = self.factors() | trained
        self.others = [value for value in named.values() if id(value) not in taken]
        self._versions = [pair.matrix.weight._version for pair in self.pairs]

    @property
    def scale(self) -> float:
        """Alpha / rank."""
        return self.alpha / self.rank

    def by_key(self) -> dict[str, list[Pair]]:
        """The matrices of each weight, by its key."""
        found: dict[str, list[Pair]] = {}
        for pair in self.pairs:
            found.setdefault(pair.matrix.key, []).append(pair)
        return found

    def weights(self, trained: set[int]) -> set[int]:
        """The ids of the tower's weights whose A or B has an id among ``trained``."""
        return {id(pair.matrix.weight) for pair in self.pairs if trained & {id(pair.a), id(pair.b)}}

    @torch.no_grad()
    def merge(self) -> None:
        """Compute the tower's weights from W0, A and B."""
        for matrix, base, a, b in self.pairs:
            torch.addmm(base, b, a, alpha=self.scale, out=matrix.of(matrix.weight))
        self._versions = [pair.matrix.weight._version for pair in self.pairs]

    @torch.no_grad()
    def check_merged(self) -> None:
        """Raise ConfigError where the caller has changed a weight since `merge`, which would overwrite it."""
        for (matrix, base, a, b), version in zip(self.pairs, self._versions, strict=True):
            if matrix.weight._version == version or base.is_meta:
                continue
            value = torch.addmm(base, b, a, alpha=self.scale)
            if not torch.allclose(matrix.of(matrix.weight), value, rtol=1e-5, atol=1e-6):
                raise ConfigError(
                    f"{matrix.key} has other values than the trainer gave it, which low_rank would "
                    "overwrite: load the weights first, then make the trainer"
                )

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

    def freeze(self, frozen: bool = True) -> None:
        """Turn the gradients of the tower's other parameters off, or on again."""
        for parameter in self.others:
            parameter.requires_grad_(not frozen)

    def values(self) -> dict[int, Tensor]:
        """The id of each target's weight -> its value, computed from W0, A and B by autograd.

        Raises ConfigError where a gradient has reached a weight and not A and B.
        """
        found: dict[int, Tensor] = {}
        for pair in self.pairs:
            if pair.matrix.weight.grad is not None:
                raise ConfigError(
                    f"{pair.matrix.key} has a gradient, which A and B do not get: set CLIP's gradients to "
                    "None first, checkpoint with use_reentrant=False, and add no loss that runs CLIP itself"
                )
        for pairs in self.by_key().values():
            weight, transposed = pairs[0].matrix.weight, pairs[0].matrix.transposed
            whole, end, parts = weight.detach().T if transposed else weight.detach(), 0, []
            for matrix, base, a, b in pairs:
                parts += [whole[end : matrix.start], torch.addmm(base, b, a, alpha=self.scale)]
                end = matrix.start + matrix.rows
            value = torch.cat([*parts, whole[end:]])
            found[id(weight)] = value.T if transposed else value
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> "LowRank":
        copied = copy.copy(self)
        memo |= {id(pair.base): pair.base for pair in self.pairs}  # never changed, and shared
        own = (self.pairs, self.parameters, self.others)
        copied.pairs, copied.parameters, copied.others = copy.deepcopy(own, memo)
        return copied

    def factors(self) -> dict[str, nn.Parameter]:
        """A and B of every matrix, by name."""
        found: dict[str, nn.Parameter] = {}
        for matrix, _, a, b in self.pairs:
            found |= {f"{matrix.name}.lora_A": a, f"{matrix.name}.lora_B": b}
        return found

    def facts(self) -> dict[str, Any]:
        """What A and B belong to: alpha, and a fingerprint of it and every W0."""
        named = [(pair.matrix.name, pair.base) for pair in self.pairs]
        alpha = torch.tensor([self.alpha], dtype=torch.float32, device="cpu")
        return {"alpha": self.alpha, "start": fingerprint([*named, ("alpha", alpha)])}

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


class Call(nn.Module):
    """A function of images that runs ``module``, for `torch.func.functional_call`."""

    def __init__(self, module: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, images: Tensor) -> Tensor:
        """The function's result."""
        return self.function(images)

    def on(self, values: Mapping[int, Tensor], images: Tensor) -> Tensor:
        """The result with these values, by id, in place of parameters."""
        named = {name: values[id(p)] for name, p in self.named_parameters() if id(p) in values}
        result: Tensor = torch.func.functional_call(self, named, (images,))
        return result


def matrices(tower: Tower) -> Iterator[Matrix]:
    """The weights of the tower's linear layers and its projection that train; fused ones in parts."""
    for path in adapters(tower.module):
        raise ConfigError(
            f"{tower.prefix}{path} has an adapter already: train that one, without low_rank, or merge it "
            "first (peft: model.merge_and_unload())"
        )
    biases: dict[int, Any] = {} if tower.proj is None else {id(tower.proj): None}
    for module in tower.module.modules():
        # `in_proj_bias`: nn.MultiheadAttention, and open_clip's own attention.
        if isinstance(module, nn.Linear) or hasattr(module, "in_proj_bias"):
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
