"""Renaming of weights between two layouts, as a list of rules that is read in both directions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diva_rs.errors import ShapeError, WeightsError

Reshape = Callable[[list[Tensor]], list[Tensor]]


def _same(tensors: list[Tensor]) -> list[Tensor]:
    return tensors


@dataclass(frozen=True)
class Rule:
    """Some keys of the left layout are some keys of the right one, through reshapes that lose nothing."""

    left: tuple[str, ...]
    right: tuple[str, ...]
    forward: Reshape = _same
    backward: Reshape = _same

    def reversed(self) -> "Rule":
        """The rule from right to left."""
        return Rule(self.right, self.left, self.backward, self.forward)


def same(left: str, right: str) -> Rule:
    """One tensor under two names."""
    return Rule((left,), (right,))


def affine(left: str, right: str) -> list[Rule]:
    """Weight and bias of one layer under two names."""
    return [same(f"{left}.{part}", f"{right}.{part}") for part in ("weight", "bias")]


def transposed(left: str, right: str) -> Rule:
    """A matrix (W, D) that the right layout keeps as the weight (D, W) of an nn.Linear."""
    return Rule((left,), (right,), lambda t: [t[0].T], lambda t: [t[0].T])


def reshaped(
    left: str, right: str, to_left: Callable[[Tensor], Tensor], to_right: Callable[[Tensor], Tensor]
) -> Rule:
    """One tensor that differs in axes of length 1."""
    return Rule((left,), (right,), lambda t: [to_right(t[0])], lambda t: [to_left(t[0])])


def chunked(left: str, right: Sequence[str]) -> Rule:
    """Query, key and value: stacked along axis 0 on the left, tensors of one size on the right."""
    parts = len(right)
    return Rule((left,), tuple(right), lambda t: list(t[0].chunk(parts)), lambda t: [torch.cat(t)])


def joined(left: Sequence[str], right: str) -> Rule:
    """A query and a (key, value) pair on the left, stacked along axis 0 on the right."""

    def apart(tensors: list[Tensor]) -> list[Tensor]:
        rows = tensors[0].shape[0] // 3
        return [tensors[0][:rows], tensors[0][rows:]]

    return Rule(tuple(left), (right,), lambda t: [torch.cat(t)], apart)


def convert(state: Mapping[str, Tensor], rules: Sequence[Rule], target: str) -> dict[str, Tensor]:
    """``state``, by the left names of the rules, under the names of another layout; strict both ways.

    A key without a rule, or one that a rule needs and ``state`` lacks, is an error that names it and
    ``target``, the other layout.

    >>> weights = {"attn.in_proj_bias": torch.arange(6.0)}
    >>> rules = [chunked("attn.in_proj_bias", ("q.bias", "k.bias", "v.bias"))]
    >>> there = convert(weights, rules, "transformers")
    >>> there["k.bias"]
    tensor([2., 3.])
    >>> back = convert(there, [rule.reversed() for rule in rules], "open_clip")
    >>> torch.equal(back["attn.in_proj_bias"], weights["attn.in_proj_bias"])
    True
    """
    rest, found = dict(state), dict[str, Tensor]()
    for rule in rules:
        missing = [key for key in rule.left if key not in rest]
        if missing:
            raise WeightsError(f"this model has no {missing[0]}, which the {target} layout needs")
        try:
            tensors = rule.forward([rest.pop(key) for key in rule.left])
        except (RuntimeError, IndexError) as err:
            raise ShapeError(f"{' and '.join(rule.left)} cannot be rearranged for {target}: {err}") from err
        found.update(zip(rule.right, tensors, strict=True))
    if rest:
        key = sorted(rest)[0]
        more = f" (and {len(rest) - 1} more keys)" if len(rest) > 1 else ""
        raise WeightsError(f"{key}{more} has no place in the {target} layout, which cannot compute it")
    return found
