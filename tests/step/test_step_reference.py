"""`Trainer.accumulate` against the plain-PyTorch step that runs CLIP once per draw: loss and gradients."""

import copy
from functools import partial

import open_clip
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import diva_rs
from builders import small
from builders.reference import OPENAI, ReferenceStep, gradients_of
from diva_rs import Recipe, Trainer
from diva_rs.diffusion import Slots
from diva_rs.errors import ConfigError
from diva_rs.step.bridge import make_projector

pytestmark = pytest.mark.parity

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
PRECISION = {torch.float64: "fp64", torch.float32: "fp32"}
HALF = ((0.5,) * 3, (0.5,) * 3)
PATCHES = {224: 256, 336: 576, 378: 729, 384: 729}


def vit(patches: int, dtype: torch.dtype) -> nn.Module:
    """A ViT with as many patches as the published model has."""
    side = 2 * round(patches**0.5)
    return small.small_clip(dtype, image_size=side, patch_size=2, layers=1, width=16, head_width=8)


def siglip(patches: int, dtype: torch.dtype) -> nn.Module:
    """An open_clip SigLIP: timm trunk with MAP pooling."""
    side = 2 * round(patches**0.5)
    torch.manual_seed(0)
    custom = open_clip.CustomTextCLIP(
        embed_dim=16,
        vision_cfg={
            "image_size": side,
            "timm_model_name": "vit_tiny_patch16_224",
            "timm_pool": "",
            "timm_proj": "none",
        },
        text_cfg={"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    )
    custom.visual.trunk = VisionTransformer(
        img_size=side, patch_size=2, embed_dim=16, depth=1, num_heads=2, class_token=False, global_pool="map",
        num_classes=0, norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    for parameter in custom.visual.trunk.parameters():
        nn.init.normal_(parameter, std=0.2)
    # Keys that differ enough for the query to attend to some patches more than to others, as a trained one
    # does: where all 729 weigh the same, its gradient is what is left of terms 100,000 times larger. Nor more
    # than that: a sharp softmax multiplies rounding. Over eight such models at 2, either way is nearer
    # to float64 in four, the native one up to 4e-5 off and the plain one 2e-5; at 1 they are within 8e-6.
    nn.init.normal_(custom.visual.trunk.attn_pool.kv.weight, std=1.0)
    nn.init.normal_(custom.visual.trunk.attn_pool.proj.weight, std=1.0)
    custom.visual.image_size = (side, side)
    custom.visual.image_mean, custom.visual.image_std = HALF
    return custom.to(dtype)


def compare(clip, recipe, dtype, batch=3, text_tokens=40, prediction="epsilon", ready=None):
    """Run both; assert loss and every gradient; return the trainer."""
    unet, vae = small.small_unet(dtype), small.small_vae(dtype)
    scheduler = type(small.scheduler()).from_config(small.scheduler().config, prediction_type=prediction)
    text = torch.randn(1, text_tokens, small.WIDTH, generator=torch.Generator().manual_seed(3), dtype=dtype)
    twin, twin_unet, twin_vae = copy.deepcopy(clip), copy.deepcopy(unet), copy.deepcopy(vae)
    for module in (twin_unet, twin_vae):
        module.requires_grad_(False).eval()

    teacher = diva_rs.Teacher(unet, vae=vae, scheduler=scheduler, text_condition=text)
    trainer = Trainer(clip, teacher, recipe)
    twin_projector = copy.deepcopy(trainer.projector)
    fields = recipe.to_dict()
    images = torch.rand(batch, 3, 40, 40, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(
        dtype
    )
    tower, side = trainer.step_modules.tower, recipe.image_size or 16
    drawn = (
        {"choose": recipe.chosen(tower.patches), "patches": tower.patches}
        if recipe.condition == "random"
        else {}
    )
    draws = diva_rs.draw(
        seed=11,
        ids=range(batch),
        draws=recipe.draws,
        latent_shape=(4, side // 2, side // 2),
        replacement=recipe.replacement,
        **drawn,
    )
    ours = float(trainer.accumulate(images, draws=draws))

    mean_std = OPENAI if recipe.clip_mean is not None or not hasattr(clip.visual, "trunk") else HALF
    reference = ReferenceStep(twin, twin_unet, twin_vae, scheduler, text, twin_projector, fields)
    timesteps, noise = torch.from_numpy(draws.timesteps), torch.from_numpy(draws.noise).to(dtype)
    choice = torch.from_numpy(draws.tokens)
    theirs = reference.run(images, timesteps, noise, choice, mean_std, side, tower.image_size)

    tolerance = TOLERANCE[dtype]
    assert abs(ours - theirs) <= tolerance * abs(theirs)
    expected = gradients_of({"": twin, "projector.": twin_projector})
    assert len(expected) > 10
    assert small.worst(small.gradients(trainer), expected) <= tolerance
    for module in (unet, vae, *trainer.teacher.modules()):
        assert all(parameter.grad is None for parameter in module.parameters())
    return trainer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", [name for name in Recipe.names() if name.startswith("diva-")])
def test_each_preset_assembles_what_its_reference_does(name, dtype):
    size = int(name.rsplit("-", 1)[1])
    make = siglip if "siglip" in name else vit
    # The preset as it is, but for what the small models cannot follow: precision, and the VAE's 512 pixels.
    recipe = Recipe.named(name).replace(precision=PRECISION[dtype], image_size=16)
    trainer = compare(make(PATCHES[size], dtype), recipe, dtype, batch=2, text_tokens=77)
    assert trainer.step_modules.tower.patches == PATCHES[size]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("draws", [1, 2, 5])
@pytest.mark.parametrize("micro_batch", [1, 4, 8])
def test_draws_and_micro_batches(draws, micro_batch, backend, dtype):
    recipe = Recipe(draws=draws, micro_batch=micro_batch, backend=backend, precision=PRECISION[dtype])
    compare(small.small_clip(dtype), recipe, dtype, batch=8)


@pytest.mark.parametrize("denoiser_batch", [1, 3, 6, 7, 100])
@pytest.mark.parametrize("condition", ["random", "all"])
def test_several_draws_in_one_pass_of_the_denoiser(condition, denoiser_batch):
    weights = (0.5, 0.1, 0.2, 0.3, 0.4)
    recipe = Recipe(condition=condition, draws=5, draw_weights=weights, denoiser_batch=denoiser_batch)
    compare(small.small_clip(torch.float64), recipe.replace(precision="fp64"), torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("text", ["add", "mean", "concat", "none"])
@pytest.mark.parametrize("condition", ["class", "random", "window", "all"])
def test_every_condition_and_text_join(condition, text, dtype):
    window = {"window": 3} if condition == "window" else {}
    recipe = Recipe(condition=condition, text=text, precision=PRECISION[dtype], **window)
    compare(small.small_clip(dtype), recipe, dtype)


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": "l1"},
        {"projector": "mlp"},
        {"draw_weights": (2.0, 0.5)},
        {"condition": "class", "text": "broadcast"},
        {"condition": "class", "class_tokens": 4},
        {"condition": "class", "class_tokens": 3, "text": "add", "projector": "mlp"},
        {"condition": "class", "class_tokens": 2, "text": "concat", "micro_batch": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_losses_projectors_and_targets(fields, prediction):
    recipe = Recipe(precision="fp64", **fields)
    compare(small.small_clip(torch.float64), recipe, torch.float64, prediction=prediction)


@pytest.mark.parametrize("condition", ["class", "random"])
def test_without_a_projector_the_embedding_is_the_condition(condition):
    recipe = Recipe(precision="fp64", condition=condition, projector="identity")
    trainer = compare(small.small_clip(torch.float64, embed_dim=small.WIDTH), recipe, torch.float64)
    assert trainer.parameters().keys().isdisjoint({"projector.weight", "projector.bias"})
    with pytest.raises(ConfigError, match="embedding is 20 wide, the teacher's condition 24"):
        Trainer(small.small_clip(), small.small_teacher(), Recipe(projector="identity"))


@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_a_projector_that_starts_at_zero_adds_nothing_and_moves_first(projector):
    recipe = Recipe(precision="fp64", projector=projector, projector_start="zero", lr=0.1)
    trainer = Trainer(small.small_clip(torch.float64), small.small_teacher(torch.float64), recipe)
    inputs = torch.ones(1, 20, dtype=torch.float64)
    assert not trainer.projector(inputs).any()
    tower = {name: part.clone() for name, part in trainer.step_modules.parameters.items()}
    images = small.images(4, dtype=torch.float64)
    trainer.step(images)
    assert all(torch.equal(part, tower[name]) for name, part in trainer.step_modules.parameters.items())
    assert trainer.projector(inputs).any()
    trainer.step(images)
    assert not all(torch.equal(part, tower[name]) for name, part in trainer.step_modules.parameters.items())


def test_the_projectors_of_two_slots_start_at_zero_each():
    recipe, slots, inputs = Recipe(projector="mlp"), Slots(tokens=24, pooled=16), torch.ones(2, 20)
    assert not make_projector(recipe.replace(projector_start="zero"), 20, slots)(inputs).any()
    started = make_projector(recipe, 20, slots)(inputs)
    assert started.shape == (2, 40) and started[:, :24].any() and started[:, 24:].any()


def test_an_embedding_without_a_projector_is_cut_into_tokens():
    recipe = Recipe(precision="fp64", condition="class", class_tokens=2, projector="identity")
    compare(small.small_clip(torch.float64, embed_dim=2 * small.WIDTH), recipe, torch.float64)
    with pytest.raises(ConfigError, match="embedding is 20 wide, the teacher's condition 48"):
        Trainer(small.small_clip(), small.small_teacher(), recipe.replace(precision="fp32"))


@pytest.mark.parametrize(
    "fields", [{"backend": "native"}, {"backend": "torch"}, {"denoiser_checkpointing": True}], ids=str
)
def test_latent_sides_that_the_unet_cannot_halve(fields):
    recipe = Recipe(precision="fp64", image_size=14, **fields)  # latents 7 x 7, halved once
    compare(small.small_clip(torch.float64), recipe, torch.float64)


def test_the_anchor_adds_the_gradient_of_one_minus_cosine():
    dtype, weight = torch.float64, 0.7
    images = small.images(4, dtype=dtype)
    plain = Trainer(small.small_clip(dtype), small.small_teacher(dtype), Recipe(precision="fp64"))
    anchored = Trainer(
        small.small_clip(dtype), small.small_teacher(dtype), Recipe(precision="fp64", anchor=weight)
    )
    for trainer in (plain, anchored):  # move away from the original, where the penalty has no gradient
        with torch.no_grad():
            for parameter in trainer.step_modules.parameters.values():
                parameter.add_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(8), dtype=dtype),
                    alpha=0.05,
                )
    losses = [trainer.accumulate(images) for trainer in (plain, anchored)]

    twin, original = copy.deepcopy(anchored.clip), small.small_clip(dtype)
    for parameter in twin.parameters():
        parameter.grad = None
    pixels = plain.step_modules.inputs(images, None, 0, None, 0).images
    with torch.no_grad():
        target = original.encode_image(pixels)
    penalty = weight * (1 - nn.functional.cosine_similarity(twin.encode_image(pixels), target)).mean()
    penalty.backward()
    assert float(penalty.detach()) > 1e-4
    assert abs(float(losses[1] - losses[0] - penalty.detach())) <= 1e-12
    without, expected = small.gradients(plain), gradients_of({"": twin})
    added = {
        name: value - without[name] for name, value in small.gradients(anchored).items() if name in expected
    }
    assert small.worst(added, expected) <= 1e-10


def test_min_snr_weighs_each_sample():
    dtype, gamma = torch.float64, 5.0
    images, teacher = small.images(1, dtype=dtype), small.small_teacher(dtype)
    draws = diva_rs.draw(seed=1, ids=[7], draws=1, latent_shape=(4, 8, 8), patches=16, choose=5)
    losses = [
        float(
            Trainer(small.small_clip(dtype), teacher, Recipe(precision="fp64", draws=1, **fields)).accumulate(
                images, draws=draws
            )
        )
        for fields in ({}, {"min_snr": gamma})
    ]
    alpha = small.scheduler().alphas_cumprod[int(draws.timesteps[0, 0])].double()
    snr = float(alpha / (1 - alpha))
    assert losses[1] == pytest.approx(losses[0] * min(snr, gamma) / snr, rel=1e-10)
