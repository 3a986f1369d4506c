"""The native DiT against diffusers' own: prediction and gradient at the condition.

Every option of diffusers' constructor is in a variant, or refused with the reason
(`test_native_dit_reasons.py`).
"""

import inspect
from pathlib import Path

import diffusers
import pytest
import torch

from builders.changes import error, random_weights
from builders.clips import clip_variants
from builders.diffusion import tiny_dit
from builders.dits import (
    LABELS,
    VARIANTS,
    build,
    inputs,
    native_dit,
    theirs,
    through,
    widened,
)
from diva_rs import Recipe, Teacher, Trainer
from diva_rs.native import NotNative

pytestmark = pytest.mark.parity

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
# The one value that diffusers itself accepts.
FIXED = {"norm_type"}


def test_every_option_of_the_constructor_is_in_a_variant() -> None:
    options = set(inspect.signature(diffusers.DiTTransformer2DModel).parameters)
    varied = {key for changes in VARIANTS.values() for key in changes}
    assert varied | FIXED == options
    own = inspect.signature(diffusers.DiTTransformer2DModel).parameters
    tiny = tiny_dit().config
    for name, changes in VARIANTS.items():
        assert all(value != tiny[key] for key, value in changes.items()), name
    assert own["norm_type"].default == "ada_norm_zero"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("name", VARIANTS)
def test_prediction_and_gradient_at_the_condition(name: str, label: str, dtype: torch.dtype) -> None:
    dit = build(name, dtype)
    native, args = native_dit(dit, label), inputs(dit)
    assert native.condition_width == dit.inner_dim
    prediction, gradient = through(native.predict, *args)
    expected, expected_gradient = through(theirs(dit, label), *args)
    assert prediction.shape == args[0].shape and prediction.dtype == gradient.dtype == dtype
    assert error(prediction, expected) <= TOLERANCE[dtype]
    assert error(gradient, expected_gradient) <= TOLERANCE[dtype]
    # The condition matters, and every position of it alike: a mean.
    assert float(expected_gradient.norm()) > 1e-3
    assert error(gradient[:, 1:], gradient[:, :1].expand_as(gradient[:, 1:])) <= 1e-6


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("name", ["learned-variance", "affine", "one-block"])
def test_checkpointing_leaves_prediction_and_gradient_as_they_are(name: str, label: str) -> None:
    dit = build(name)
    noisy, timesteps, condition = inputs(dit)
    expected = through(native_dit(dit, label).predict, noisy, timesteps, condition)
    weights = torch.randn(noisy.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = native_dit(dit, label, checkpoint=True).gradient(noisy, timesteps, condition, weights)
    for mine, reference in zip(found, expected, strict=True):
        assert error(mine, reference) <= 1e-12


@pytest.mark.parametrize("name", ["learned-variance", "patches-of-4"])
def test_a_class_embedding_as_condition_is_the_class(name: str) -> None:
    dit = build(name)
    with torch.no_grad():  # one table for all blocks, as in the published weights
        table = dit.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight
        for block in dit.transformer_blocks:
            block.norm1.emb.class_embedder.embedding_table.weight.copy_(table)
        noisy, timesteps, _ = inputs(dit)
        classes = torch.tensor([7, 2])
        expected = dit(noisy, timesteps, class_labels=classes).sample[:, :4]
        nothing = dit(noisy, timesteps, class_labels=torch.tensor([10, 10])).sample[:, :4]
        found = native_dit(dit).predict(noisy, timesteps, table[classes].unsqueeze(1))
        empty = native_dit(dit, "join").predict(
            noisy, timesteps, torch.zeros_like(table[classes]).unsqueeze(1)
        )
    assert error(found, expected) <= 1e-10 and error(empty, nothing) <= 1e-10
    assert error(found, empty) > 1e-3


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("side", [4, 6, 8, 14])
def test_other_sizes_than_that_of_training(side: int, dtype: torch.dtype) -> None:
    dit = build("learned-variance", dtype)
    args = inputs(dit, side)
    ours, library = through(native_dit(dit).predict, *args), through(theirs(dit), *args)
    for found, expected in zip(ours, library, strict=True):
        assert error(found, expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("length", [1, 77])
def test_any_number_of_positions_and_fractional_timesteps(length: int) -> None:
    dit = build("learned-variance")
    noisy, _, condition = inputs(dit, length=length)
    timesteps = torch.tensor([0.25, 731.5], dtype=torch.float64)
    ours = through(native_dit(dit).predict, noisy, timesteps, condition)
    for found, expected in zip(ours, through(theirs(dit), noisy, timesteps, condition), strict=True):
        assert error(found, expected) <= 1e-10


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("name", VARIANTS)
def test_bf16_is_nearer_to_float32_than_diffusers_own(name: str, label: str) -> None:
    exact, rounded = build(name, torch.float32), build(name, torch.bfloat16)
    noisy, timesteps, condition = inputs(exact)
    reference = through(theirs(exact, label), noisy, timesteps, condition)
    library = through(theirs(rounded, label), noisy.bfloat16(), timesteps, condition.bfloat16())
    # As the step has it: inputs in float32, and small weights as they were before they were rounded.
    ours = through(native_dit(rounded, label, exact=exact).predict, noisy, timesteps, condition)
    assert ours[0].dtype == ours[1].dtype == torch.float32
    for found, own, expected in zip(ours, library, reference, strict=True):
        assert 1e-4 < error(found, expected) <= min(2e-2, error(own, expected))


@pytest.mark.parametrize("side", [4, 8, 14])
def test_bf16_of_weights_that_were_rounded_before(side: int) -> None:
    rounded = build("affine", torch.bfloat16)
    noisy, timesteps, condition = inputs(widened(rounded), side)
    reference = through(theirs(widened(rounded)), noisy, timesteps, condition)
    library = through(theirs(rounded), noisy.bfloat16(), timesteps, condition.bfloat16())
    ours = through(native_dit(rounded).predict, noisy, timesteps, condition)
    for found, own, expected in zip(ours, library, reference, strict=True):
        assert 1e-4 < error(found, expected) <= min(2e-2, error(own, expected))


def test_only_matrix_products_are_rounded_to_bf16() -> None:
    """Where attention and feed-forward are made to give zero, a bf16 network is off by nothing."""
    exact, rounded = build("affine", torch.float32), build("affine", torch.bfloat16)
    with torch.no_grad():
        for dit in (exact, rounded):
            for block in dit.transformer_blocks:
                block.attn1.to_out[0].weight.zero_()
                block.attn1.to_out[0].bias.zero_()
                block.ff.net[2].weight.zero_()
                block.ff.net[2].bias.zero_()
    args = inputs(exact)
    ours = through(native_dit(rounded, exact=exact).predict, *args)
    for found, expected in zip(ours, through(theirs(exact), *args), strict=True):
        assert error(found, expected) <= TOLERANCE[torch.float32]


def test_positions_in_float32_under_bf16_weights_as_diffusers_loads_them(tmp_path: Path) -> None:
    build("learned-variance", torch.float32).save_pretrained(tmp_path)
    dit = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert dit.pos_embed.pos_embed.dtype == torch.float32 and dit.proj_out_1.weight.dtype == torch.bfloat16
    args = inputs(widened(dit))
    ours, exact = through(native_dit(dit).predict, *args), through(theirs(widened(dit)), *args)
    for found, expected in zip(ours, exact, strict=True):
        assert error(found, expected) <= 1e-2
    dit.pos_embed.pos_embed = dit.pos_embed.pos_embed.to("meta")
    with pytest.raises(NotNative, match="its positions are on another device"):
        native_dit(dit)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_pass_on_meta_reads_nothing_on_the_host(name: str, label: str) -> None:
    dit = build(name, torch.float32).to("meta")
    for side in (dit.config.sample_size, 2 * dit.config.sample_size):
        noisy, timesteps, condition = (tensor.to("meta") for tensor in inputs(dit, side))
        leaf = condition.requires_grad_()
        prediction = native_dit(dit, label).predict(noisy, timesteps, leaf)
        assert prediction.device.type == "meta" and prediction.shape == noisy.shape
        (gradient,) = torch.autograd.grad(prediction.sum(), leaf)
        assert gradient.device.type == "meta" and gradient.shape == leaf.shape


def test_weights_are_shared_and_never_get_a_gradient() -> None:
    dit = build("learned-variance")
    assert all(p.requires_grad for p in dit.parameters())
    native, args = native_dit(dit), inputs(dit)
    before, _ = through(native.predict, *args)
    assert all(p.grad is None for p in dit.parameters())
    assert not native.predict(*args).requires_grad
    random_weights(dit.proj_out_2)
    with torch.no_grad():
        dit.transformer_blocks[1].attn1.to_v.weight.mul_(-2)
    after, _ = through(native.predict, *args)
    assert error(after, before) > 1e-2
    assert error(after, through(theirs(dit), *args)[0]) <= 1e-10


def test_the_attention_processor_without_fused_kernels_is_the_same() -> None:
    dit = build("learned-variance")
    for block in dit.transformer_blocks:
        block.attn1.set_processor(diffusers.models.attention_processor.AttnProcessor())
    args = inputs(dit)
    for found, expected in zip(
        through(native_dit(dit).predict, *args), through(theirs(dit), *args), strict=True
    ):
        assert error(found, expected) <= 1e-10


@pytest.mark.parametrize("label", LABELS)
def test_a_training_step_is_that_of_the_torch_backend(label: str) -> None:
    losses, gradients = {}, {}
    for backend in ("native", "torch"):
        torch.manual_seed(0)
        clip = clip_variants()["open_clip-gelu"](torch.float64)
        teacher = Teacher(build("learned-variance"), scheduler=diffusers.DDPMScheduler(), label=label)
        recipe = Recipe(text="none", choose=3, precision="fp64", backend=backend, steps=5)
        trainer = Trainer(clip, teacher, recipe)
        batch = {
            "pixel_values": torch.rand(2, 3, 32, 32).double(),
            "latents": torch.randn(2, 4, 8, 8).double(),
        }
        losses[backend] = float(trainer.accumulate(batch, ids=[3, 4]))
        gradients[backend] = clip.visual.conv1.weight.grad
    assert abs(losses["native"] - losses["torch"]) <= 1e-10 * losses["torch"]
    assert error(gradients["native"], gradients["torch"]) <= 1e-10
