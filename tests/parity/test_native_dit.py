"""The native DiT against diffusers' own: prediction and gradient at the condition, and what is refused.

Every option of diffusers' constructor is either in a variant that the parity tests run over, or in FALLBACK
with the reason that is given.
"""

import copy
import inspect
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor, nn

from builders.clips import clip_variants
from builders.diffusion import tiny_dit, tiny_unet
from builders.figures import note
from diva_rs import Recipe, Teacher, Trainer, _native
from diva_rs.diffusion.conditioning import conditioning_of
from diva_rs.errors import ConfigError, ShapeError, WeightsError
from diva_rs.native import NotNative
from diva_rs.native.dit import dit_config, native_dit

LABELS = ("replace", "join")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
VARIANTS = {
    "learned-variance": {},
    "no-variance": {"out_channels": None},
    "three-channels": {"in_channels": 3, "out_channels": 6},
    "no-attention-bias": {"attention_bias": False},
    "affine": {"norm_elementwise_affine": True, "norm_eps": 1e-3},
    "exact-gelu": {"activation_fn": "gelu"},
    "patches-of-4": {"patch_size": 4, "sample_size": 16},
    "patches-of-1": {"patch_size": 1, "sample_size": 3},
    "three-heads": {"num_attention_heads": 3, "attention_head_dim": 12},
    "one-block": {"num_layers": 1},
    "few-classes": {"num_embeds_ada_norm": 2},
    "dropout-at-rest": {"dropout": 0.2},
    "no-effect": {"norm_num_groups": 2, "upcast_attention": True},
}
FALLBACK = {
    "geglu": ({"activation_fn": "geglu"}, r"transformer_blocks.0.ff.net.0 is a .*GEGLU"),
    "sigmoid-gelu": ({"activation_fn": "geglu-approximate"}, r"net.0 is a .*ApproximateGELU"),
    "swiglu": ({"activation_fn": "swiglu"}, r"net.0 is a .*SwiGLU"),
    "silu": ({"activation_fn": "linear-silu"}, r"net.0 is a .*LinearActivation"),
    "odd-channels": ({"out_channels": 5}, "4 channels in and 5 out"),
}
# The one value that diffusers itself accepts.
FIXED = {"norm_type"}


def build(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    return random_weights(tiny_dit(same_tables=False, **VARIANTS[name])).to(dtype).eval()


def random_weights(module: nn.Module) -> nn.Module:
    """All weights drawn anew, so that none is 0 or 1 and none equals that of another block."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                noise /= weight[0].numel() ** 0.5
            elif "norm3.weight" in name:
                noise = 1 + noise / 4
            else:
                noise /= 4
            weight.copy_(noise)
    return module


def inputs(dit: nn.Module, side: int | None = None, length: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    config, dtype = dit.config, next(dit.parameters()).dtype
    side = side or config.sample_size
    noisy = torch.randn(2, config.in_channels, side, side, generator=generator)
    condition = torch.randn(2, length, dit.inner_dim, generator=generator)
    return noisy.to(dtype), torch.tensor([3, 997]), condition.to(dtype)


def theirs(dit: nn.Module, label: str = "replace"):
    way = conditioning_of(dit, None, label, lambda width: torch.zeros(1, 1, width), lambda: 8)
    return lambda *args: way.predict(*args)[:, : dit.config.in_channels]


def through(predict, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    """The prediction, and the gradient of a fixed random functional of it at the condition."""
    leaf = condition.clone().requires_grad_()
    prediction = predict(noisy, timesteps, leaf)
    weights = torch.randn(prediction.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (prediction * weights.to(prediction)).sum().backward()
    return prediction.detach(), leaf.grad


def relative(ours: Tensor, exact: Tensor) -> float:
    assert ours.shape == exact.shape
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("name", ["learned-variance", "affine", "one-block"])
def test_checkpointing_leaves_prediction_and_gradient_as_they_are(name: str, label: str) -> None:
    dit = build(name)
    noisy, timesteps, condition = inputs(dit)
    expected = through(native_dit(dit, label).predict, noisy, timesteps, condition)
    weights = torch.randn(noisy.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = native_dit(dit, label, checkpoint=True).gradient(noisy, timesteps, condition, weights)
    for mine, reference in zip(found, expected, strict=True):
        assert relative(mine, reference) <= 1e-12


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
    assert relative(prediction, expected) <= TOLERANCE[dtype]
    assert relative(gradient, expected_gradient) <= TOLERANCE[dtype]
    # The condition matters, and every position of it alike: a mean.
    assert float(expected_gradient.norm()) > 1e-3
    assert relative(gradient[:, 1:], gradient[:, :1].expand_as(gradient[:, 1:])) <= 1e-6


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
    assert relative(found, expected) <= 1e-10 and relative(empty, nothing) <= 1e-10
    assert relative(found, empty) > 1e-3


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("side", [4, 6, 8, 14])
def test_other_sizes_than_that_of_training(side: int, dtype: torch.dtype) -> None:
    dit = build("learned-variance", dtype)
    args = inputs(dit, side)
    ours, library = through(native_dit(dit).predict, *args), through(theirs(dit), *args)
    for found, expected in zip(ours, library, strict=True):
        assert relative(found, expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("length", [1, 77])
def test_any_number_of_positions_and_fractional_timesteps(length: int) -> None:
    dit = build("learned-variance")
    noisy, _, condition = inputs(dit, length=length)
    timesteps = torch.tensor([0.25, 731.5], dtype=torch.float64)
    ours = through(native_dit(dit).predict, noisy, timesteps, condition)
    for found, expected in zip(ours, through(theirs(dit), noisy, timesteps, condition), strict=True):
        assert relative(found, expected) <= 1e-10


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
        assert 1e-4 < relative(found, expected) <= min(2e-2, relative(own, expected))


@pytest.mark.parametrize("side", [4, 8, 14])
def test_bf16_of_weights_that_were_rounded_before(side: int) -> None:
    rounded = build("affine", torch.bfloat16)
    noisy, timesteps, condition = inputs(widened(rounded), side)
    reference = through(theirs(widened(rounded)), noisy, timesteps, condition)
    library = through(theirs(rounded), noisy.bfloat16(), timesteps, condition.bfloat16())
    ours = through(native_dit(rounded).predict, noisy, timesteps, condition)
    for found, own, expected in zip(ours, library, reference, strict=True):
        assert 1e-4 < relative(found, expected) <= min(2e-2, relative(own, expected))


def widened(dit: nn.Module) -> nn.Module:
    """The same values in float32."""
    return copy.deepcopy(dit).float()


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
        assert relative(found, expected) <= TOLERANCE[torch.float32]


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


def test_positions_in_float32_under_bf16_weights_as_diffusers_loads_them(tmp_path: Path) -> None:
    build("learned-variance", torch.float32).save_pretrained(tmp_path)
    dit = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert dit.pos_embed.pos_embed.dtype == torch.float32 and dit.proj_out_1.weight.dtype == torch.bfloat16
    args = inputs(widened(dit))
    ours, exact = through(native_dit(dit).predict, *args), through(theirs(widened(dit)), *args)
    for found, expected in zip(ours, exact, strict=True):
        assert relative(found, expected) <= 1e-2
    dit.pos_embed.pos_embed = dit.pos_embed.pos_embed.to("meta")
    with pytest.raises(NotNative, match="its positions are on another device"):
        native_dit(dit)


PUBLISHED = {"DiT-XL-2-256": 32, "DiT-XL-2-512": 64}


def published(name: str) -> nn.Module:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=16,
        attention_head_dim=72,
        in_channels=4,
        out_channels=8,
        sample_size=PUBLISHED[name],
    ).eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_on_meta(name: str) -> None:
    with torch.device("meta"):
        dit = published(name)
        noisy, leaf = torch.empty(2, 4, *[PUBLISHED[name]] * 2), torch.empty(2, 77, 1152, requires_grad=True)
        prediction = native_dit(dit).predict(noisy, torch.empty(2, dtype=torch.int64), leaf)
    assert prediction.shape == noisy.shape
    assert torch.autograd.grad(prediction.sum(), leaf)[0].shape == leaf.shape


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
    assert relative(after, before) > 1e-2
    assert relative(after, through(theirs(dit), *args)[0]) <= 1e-10


def parts(dit: nn.Module, **fields) -> tuple[dict, dict[str, Tensor]]:
    weights = dict(dit.named_parameters()) | dict(dit.named_buffers())
    return {**dit_config(dit), "label": "replace", "checkpoint": False, **fields}, weights


def test_keys_are_strict_both_ways() -> None:
    config, weights = parts(build("affine"))
    for key, weight in weights.items():
        rest = {other: value for other, value in weights.items() if other != key}
        with pytest.raises(WeightsError, match=f"`{key}` is missing") as missing:
            _native.DiTTransformer2D(config, rest)
        assert str(list(weight.shape)) in str(missing.value)
        wrong = torch.zeros(*weight.shape, 2, dtype=weight.dtype)
        with pytest.raises(WeightsError, match=f"`{key}` has shape") as misshapen:
            _native.DiTTransformer2D(config, {**rest, key: wrong})
        message = str(misshapen.value)
        assert str(list(weight.shape)) in message and str(list(wrong.shape)) in message
    with pytest.raises(WeightsError, match=r"`proj_out_3.weight` is unexpected"):
        _native.DiTTransformer2D(config, {**weights, "proj_out_3.weight": torch.zeros(1).double()})
    key = "proj_out_1.weight"
    with pytest.raises(WeightsError, match=f"`{key}` is Float, but `.*` is Double"):
        _native.DiTTransformer2D(config, {**weights, key: weights[key].float()})
    with pytest.raises(WeightsError, match=r"is Half: cast the module to float32"):
        _native.DiTTransformer2D(config, {key: weight.half() for key, weight in weights.items()})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 3}, "width 16 must be a multiple of 4 and of the 3 heads"),
        ({"heads": 0}, "heads is 0"),
        ({"patch_size": -1}, "patch_size is -1"),
        ({"grid": 2**40}, "grid is"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"out_channels": 9}, "4 channels in and 9 out"),
        ({"label": "add"}, 'unknown label "add": use replace or join'),
        ({"label": "join", "num_classes": 11}, "has none after 11 classes"),
        ({"activation": "relu"}, "unknown activation"),
        ({"norm_eps": (1e-6, float("nan"), 1e-6)}, "norm_eps NaN"),
        ({"time_channels": 1}, "at least 2"),
        ({"depth": 1}, 'unknown field "depth"'),
        ({"width": "wide"}, r"config\[\"width\"\] is wide"),
    ],
)
def test_impossible_configurations(fields: dict, message: str) -> None:
    config, weights = parts(build("learned-variance"), **fields)
    with pytest.raises(ConfigError, match=message):
        _native.DiTTransformer2D(config, weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, t, c: (x[:, :3], t, c), r"`noisy` has shape \[2, 3, 8, 8\], expected \(B, 4, n, n\)"),
        (lambda x, t, c: (x[:, :, :6], t, c), "`noisy`"),
        (lambda x, t, c: (x[:, :, :7, :7], t, c), "multiple of the patch size 2"),
        (lambda x, t, c: (x[:0], t[:0], c[:0]), "`noisy`.*nothing of it empty"),
        (lambda x, t, c: (x[0], t, c), "`noisy`"),
        (lambda x, t, c: (x.long(), t, c), "`noisy` is Int64, expected floating point"),
        (lambda x, t, c: (x, t[:1], c), r"`timesteps` has shape \[1\], expected numbers \[2\]"),
        (lambda x, t, c: (x, t[0], c), "`timesteps`"),
        (lambda x, t, c: (x, t > 4, c), "`timesteps`"),
        (lambda x, t, c: (x, t, c[:1]), r"`condition` has shape \[1, 5, 16\], expected \(2, S, 16\)"),
        (lambda x, t, c: (x, t, c[:, :0]), "S > 0"),
        (lambda x, t, c: (x, t, c[:, 0]), "`condition`"),
        (lambda x, t, c: (x, t, c[:, :, :8]), "`condition`"),
        (lambda x, t, c: (x, t, c.int()), "`condition` is Int, expected floating point"),
    ],
)
def test_impossible_inputs(change, message: str) -> None:
    dit = build("learned-variance")
    with pytest.raises(ShapeError, match=message):
        native_dit(dit).predict(*change(*inputs(dit)))


@pytest.mark.parametrize("name", FALLBACK)
def test_other_options_are_refused_with_the_reason(name: str) -> None:
    changes, reason = FALLBACK[name]
    with pytest.raises(NotNative, match=reason):
        native_dit(tiny_dit(**changes).eval())


def test_a_label_to_join_needs_no_class() -> None:
    dit = build("learned-variance")
    for block in dit.transformer_blocks:
        block.norm1.emb.class_embedder.embedding_table = nn.Embedding(10, 16, dtype=torch.float64)
    native_dit(dit, "replace")
    with pytest.raises(NotNative, match="the table of 10 rows has none after 10 classes"):
        native_dit(dit, "join")


class _Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _replace_linear(dit: nn.Module) -> None:
    dit.transformer_blocks[1].attn1.to_q = _Scaled(16, 16, dtype=torch.float64)


def _processor(name: str):
    def change(dit: nn.Module) -> None:
        dit.transformer_blocks[0].attn1.set_processor(getattr(diffusers.models.attention_processor, name)())

    return change


def _upcast(dit: nn.Module) -> None:
    _processor("AttnProcessor")(dit)
    dit.transformer_blocks[0].attn1.upcast_softmax = True


def _fuse(dit: nn.Module) -> None:
    dit.transformer_blocks[0].attn1.fuse_projections()


def _patched_forward(dit: nn.Module) -> None:
    block = dit.transformer_blocks[2]
    block.forward = lambda *args, **kwargs: type(block).forward(block, *args, **kwargs)


def _set(path: str, name: str, value: object):
    def change(dit: nn.Module) -> None:
        setattr(dit.get_submodule(path), name, value)

    return change


_FIRST = "transformer_blocks.0"
REFUSED = {
    "unet": (lambda dit: tiny_unet(), "it is a diffusers.models.unets"),
    "subclass": (
        lambda dit: type("Mine", (type(dit),), {})(2, 8, num_layers=1, norm_num_groups=4),
        "it is a .*Mine",
    ),
    "train-mode": (lambda dit: dit.train(), r"LabelEmbedding\) is random in train mode"),
    "dropout": (lambda dit: tiny_dit(dropout=0.1).train(), "is random in train mode"),
    "layer-subclass": (_replace_linear, "transformer_blocks.1.attn1.to_q is a .*_Scaled"),
    "hook": (lambda dit: dit.norm_out.register_forward_hook(print) and None, "norm_out has a forward hook"),
    "pre-hook": (
        lambda dit: dit.register_forward_pre_hook(print) and None,
        "the module has a forward pre-hook",
    ),
    "parametrized": (
        lambda dit: nn.utils.parametrizations.weight_norm(dit.proj_out_1) and None,
        "proj_out_1 has a parametrization",
    ),
    "instance-forward": (_patched_forward, r"transformer_blocks.2.forward was replaced"),
    "processor": (_processor("AttnAddedKVProcessor2_0"), "processor is a .*AttnAddedKVProcessor2_0"),
    "float32-softmax": (_upcast, "computes its softmax in float32"),
    "fused": (_fuse, "has fused projections"),
    "chunked": (lambda dit: dit.transformer_blocks[0].set_chunk_feed_forward(1, 1), "in chunks"),
    "scaled-scores": (_set(f"{_FIRST}.attn1", "scale", 1.0), "scales its scores by 1.0"),
    "scaled-output": (_set(f"{_FIRST}.attn1", "rescale_output_factor", 2.0), "scales its output"),
    "residual": (_set(f"{_FIRST}.attn1", "residual_connection", True), "adds its input to its output"),
    "scaled-time": (_set(f"{_FIRST}.norm1.emb.time_proj", "scale", 1000), "its timesteps are scaled"),
    "other-frequencies": (
        _set(f"{_FIRST}.norm1.emb.time_proj", "downscale_freq_shift", 0),
        "differs from layer",
    ),
    "scaled-positions": (_set("pos_embed", "interpolation_scale", 2), "its positions are scaled by 2"),
    "cropped-positions": (_set("pos_embed", "pos_embed_max_size", 8), "pos_embed is of an unknown form"),
    "no-positions": (_set("pos_embed", "pos_embed", None), "it has no positions"),
    "other-eps": (_set(f"{_FIRST}.norm3", "eps", 1e-2), "eps of norm3 differs from layer to layer"),
    "weighted-norm": (_set("", "norm_out", nn.LayerNorm(16, dtype=torch.float64)), "norm_out has weights"),
    "no-norm": (_set("", "norm_out", nn.SiLU()), "norm_out is a torch.nn.modules.activation.SiLU"),
    "extra-weight": (
        _set("", "proj_out_3", nn.Linear(2, 2, dtype=torch.float64)),
        "`proj_out_3.bias` is unexpected",
    ),
    "mixed": (lambda dit: dit.proj_out_1.float() and None, "proj_out_1.weight is torch.float32"),
    "half": (lambda dit: dit.half(), "is torch.float16"),
    "wide-patches": (
        _set("pos_embed.proj", "dilation", (2, 2)),
        "pos_embed.proj is Conv2d.* of an unknown form",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_whatever_changes_the_result_is_refused_with_the_reason(name: str) -> None:
    change, reason = REFUSED[name]
    dit = build("learned-variance")
    with pytest.raises(NotNative, match=reason):
        native_dit(change(dit) or dit)


def test_the_attention_processor_without_fused_kernels_is_the_same() -> None:
    dit = build("learned-variance")
    for block in dit.transformer_blocks:
        block.attn1.set_processor(diffusers.models.attention_processor.AttnProcessor())
    args = inputs(dit)
    for found, expected in zip(
        through(native_dit(dit).predict, *args), through(theirs(dit), *args), strict=True
    ):
        assert relative(found, expected) <= 1e-10


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
    assert relative(gradients["native"], gradients["torch"]) <= 1e-10


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_published_size() -> None:
    torch.manual_seed(0)
    dit = published("DiT-XL-2-256")
    args = inputs(dit, length=77)
    noisy, timesteps, condition = (tensor[:1] for tensor in args)
    native = native_dit(dit)
    exact = through(theirs(dit), noisy, timesteps, condition)
    parts = ("prediction", "gradient at the condition")
    ours = through(native.predict, noisy, timesteps, condition)
    for part, found, expected in zip(parts, ours, exact, strict=True):
        note("DiT-XL/2", f"{part}, float32", relative(found, expected), 1e-5)
        assert relative(found, expected) <= 1e-5
    del native
    # As a step makes it: rounded from the given network, under inputs in float32.
    teacher = Teacher(dit).to_precision("bf16")
    library = through(theirs(teacher.unet), noisy.bfloat16(), timesteps, condition.bfloat16())
    ours = through(teacher.native().predict, noisy, timesteps, condition)
    for part, found, other, expected in zip(parts, ours, library, exact, strict=True):
        own = relative(other, expected)
        note("DiT-XL/2", f"{part}, bf16", relative(found, expected), min(2e-2, 1.5 * own), own)
        assert relative(found, expected) <= min(2e-2, 1.5 * own)
