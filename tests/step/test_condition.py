"""`_native.Bridge` against plain PyTorch with autograd: every recap, join, head and projector, both paths."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor, nn

import diva_rs._native as _native
from builders.conditions import HEADS, JOINS, PROJECTORS, RECAPS, Case, build, gradients, relative

pytestmark = pytest.mark.parity

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}


def run(case: Case, grad: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Condition, gradient of every input, and the gradient of the condition that was sent back."""
    bridge = case.bridge()
    assert bridge.param_names == list(case.params)
    condition, tape = bridge.forward(case.tokens, case.text, case.choice)
    if grad is None:
        generator = torch.Generator().manual_seed(3)
        grad = torch.randn(condition.shape, generator=generator, dtype=torch.float64).to(condition.dtype)
    tokens, params = bridge.backward(tape, grad)
    return condition, {"tokens": tokens, **dict(zip(bridge.param_names, params, strict=True))}, grad


@pytest.mark.parametrize("dtype", LIMITS, ids=["float64", "float32"])
@pytest.mark.parametrize("path", ["fused", "generic"])
@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("recap", RECAPS)
def test_matches_pytorch(recap: str, join: str, path: str, dtype: torch.dtype) -> None:
    for head, projector, text_batch in product(HEADS, PROJECTORS, (1, 3)):
        case = build(recap, join, head, projector, text_batch, dtype, contiguous=path == "fused")
        condition, found, grad = run(case)
        # Against the same numbers in float64, so that the reference's own rounding is not what is measured.
        exact = build(recap, join, head, projector, text_batch, dtype, contiguous=path == "fused")
        exact = replace(
            exact,
            norm=exact.norm and exact.norm.double(),
            proj=None if exact.proj is None else exact.proj.double(),
            projector=exact.projector.double(),
            tokens=exact.tokens.double(),
            text=exact.text.double(),
        )
        label = f"{head}, {projector}, text batch {text_batch}"
        assert condition.dtype == dtype and not condition.requires_grad
        assert relative(condition, exact.reference().detach()) <= LIMITS[dtype], label
        expected = gradients(exact, grad.double())
        assert list(found) == list(expected), label
        for key, value in expected.items():
            assert found[key].dtype == dtype, (label, key)
            assert relative(found[key], value) <= LIMITS[dtype], (label, key)


@pytest.mark.parametrize("contiguous", [True, False], ids=["fused", "generic"])
@pytest.mark.parametrize("recap", RECAPS)
def test_bfloat16_tokens_are_computed_in_the_dtype_of_the_parameters(recap: str, contiguous: bool) -> None:
    case = build(recap, dtype=torch.float32, contiguous=contiguous)
    case.tokens = case.tokens.to(torch.bfloat16)
    case.text = case.text.to(torch.bfloat16)
    condition, found, grad = run(case)
    assert condition.dtype == torch.float32 and found["tokens"].dtype == torch.bfloat16
    wide = build(recap, dtype=torch.float32, contiguous=contiguous)
    wide.tokens, wide.text = case.tokens.float(), case.text.float()
    assert relative(condition, wide.reference().detach()) <= 1e-5
    expected = gradients(wide, grad)
    # The gradient of the tokens is rounded once, to bfloat16's eight bits.
    assert relative(found.pop("tokens"), expected.pop("tokens")) <= 2**-8
    for key, value in expected.items():
        assert relative(found[key], value) <= 1e-5, key


@pytest.mark.parametrize("recap", RECAPS)
def test_bfloat16_parameters_stay_near_float32(recap: str) -> None:
    for head, projector in product(HEADS, PROJECTORS):
        case = build(recap, head=head, projector=projector, dtype=torch.bfloat16)
        condition, found, grad = run(case)
        assert condition.dtype == torch.bfloat16
        exact = build(recap, head=head, projector=projector, dtype=torch.bfloat16)
        exact.norm, exact.projector = exact.norm and exact.norm.float(), exact.projector.float()
        exact.proj = None if exact.proj is None else exact.proj.float()
        exact.tokens, exact.text = exact.tokens.float(), exact.text.float()
        assert relative(condition, exact.reference().detach()) <= 2e-2
        for key, value in gradients(exact, grad.float()).items():
            assert found[key].dtype == torch.bfloat16
            assert relative(found[key], value) <= 2e-2, (head, projector, key)


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("recap", RECAPS)
def test_meta_gives_the_shapes_without_a_host_read(recap: str, join: str) -> None:
    for head, projector, text_batch in product(HEADS, PROJECTORS, (1, 3)):
        case = build(recap, join, head, projector, text_batch)
        condition, found, _ = run(case)
        meta = replace(
            case,
            norm=case.norm and case.norm.to("meta"),
            proj=None if case.proj is None else case.proj.to("meta"),
            projector=case.projector.to("meta"),
            tokens=case.tokens.to("meta"),
            text=case.text.to("meta"),
            choice=None if case.choice is None else case.choice.to("meta"),
        )
        meta_condition, meta_found, _ = run(meta, torch.empty_like(condition, device="meta"))
        assert meta_condition.is_meta and meta_condition.shape == condition.shape
        for key, value in found.items():
            assert meta_found[key].is_meta and meta_found[key].shape == value.shape, key


@pytest.mark.parametrize("contiguous", [True, False], ids=["fused", "generic"])
@pytest.mark.parametrize("recap", RECAPS)
def test_the_number_of_threads_changes_no_bit(recap: str, contiguous: bool) -> None:
    width, joint, channels, patches, batch = 96, 80, 64, 100, 4
    torch.manual_seed(5)
    projector = nn.Sequential(nn.LayerNorm(joint), nn.Linear(joint, 72), nn.GELU(), nn.Linear(72, channels))
    tokens = torch.randn(batch, 1 + patches, width)
    if not contiguous:
        tokens = tokens.transpose(0, 1).contiguous().transpose(0, 1)
    small = build(recap, "mean", dtype=torch.float32)
    case = replace(
        small,
        norm=nn.LayerNorm(width),
        proj=torch.randn(width, joint) / 10,
        projector=projector,
        tokens=tokens,
        text=torch.randn(1, 9, channels),
        choice=None if small.choice is None else torch.randint(-1, patches, (batch, 2, 60)),
    )
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            runs.append(run(case))
    finally:
        torch.set_num_threads(before)
    (condition, grads, _), *others = runs
    for other_condition, other_grads, _ in others:
        assert torch.equal(condition, other_condition)
        for key, value in grads.items():
            assert torch.equal(value, other_grads[key]), key


def test_draws_add_up_in_one_backward() -> None:
    case = build("with-replacement", "add")
    _, together, grad = run(case)
    assert case.choice is not None
    alone = [
        run(replace(case, choice=case.choice[:, draw : draw + 1].contiguous()), grad[:, draw : draw + 1])[1]
        for draw in range(case.choice.shape[1])
    ]
    for key, value in together.items():
        assert relative(value, sum(grads[key] for grads in alone)) <= 1e-10, key


def test_an_empty_slot_holds_the_text_alone_and_passes_no_gradient() -> None:
    case = build("without-replacement", "add")
    case.choice = torch.full_like(case.choice, -1)
    condition, found, grad = run(case)
    assert torch.equal(condition[:, :, 1:], case.text[:, None, 1:5].expand(3, 2, -1, -1))
    assert not found["tokens"][:, 1:].any()
    assert torch.allclose(found["projector.bias"], grad[:, :, 0].sum((0, 1)), rtol=1e-12)


def test_an_empty_choice_leaves_the_class_token() -> None:
    case = build("without-replacement", "none")
    case.choice = case.choice[:, :, :0]
    condition, found, _ = run(case)
    alone, _, _ = run(build("class", "none"))
    assert torch.equal(condition, alone.expand(3, 2, 1, -1))
    assert not found["tokens"][:, 1:].any()


def test_the_parameters_are_shared_with_the_module() -> None:
    case = build("all")
    bridge = case.bridge()
    before, _ = bridge.forward(case.tokens, case.text)
    with torch.no_grad():
        case.projector.bias += 1.0
    after, _ = bridge.forward(case.tokens, case.text)
    assert torch.allclose(after - before, torch.ones_like(after), rtol=1e-12)


def test_autograd_records_nothing_and_grad_mode_is_restored() -> None:
    case = build("all")
    case.tokens.requires_grad_(True)
    with torch.enable_grad():
        condition, found, _ = run(case)
        assert torch.is_grad_enabled()
    assert condition.grad_fn is None and not condition.requires_grad
    assert all(value.grad_fn is None for value in found.values())
    assert case.tokens.grad is None


def test_the_backward_pass_does_not_need_grad_mode():
    projector = {"weight": torch.randn(6, 5), "bias": torch.randn(6)}
    bridge = _native.Bridge(None, None, projector, "all", None, "none")
    tokens, text = torch.randn(2, 4, 5), torch.zeros(1, 1, 6)

    def gradients():
        condition, tape = bridge.forward(tokens, text)
        at_tokens, at_params = bridge.backward(tape, torch.ones_like(condition))
        return [at_tokens, *at_params]

    expected = gradients()
    with torch.no_grad():
        assert all(map(torch.equal, gradients(), expected))
