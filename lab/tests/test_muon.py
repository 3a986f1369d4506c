"""Muon against torch.optim.Muon, whose products are in bfloat16."""

import pytest
import torch

from lab.pretraining.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(96, 96), (288, 96), (96, 384), (5, 3)])
def test_steps_are_those_of_torch_up_to_bfloat16(shape):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    ours, theirs = (torch.nn.Parameter(start.float().clone()) for _ in range(2))
    pair = (
        (ours, Muon([ours], lr=0.02)),
        (theirs, torch.optim.Muon([theirs], lr=0.02, momentum=0.95, weight_decay=0.0)),
    )
    for _ in range(5):
        gradient = torch.randn(shape, generator=generator)
        for matrix, optimizer in pair:
            matrix.grad = gradient.clone()
            optimizer.step()
    moved = theirs - start.float()
    assert (ours - theirs).norm() < 2e-2 * moved.norm() and moved.norm() > 0


def test_in_float64_it_is_the_polynomial_of_the_singular_values():
    """Five times s -> a s + b s^3 + c s^5, from s over the norm."""
    matrix = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    singular = singular / matrix.norm()
    for _ in range(5):
        singular = 3.4445 * singular - 4.7750 * singular**3 + 2.0315 * singular**5
    assert torch.allclose(orthogonal(matrix), left @ torch.diag(singular) @ right, rtol=0, atol=1e-12)


def test_a_convolution_is_a_matrix_of_its_outputs():
    kernel = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(2))
    flat, whole = torch.nn.Parameter(kernel.flatten(1).clone()), torch.nn.Parameter(kernel.clone())
    for matrix in (flat, whole):
        matrix.grad = matrix.detach().sin()
        Muon([matrix], lr=0.1).step()
    assert torch.equal(whole.flatten(1), flat) and not torch.equal(whole, kernel)


def test_a_matrix_without_gradient_stays():
    matrix = torch.nn.Parameter(torch.eye(3))
    Muon([matrix], lr=1.0).step()
    assert torch.equal(matrix, torch.eye(3))
