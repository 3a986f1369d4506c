"""Native Flux and SD3 transformers against diffusers' own: prediction and gradients at condition and weights.

Every option of diffusers' constructors is in a variant, or refused with the reason
(`test_native_mmdit_refused.py`).
"""

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from builders.changes import error
from builders.dits import through, widened
from builders.mmdits import VARIANTS, build, cls_of, inputs, native_mmdit, theirs, widths

pytestmark = pytest.mark.parity

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
PRECISION = {torch.float64: "fp64", torch.float32: "fp32"}


@pytest.mark.parametrize("model", ["flux", "sd3"])
def test_every_option_of_the_constructor_is_in_a_variant(model: str) -> None:
    options = set(inspect.signature(cls_of(model)).parameters)
    varied = {key for name, fields in VARIANTS.items() if model in name for key in fields}
    assert varied | {"patch_size"} == options  # Flux has packed its patches before


def with_weights(predict: Callable, model: nn.Module, *args: Tensor) -> dict[str, Tensor]:
    """The prediction and the gradients at the condition and, layer by layer, at the weights."""
    model.zero_grad()
    prediction, gradient = through(predict, *args)
    return {"prediction": prediction, "condition": gradient, **by_layer(model)}


def by_layer(model: nn.Module) -> dict[str, Tensor]:
    """Weight and bias together: a bias of keys has no gradient but rounding."""
    layers: dict[str, list[Tensor]] = {}
    for name, param in model.named_parameters():
        grad = torch.zeros_like(param) if param.grad is None else param.grad
        layers.setdefault(name.rpartition(".")[0], []).append(grad.flatten())
    return {name: torch.cat(grads) for name, grads in layers.items()}


def assert_near(ours: dict[str, Tensor], reference: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == reference.keys()
    for name, expected in reference.items():
        found = ours[name]
        assert found.dtype == expected.dtype
        # The text of the last block of two streams alone ends in nothing.
        assert error(found, expected) <= tolerance if expected.any() else not found.any(), name


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_prediction_and_every_gradient(name: str, dtype: torch.dtype) -> None:
    model = build(name, dtype)
    args = inputs(model)
    reference = with_weights(theirs(model), model, *args)
    native = native_mmdit(model, train=PRECISION[dtype])
    assert native.condition_width == sum(widths(model))
    assert native.slots == ["tokens", "pooled"]
    assert_near(with_weights(native.predict, model, *args), reference, TOLERANCE[dtype])
    frozen = through(native_mmdit(model).predict, *args)
    for found, expected in zip(frozen, reference.values(), strict=False):
        assert error(found, expected) <= TOLERANCE[dtype]
    # The condition matters in both slots.
    for columns in reference["condition"].split(widths(model), dim=-1):
        assert float(columns.norm()) > 1e-3


@pytest.mark.parametrize("train", ["fp64", None])
@pytest.mark.parametrize("name", VARIANTS)
def test_checkpointing_leaves_every_gradient_as_it_is(name: str, train: str | None) -> None:
    model = build(name)
    args = inputs(model)
    expected = with_weights(native_mmdit(model, train=train).predict, model, *args)
    weights = torch.randn(args[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for checkpoint in (True, False):
        model.zero_grad()
        found = native_mmdit(model, checkpoint, train=train).gradient(*args, weights)
        named = dict(zip(("prediction", "condition"), found, strict=True))
        assert_near({**named, **by_layer(model)}, expected, 1e-12)
    assert any(param.grad is not None for param in model.parameters()) == (train is not None)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_weights_that_are_frozen_for_a_stage_get_no_gradient(checkpoint: bool) -> None:
    model = build("flux-guidance")
    args = inputs(model)
    expected = with_weights(theirs(model), model, *args)
    for name, param in model.named_parameters():
        param.requires_grad_("proj" in name)
    weights = torch.randn(args[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    model.zero_grad()
    native_mmdit(model, checkpoint, train="fp64").gradient(*args, weights)
    for name, param in model.named_parameters():
        assert (param.grad is None) == ("proj" not in name), name
    found = by_layer(model)
    for name in found:
        if "proj" in name:
            assert error(found[name], expected[name]) <= 1e-10, name


@pytest.mark.parametrize(("size", "length"), [((2, 2), 1), ((2, 14), 77), ((14, 6), 1), ((24, 24), 2)])
@pytest.mark.parametrize("name", ["flux", "sd3-dual"])
def test_any_size_and_any_number_of_positions(name: str, size: tuple[int, int], length: int) -> None:
    model = build(name)
    args = inputs(model, size, length)
    ours = through(native_mmdit(model).predict, *args)
    for found, expected in zip(ours, through(theirs(model), *args), strict=True):
        assert error(found, expected) <= 1e-10


@pytest.mark.parametrize("name", VARIANTS)
def test_bf16_is_nearer_to_float32_than_diffusers_own(name: str) -> None:
    exact, rounded = build(name, torch.float32), build(name, torch.bfloat16)
    noisy, timesteps, condition = inputs(exact)
    reference = through(theirs(exact), noisy, timesteps, condition)
    library = through(theirs(rounded), noisy.bfloat16(), timesteps, condition.bfloat16())
    # As the step has it: inputs in float32, and small weights as they were before they were rounded.
    ours = through(native_mmdit(rounded, exact=exact).predict, noisy, timesteps, condition)
    assert ours[0].dtype == ours[1].dtype == torch.float32
    for found, own, expected in zip(ours, library, reference, strict=True):
        assert 1e-4 < error(found, expected) <= min(2e-2, error(own, expected))
    reference = through(theirs(widened(rounded)), noisy, timesteps, condition)
    ours = through(native_mmdit(rounded).predict, noisy, timesteps, condition)
    for found, own, expected in zip(ours, library, reference, strict=True):
        assert 1e-4 < error(found, expected) <= min(2e-2, error(own, expected))


@pytest.mark.parametrize("name", VARIANTS)
def test_training_in_bf16_is_nearer_to_float32_than_autocast(name: str) -> None:
    model = build(name, torch.float32)
    args = inputs(model)
    reference = with_weights(theirs(model), model, *args)

    def autocast(*args: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return theirs(model)(*args)

    library = with_weights(autocast, model, *args)
    ours = with_weights(native_mmdit(model, train="bf16").predict, model, *args)
    assert {gradient.dtype for gradient in ours.values()} == {torch.float32}
    model.zero_grad()
    weights = torch.randn(args[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    again = native_mmdit(model, True, train="bf16").gradient(*args, weights.float())
    assert_near({"prediction": again[0], "condition": again[1], **by_layer(model)}, ours, 1e-2)
    for found, own, expected in zip(ours.values(), library.values(), reference.values(), strict=True):
        if expected.any():
            assert error(found, expected) <= 1.5 * error(own, expected)
    for found in (ours, library, reference):
        found["weights"] = torch.cat([value.flatten() for key, value in found.items() if key != "prediction"])
    for part in ("prediction", "condition", "weights"):
        assert error(ours[part], reference[part]) <= min(2e-2, error(library[part], reference[part]))


@pytest.mark.parametrize("train", ["fp32", None])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_pass_on_meta_reads_nothing_on_the_host(name: str, train: str | None) -> None:
    model = build(name, torch.float32).to("meta")
    noisy, timesteps, condition = (tensor.to("meta") for tensor in inputs(model))
    leaf = condition.requires_grad_()
    prediction = native_mmdit(model, train=train).predict(noisy, timesteps, leaf)
    assert prediction.device.type == "meta" and prediction.shape == noisy.shape
    prediction.sum().backward()
    assert leaf.grad.device.type == "meta" and leaf.grad.shape == leaf.shape
    native_mmdit(model, True, train=train).gradient(noisy, timesteps, leaf, noisy)


def test_weights_are_shared() -> None:
    model = build("flux")
    native, args = native_mmdit(model), inputs(model)
    before, _ = through(native.predict, *args)
    assert all(param.grad is None for param in model.parameters())
    with torch.no_grad():
        model.single_transformer_blocks[1].attn.to_v.weight.mul_(-2)
    after, _ = through(native.predict, *args)
    assert error(after, before) > 1e-3
    assert error(after, through(theirs(model), *args)[0]) <= 1e-10
