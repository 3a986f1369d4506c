"""Native towers against the libraries' own: tokens and the gradient of every parameter, and what is refused.

Every model of `clip_variants` is in one of two tables: NATIVE, which the parity tests run over, or FALLBACK,
with the reason that is given. One that is in neither fails.
"""

from collections.abc import Callable

import open_clip
import pytest
import timm
import torch
from torch import Tensor, nn

from builders.changes import error
from builders.clips import clip_variants, pixels
from builders.figures import note
from builders.native_towers import ONE_PER_FAMILY, as_the_original, build
from diva_rs.clip import adapt
from diva_rs.errors import DataError, ShapeError
from diva_rs.native import NotNative, native_tower, why_not
from diva_rs.native.vision import describe

pytestmark = pytest.mark.parity

VARIANTS = clip_variants()
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
NATIVE = [
    "open_clip-gelu",
    "open_clip-quick-gelu",
    "open_clip-layer-scale",
    "open_clip-custom-text",
    "open_clip-no-ln-pre",
    "open_clip-sin-cos",
    "open_clip-tok-norm-after",
    "open_clip-avg",
    "open_clip-avg-norm-after",
    "open_clip-no-pool",
    "open_clip-oblong",
    "open_clip-openai-weights",
    "timm-siglip",
    "timm-siglip-linear",
    "timm-siglip-linear-bias",
    "timm-siglip-mlp",
    "timm-vit-token-head",
    "timm-vit-avg-linear",
    "timm-vit-avg-norm-after",
    "timm-vit-avg-none",
    "transformers-clip",
    "transformers-clip-gelu",
    "transformers-clip-eager",
    "transformers-clip-tuples",
    "transformers-clip-vision",
    "transformers-clip-projection",
    "transformers-metaclip2",
    "transformers-siglip",
    "transformers-siglip-vision",
    "openai",
]
_POOLER = "attn_pool is a open_clip.transformer.AttentionalPooler"
FALLBACK = {
    "open_clip-custom-block": "resblocks.0 is a open_clip.transformer.CustomResidualAttentionBlock",
    "open_clip-coca": _POOLER,
    "open_clip-coca-narrow": _POOLER,
    "open_clip-coca-avg": _POOLER,
    "open_clip-coca-parallel": _POOLER,
    "open_clip-coca-cascade": _POOLER,
    "timm-eva-token-head": "trunk is a timm.models.eva.Eva",
    "timm-eva-map-head": "trunk is a timm.models.eva.Eva",
}


@pytest.fixture(autouse=True)
def _stand_in_as_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    as_the_original(monkeypatch)


def weighted(tokens: Tensor) -> Tensor:
    """A fixed random functional of all tokens."""
    weights = torch.randn(tokens.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return (tokens * weights.to(tokens)).sum()


def gradients(model: nn.Module, backward: Callable[[], None]) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


def through(
    model: nn.Module, tokens: Callable[[Tensor], Tensor], images: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    found = tokens(images)
    return found.detach(), gradients(model, lambda: weighted(found).backward())


def assert_same(mine: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert mine.keys() == theirs.keys()
    largest = max(float(g.abs().max()) for g in theirs.values())
    for key, reference in theirs.items():
        assert mine[key].dtype == reference.dtype and mine[key].shape == reference.shape
        scale = float(reference.abs().max())
        # A bias that softmax cancels (attention keys) has no gradient but rounding: held to the largest one.
        floor = largest if scale < 1e-6 * largest else scale
        assert float((mine[key] - reference).abs().max()) <= tolerance * floor, key


def test_every_variant_is_either_native_or_refused_with_a_reason() -> None:
    assert len(set(NATIVE)) == len(NATIVE) and not set(NATIVE) & FALLBACK.keys()
    assert set(NATIVE) | FALLBACK.keys() == VARIANTS.keys()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", NATIVE)
def test_tokens_and_the_gradient_of_every_parameter(name: str, dtype: torch.dtype) -> None:
    model = VARIANTS[name](dtype)
    images, tower = pixels(model, dtype=dtype), adapt(model)
    theirs, expected = through(model, tower.tokens, images)
    ours, found = through(model, native_tower(tower).tokens, images)
    assert ours.shape == (2, 1 + tower.patches, tower.width) and ours.dtype == dtype
    assert float((ours - theirs).abs().max()) <= TOLERANCE[dtype] * float(theirs.abs().max())
    assert_same(found, expected, TOLERANCE[dtype])
    largest = max(float(g.abs().max()) for g in expected.values())
    assert sum(float(g.abs().max()) > 1e-6 * largest for g in expected.values()) >= 0.8 * len(expected)


@pytest.mark.parametrize("name", FALLBACK)
def test_others_are_refused_with_the_reason(name: str) -> None:
    tower = adapt(VARIANTS[name]())
    with pytest.raises(NotNative, match=FALLBACK[name]):
        native_tower(tower)
    assert FALLBACK[name] in str(why_not(tower))


@pytest.mark.parametrize("name", NATIVE)
def test_bf16_on_float32_weights_is_as_exact_as_the_librarys_autocast(name: str) -> None:
    model = VARIANTS[name]()
    images, tower = pixels(model), adapt(model)
    tokens, exact = through(model, tower.tokens, images)
    with torch.autocast("cpu", torch.bfloat16):
        their_tokens, theirs = through(model, lambda x: tower.tokens(x).float(), images)
    our_tokens, ours = through(model, native_tower(tower, compute="bf16").tokens, images)
    assert our_tokens.dtype == torch.float32 and all(g.dtype == torch.float32 for g in ours.values())
    assert 1e-4 < error(our_tokens, tokens) <= min(2e-2, 1.5 * error(their_tokens, tokens))
    assert ours.keys() == exact.keys()

    def flat(gradient: dict[str, Tensor]) -> Tensor:
        return torch.cat([gradient[key].flatten() for key in exact])

    whole = error(flat(theirs), flat(exact))
    assert 1e-4 < error(flat(ours), flat(exact)) <= min(2e-2, 1.5 * whole)
    for key, reference in exact.items():
        if float(reference.norm()) > 1e-4 * float(flat(exact).norm()):
            assert error(ours[key], reference) <= 1.5 * max(whole, error(theirs[key], reference)), key


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_bf16_weights_are_as_exact_as_the_librarys_own_forward(name: str) -> None:
    exact, model = VARIANTS[name](), VARIANTS[name]().bfloat16()
    with torch.no_grad():
        for precise, rounded in zip(exact.parameters(), model.parameters(), strict=True):
            precise.copy_(rounded)
    images, tower = pixels(exact).bfloat16(), adapt(model)
    tokens = adapt(exact).tokens(images.float())
    ours = native_tower(tower).tokens(images)
    assert ours.dtype == torch.bfloat16
    assert error(ours, tokens) <= min(2e-2, 1.5 * error(tower.tokens(images), tokens))


def test_float64_compute_on_float32_weights_gives_the_float64_models_tokens() -> None:
    precise = VARIANTS["transformers-clip"](torch.float64).float()
    model = VARIANTS["transformers-clip"]()
    model.load_state_dict(precise.state_dict())
    images = pixels(model)
    ours = native_tower(adapt(model), compute="fp64").tokens(images)
    assert ours.dtype == torch.float64
    assert error(ours, adapt(precise.double()).tokens(images.double())) <= 1e-10
    ours.sum().backward()
    assert model.vision_model.embeddings.patch_embedding.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("name", NATIVE)
def test_towers_run_on_meta_without_a_host_read(name: str) -> None:
    model = VARIANTS[name]().to("meta")
    tower = adapt(model)
    for compute in ("fp32", "bf16"):
        tokens = native_tower(tower, compute).tokens(pixels(model).to("meta"))
        assert tokens.device.type == "meta" and tokens.shape == (2, 1 + tower.patches, tower.width)
        model.zero_grad(set_to_none=True)
        tokens.sum().backward()
        reached = {key for key, p in describe(tower)[1].items() if p.requires_grad and p.grad is not None}
        assert reached == {key for key, p in describe(tower)[1].items() if p.requires_grad}


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_parameters_are_shared_both_ways(name: str) -> None:
    model = VARIANTS[name](torch.float64)
    images, tower = pixels(model, dtype=torch.float64), adapt(model)
    native = native_tower(tower)
    before = native.tokens(images)
    before.sum().backward()
    weights = describe(tower)[1]
    assert all(p is weights[key] for key, p in model.named_parameters() if key in weights)
    with torch.no_grad():
        for weight in weights.values():
            weight.sub_(0.1 * weight.grad)
    after = native.tokens(images)
    assert error(after, before) > 1e-3
    assert error(after, tower.tokens(images)) <= 1e-10
    with torch.no_grad():
        assert not native.tokens(images).requires_grad


def test_frozen_parameters_get_no_gradient() -> None:
    model = VARIANTS["open_clip-gelu"]()
    model.visual.requires_grad_(False)
    model.visual.transformer.resblocks[1].requires_grad_(True)
    native_tower(adapt(model)).tokens(pixels(model)).sum().backward()
    reached = {key for key, p in model.named_parameters() if p.grad is not None}
    assert reached and all(key.startswith("visual.transformer.resblocks.1.") for key in reached)


@pytest.mark.parametrize("name", [*ONE_PER_FAMILY, "open_clip-avg", "timm-vit-avg-linear"])
def test_recomputed_blocks_give_the_same_tokens_and_gradients(name: str) -> None:
    model = VARIANTS[name](torch.float64)
    images = pixels(model, dtype=torch.float64)
    native = native_tower(adapt(model), checkpoint=True)
    tokens, expected = through(model, native.tokens, images)
    with torch.no_grad():  # the backward pass turns gradients on for itself
        again, recording = native.record(images)
        assert torch.equal(again, tokens) and not again.requires_grad
        gradient = torch.randn(tokens.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        found = gradients(model, lambda: native.backward(recording, gradient))
    assert_same(found, expected, 1e-12)
    with pytest.raises(DataError, match="used already"):
        native.backward(recording, gradient)


def test_recomputed_blocks_in_bf16_keep_float32_gradients_and_skip_what_is_frozen() -> None:
    model = VARIANTS["open_clip-gelu"]()
    model.visual.conv1.requires_grad_(False)
    native = native_tower(adapt(model), compute="bf16")
    images = pixels(model)
    tokens, expected = through(model, native.tokens, images)
    again, recording = native.record(images)
    gradient = torch.randn(tokens.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = gradients(model, lambda: native.backward(recording, gradient.float()))
    assert torch.equal(again, tokens) and "visual.conv1.weight" not in found
    assert_same(found, expected, 1e-5)


def test_positions_are_interpolated_as_transformers_does() -> None:
    model = VARIANTS["transformers-clip-vision"](torch.float64)
    native = build(adapt(model), resize="bicubic")
    for size in [(48, 32), (16, 64), (32, 32)]:  # (16, 64) has as many patches as the model's own size
        images = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

        def theirs(images: Tensor) -> Tensor:
            return model(images, interpolate_pos_encoding=True).last_hidden_state

        expected, their_gradient = through(model, theirs, images)
        ours, our_gradient = through(model, native.tokens, images)
        assert error(ours, expected) <= 1e-10
        assert_same(our_gradient, their_gradient, 1e-10)


def test_positions_are_interpolated_as_timm_does() -> None:
    model = VARIANTS["timm-vit-avg-none"](torch.float64)
    model.visual.trunk = timm.create_model(
        "diva_test_vit", dynamic_img_size=True, global_pool="avg", fc_norm=False, num_classes=0
    ).double()
    trunk = model.visual.trunk
    native = native_tower(adapt(model))
    for size in [(48, 32), (16, 64), (32, 32)]:
        images = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

        def theirs(images: Tensor) -> Tensor:
            tokens = trunk.forward_features(images)
            return torch.cat([trunk.pool(tokens).unsqueeze(1), tokens[:, 2:]], dim=1)

        expected, their_gradient = through(model, theirs, images)
        ours, our_gradient = through(model, native.tokens, images)
        assert error(ours, expected) <= 1e-10
        assert_same(our_gradient, their_gradient, 1e-10)
    with pytest.raises(ShapeError, match="whole 8x8 patches"):
        native.tokens(torch.randn(1, 3, 36, 32, dtype=torch.float64))


@pytest.mark.parametrize("name", ["open_clip-gelu", "timm-siglip", "transformers-clip"])
def test_gradient_checkpointing_of_the_library_is_no_reason_to_refuse(name: str) -> None:
    model = VARIANTS[name](torch.float64)
    if hasattr(model, "gradient_checkpointing_enable"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.set_grad_checkpointing(True)
    tower, images = adapt(model), pixels(model, dtype=torch.float64)
    theirs, expected = through(model, tower.tokens, images)
    ours, found = through(model, native_tower(tower).tokens, images)
    assert error(ours, theirs) <= 1e-10
    assert_same(found, expected, 1e-10)


def test_frozen_copies_and_vision_parts_alone_are_native_too() -> None:
    for name in NATIVE:
        model = VARIANTS[name](torch.float64)
        tower, images = adapt(model), pixels(model, dtype=torch.float64)
        twin = tower.frozen_copy()
        assert torch.equal(native_tower(twin).tokens(images), native_tower(tower).tokens(images))
    alone = adapt(VARIANTS["open_clip-gelu"](torch.float64).visual)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert "conv1.weight" in describe(alone)[1]
    assert error(native_tower(alone).tokens(images), alone.tokens(images)) <= 1e-10


# The towers of the published models, by open_clip's configurations: name -> (config, patches, width).
PUBLISHED = {
    "OpenAI ViT-L-14": ("ViT-L-14-quickgelu", 256, 1024),
    "OpenAI ViT-L-14-336": ("ViT-L-14-336-quickgelu", 576, 1024),
    "MetaCLIP ViT-L-14": ("ViT-L-14-quickgelu", 256, 1024),
    "MetaCLIP ViT-H-14": ("ViT-H-14-quickgelu", 256, 1280),
    "DFN ViT-H-14": ("ViT-H-14-quickgelu", 256, 1280),
    "DFN ViT-H-14-378": ("ViT-H-14-378-quickgelu", 729, 1280),
    "SigLIP ViT-SO400M-14": ("ViT-SO400M-14-SigLIP", 256, 1152),
    "SigLIP ViT-SO400M-14-384": ("ViT-SO400M-14-SigLIP-384", 729, 1152),
}


def published(config: str, device: str) -> nn.Module:
    fields = open_clip.get_model_config(config)
    with torch.device(device):
        visual: nn.Module = open_clip.model._build_vision_tower(
            fields["embed_dim"], fields["vision_cfg"], fields.get("quick_gelu", False)
        )
    return visual


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_towers_build_and_run_on_meta(name: str) -> None:
    config, patches, width = PUBLISHED[name]
    visual = published(config, "meta")
    tower = adapt(visual)
    native = native_tower(tower, compute="bf16")
    tokens = native.tokens(torch.empty(2, 3, *tower.image_size, device="meta"))
    assert tokens.shape == (2, 1 + patches, width) and tokens.device.type == "meta"
    tokens.sum().backward()
    later = {"ln_post.weight", "ln_post.bias", "proj"}
    assert {key for key, p in visual.named_parameters() if p.grad is None} <= later


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("config", sorted({config for config, _, _ in PUBLISHED.values()}))
def test_published_towers_equal_the_librarys(config: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        visual = published(config, "cpu")
        with torch.no_grad():
            for weight in visual.parameters():  # biases and latents of 0 would hide their part
                weight.add_(torch.randn_like(weight), alpha=0.02 if weight.ndim < 2 else 0.002)
    tower = adapt(visual)
    images = torch.randn(1, 3, *tower.image_size, generator=torch.Generator().manual_seed(0))
    theirs, expected = through(visual, tower.tokens, images)
    ours, found = through(visual, native_tower(tower).tokens, images)
    assert found.keys() == expected.keys()
    names = ", ".join(name for name, (other, _, _) in PUBLISHED.items() if other == config)
    forward, worst = error(ours, theirs), max(error(found[key], expected[key]) for key in expected)
    note(names, "tokens, float32", forward, 1e-5)
    note(names, f"worst gradient of {len(expected)} weights, float32", worst, 1e-5)
    assert forward <= 1e-5 and worst <= 1e-5
    assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())
