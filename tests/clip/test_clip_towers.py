"""Every tower against its own library: embedding, patch tokens and the gradient of every visual parameter."""

from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from builders import openai_clip
from builders.changes import Twice, relative_error
from builders.clips import EMBED, clip_variants, library_embedding, library_patches, pixels
from diva_rs.clip import adapt

pytestmark = pytest.mark.parity

VARIANTS = clip_variants()
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def gradients(model: nn.Module, outputs: list[Tensor]) -> dict[str, Tensor]:
    """The gradient of a fixed random functional of `outputs`, by the model's own keys."""
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(out.shape, dtype=out.dtype, generator=generator) for out in outputs]
    model.zero_grad(set_to_none=True)
    sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True)).backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_embedding_patches_and_every_gradient_equal_the_librarys(name: str, dtype: torch.dtype) -> None:
    model = VARIANTS[name](dtype)
    images = pixels(model, dtype=dtype)
    tower = adapt(model)
    tokens = tower.tokens(images)
    assert tokens.shape == (2, 1 + tower.patches, tower.width)
    ours = [tower.embed(tokens), tower.project(tokens[:, 1:])]
    theirs = [library_embedding(model, images), library_patches(model, images)]
    for mine, reference in zip(ours, theirs, strict=True):
        assert relative_error(mine, reference) <= TOLERANCE[dtype]
    mine, reference = gradients(model, ours), gradients(model, theirs)
    assert mine.keys() == reference.keys()
    largest = max(float(g.abs().max()) for g in reference.values())
    for key in reference:
        scale = float(reference[key].abs().max())
        # A bias that softmax cancels (attention keys) has no gradient but rounding: held to the largest one.
        floor = largest if scale < 1e-6 * largest else scale
        assert float((mine[key] - reference[key]).abs().max()) <= TOLERANCE[dtype] * floor, key


@pytest.mark.parametrize("name", VARIANTS)
def test_named_parameters_are_those_that_the_embedding_reaches(name: str) -> None:
    model = VARIANTS[name]()
    tower, images = adapt(model), pixels(model)
    reached = gradients(model, [library_embedding(model, images)])
    learning = tower.named_parameters()
    assert learning.keys() == reached.keys()
    own = dict(model.named_parameters())
    assert all(parameter is own[key] for key, parameter in learning.items())
    assert not any("text" in key or "logit" in key for key in learning)
    # The same set through the tower: nothing is listed that a step could not move.
    assert gradients(model, [tower.embed(tower.tokens(images))]).keys() == learning.keys()


@pytest.mark.parametrize("name", VARIANTS)
def test_frozen_copy_stays_as_the_model_was(name: str) -> None:
    model = VARIANTS[name]()
    tower, images = adapt(model), pixels(model)
    twin = tower.frozen_copy()
    before = tower.embed(tower.tokens(images)).detach()
    assert (twin.family, twin.patches, twin.width) == (tower.family, tower.patches, tower.width)
    assert twin.named_parameters() == {}
    assert not any(module.training for module in twin.module.modules())
    mine = {p.data_ptr() for p in model.parameters()}
    copies = list(twin.module.parameters())
    assert not mine & {p.data_ptr() for p in copies}
    assert sum(p.numel() for p in copies) == sum(p.numel() for p in tower.module.parameters())
    with torch.no_grad():
        for parameter in tower.named_parameters().values():
            parameter.mul_(1.5)
    moved = tower.embed(tower.tokens(images))
    assert relative_error(twin.embed(twin.tokens(images)), before) <= 1e-6 < relative_error(moved, before)
    assert not twin.tokens(images).requires_grad


@pytest.mark.parametrize("name", VARIANTS)
def test_towers_run_on_meta_without_a_host_read(name: str) -> None:
    model = VARIANTS[name]().to("meta")
    tower = adapt(model)
    tokens = tower.tokens(pixels(model).to("meta"))
    embedding = tower.embed(tokens)
    assert embedding.device.type == "meta" and embedding.shape == (2, tower.embed_dim)
    embedding.sum().backward()
    assert all(p.grad is not None for p in tower.named_parameters().values())


@pytest.mark.parametrize("name", VARIANTS)
def test_adapting_leaves_the_model_as_it_was(name: str) -> None:
    model = VARIANTS[name]()

    def state() -> Any:
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        classes = [type(m) for m in model.modules()]
        forwards = ["forward" in vars(m) for m in model.modules()]
        return list(model.state_dict()), hooks, classes, forwards, model.training

    before = state()
    tower = adapt(model)
    tower.embed(tower.tokens(pixels(model))).sum().backward()
    tower.frozen_copy()
    assert state() == before


@pytest.mark.parametrize("name", ["open_clip-gelu", "timm-siglip", "transformers-clip"])
def test_gradient_checkpointing_of_the_library_gives_the_same_gradients(name: str) -> None:
    plain, saving = VARIANTS[name](torch.float64), VARIANTS[name](torch.float64)
    if hasattr(saving, "gradient_checkpointing_enable"):
        saving.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        saving.set_grad_checkpointing(True)
    found = []
    for model in (plain, saving):
        tower = adapt(model)
        found.append(gradients(model, [tower.tokens(pixels(model, dtype=torch.float64))]))
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[0][key], found[1][key], rtol=1e-12, atol=1e-14) for key in found[0])


def test_parametrised_norms_and_adapted_projections_are_applied_inside_the_tokens() -> None:
    class Adapted(nn.Linear):
        """As a low-rank adapter: computes more than its weight says."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x[..., : self.out_features]

    model = VARIANTS["transformers-clip"](torch.float64)
    adapted = Adapted(32, EMBED, bias=False).double()
    model.visual_projection = adapted
    torch.nn.utils.parametrize.register_parametrization(model.vision_model.post_layernorm, "weight", Twice())
    other = VARIANTS["open_clip-avg-norm-after"](torch.float64)
    torch.nn.utils.parametrize.register_parametrization(other.visual.ln_post, "weight", Twice())
    for clip in (model, other):
        tower, images = adapt(clip), pixels(clip, dtype=torch.float64)
        assert tower.norm is None
        ours, theirs = tower.embed(tower.tokens(images)), library_embedding(clip, images)
        assert relative_error(ours, theirs) <= 1e-12
        reached = gradients(clip, [theirs]).keys()
        assert gradients(clip, [ours]).keys() == reached == tower.named_parameters().keys()


def test_the_openai_stand_in_computes_what_open_clip_makes_of_its_weights() -> None:
    original = VARIANTS["openai"]()
    convert = open_clip.model.build_model_from_openai_state_dict
    converted = convert(dict(original.state_dict()), cast_dtype=torch.float32).float()
    # The converter rounds weights to half precision.
    converted.visual.load_state_dict(original.visual.state_dict())
    images = pixels(original)
    assert relative_error(original.encode_image(images), converted.encode_image(images)) <= 1e-5
    ours, theirs = adapt(original), adapt(converted)
    assert (ours.family, theirs.family) == ("openai", "open_clip")
    assert ours.named_parameters().keys() == theirs.named_parameters().keys()
    assert relative_error(ours.tokens(images), theirs.tokens(images)) <= 1e-5


def test_blocks_that_run_batch_first_are_fed_batch_first() -> None:
    model = openai_clip.CLIP(EMBED)
    images = pixels(model)
    expected = adapt(model).tokens(images)
    for block in model.visual.transformer.resblocks:
        block.attn.batch_first = True
    assert relative_error(adapt(model).tokens(images), expected) <= 1e-5


def test_open_clip_without_a_separate_embedding_step_gives_the_same_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As in open_clip 2.30, where these lines are inside forward.
    model = VARIANTS["open_clip-layer-scale"]()
    expected = adapt(model).tokens(pixels(model))
    monkeypatch.delattr(open_clip.transformer.VisionTransformer, "_embeds")
    assert torch.equal(adapt(model).tokens(pixels(model)), expected)


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_vision_models_that_nest_their_parts_keep_their_keys(family: str) -> None:
    # transformers 4.x nests them itself: its vision-only classes hold a transformer under `vision_model`.
    inner = nested = VARIANTS[f"transformers-{family.lower()}-vision"]()
    if not hasattr(inner, "vision_model"):
        nested = type(f"{family}VisionModel", (nn.Module,), {"__module__": "transformers.models"})()
        nested.vision_model = inner
    tower, plain = adapt(nested), adapt(inner)
    assert torch.equal(tower.tokens(pixels(inner)), plain.tokens(pixels(inner)))
    keys = [key.removeprefix("vision_model.") for key in plain.named_parameters()]
    assert [key.removeprefix("vision_model.") for key in tower.named_parameters()] == keys
    assert all(key.startswith("vision_model.") for key in tower.named_parameters())
