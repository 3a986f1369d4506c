"""`python -m builders.fused_recap`, with TRITON_INTERPRET=1: the CUDA kernel's numbers, on the CPU.

Prints the number of cases and the largest relative errors of the condition and of a gradient, in float32
against the definition in float64; the sizes are no multiples of a tile.
"""

import copy
import itertools

import torch

from builders import conditions
from diva_rs.native import recap

CASES = {"class": "class", "without-replacement": "random", "bernoulli": "random", "all": "all"}


def fused(case: conditions.Case) -> recap.FusedRecap:
    """The kernel for a case's bridge."""
    eps = None if case.norm is None else case.norm.eps
    patches = case.tokens.shape[1] - 1 if case.recap == "all" else 0
    names = tuple(case.params)
    return recap.FusedRecap(names, eps, case.transposed, case.choice is not None, patches, case.join)


def errors(case: conditions.Case) -> tuple[float, float]:
    """Of the condition, and the largest of the gradients."""
    bridge = case.bridge(fused(case))
    condition, tape = bridge.forward(case.tokens, case.text, case.choice)
    grad = torch.randn_like(condition)
    tokens, params = bridge.backward(tape, grad)
    exact = copy.deepcopy(case)
    for module in (exact.norm, exact.projector):
        if module is not None:
            module.double()
    exact.tokens, exact.text = exact.tokens.double(), exact.text.double()
    exact.proj = None if exact.proj is None else exact.proj.double()
    forward = conditions.relative(condition, exact.reference().detach())
    expected = conditions.gradients(exact, grad.double()).values()
    pairs = zip([tokens, *params], expected, strict=True)
    return forward, max(conditions.relative(found, value) for found, value in pairs)


if __name__ == "__main__":
    torch.manual_seed(0)
    conditions.WIDTH, conditions.CHANNELS = 40, 21
    recap.BLOCKS.update(bm=16, bn=16, bk=16)
    heads = itertools.cycle(conditions.HEADS)
    projectors = itertools.cycle(["linear", "linear-without-bias", "linear"])
    found = [
        errors(conditions.build(kind, join, next(heads), next(projectors), batch, torch.float32))
        for kind, join, batch in itertools.product(CASES, conditions.JOINS, (1, 3))
    ]
    print(len(found), *map(max, zip(*found, strict=True)))
