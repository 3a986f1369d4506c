"""What a teacher refuses, when, and what it says."""

import diffusers
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module

from builders.diffusion import (
    tiny_dit,
    tiny_pipeline,
    tiny_scheduler,
    tiny_unet,
    tiny_vae,
)
from diva_rs.diffusion import Teacher
from diva_rs.errors import ConfigError, DataError, DeviceError, ShapeError, WeightsError

pytestmark = pytest.mark.hostile


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "unet is an int, expected a .*a diffusers UNet2DConditionModel"),
        (None, "unet is a NoneType, expected"),
        (
            torch.nn.Linear(2, 2),
            "Linear cannot be a teacher; expected a .*a diffusers UNet2DConditionModel",
        ),
        ("/no/such/folder", "/no/such/folder does not exist; expected"),
        (__file__, "test_teacher_inputs.py is text"),
    ],
)
def test_what_is_no_diffusion_model(source, message):
    with pytest.raises((ConfigError, WeightsError), match=message):
        Teacher.of(source)


def test_models_that_take_no_condition_from_a_clip():
    unconditional = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    with pytest.raises(ConfigError, match="UNet2DModel cannot be a teacher"):
        Teacher.of(unconditional)
    with pytest.raises(ConfigError, match="UNet2DModel cannot be a teacher"):
        Teacher.of(diffusers.DDPMPipeline(unconditional, tiny_scheduler()))
    pipeline = tiny_pipeline()
    pipeline.unet = None
    with pytest.raises(ConfigError, match="the StableDiffusionPipeline holds no denoiser; expected a "):
        Teacher.of(pipeline)
    with pytest.raises(ConfigError, match="unet is a Teacher: use it as it is"):
        Teacher(Teacher(tiny_unet()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 9}, "takes 9 channels and predicts 4: it needs more than the noisy image"),
        ({"num_class_embeds": 10}, "class embedding, a table of 10 classes, is not supported"),
        ({"in_channels": 7, "num_class_embeds": 10}, "takes 7 channels and predicts 4"),
        ({"class_embed_type": "timestep"}, "class embedding, 'timestep', is not supported"),
        ({"time_cond_proj_dim": 8}, "time_cond_proj_dim is 8: it was distilled to read a guidance scale"),
        (
            {"addition_embed_type": "image", "encoder_hid_dim": 8, "encoder_hid_dim_type": "text_proj"},
            "addition_embed_type, 'image', is not supported",
        ),
        ({"encoder_hid_dim": 8, "encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim_type, 'image_proj'"),
        (
            {
                "down_block_types": ("DownBlock2D", "DownBlock2D"),
                "mid_block_type": "UNetMidBlock2D",
                "up_block_types": ("UpBlock2D", "UpBlock2D"),
            },
            "has no cross-attention, so no condition could reach it",
        ),
        ({"cross_attention_dim": (16, 24)}, r"cross-attend to different widths, \[16, 24\]"),
    ],
)
def test_unets_that_need_other_inputs(changes, message):
    with pytest.raises(ConfigError, match=message):
        Teacher(tiny_unet(**changes))


def test_offloaded_models():
    unet = tiny_unet()
    add_hook_to_module(unet.conv_in, ModelHook())
    with pytest.raises(ConfigError, match="the UNet2DConditionModel is offloaded by accelerate"):
        Teacher(unet)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("sd1", torch.zeros(1, 7, 32), r"\(1, 7, 32\)>, but the denoiser reads .* \(1 \| B, L, 24\)"),
        ("sd1", torch.zeros(7, 24), r"text_condition is <torch.float32 \(7, 24\)>, but the denoiser reads"),
        ("sd1", torch.zeros(1, 0, 24), r"\(1, 0, 24\)>"),
        ("sd1", torch.zeros(1, 7, 24, dtype=torch.int64), "torch.int64 .* and no ids"),
        ("sd1", "a photo", "text_condition='a photo'"),
        # Text beside the condition is one for all samples, in its own width.
        ("unclip", torch.zeros(2, 7, 24), r"\(2, 7, 24\)>, but the denoiser reads .* \(1, L, 24\)"),
        ("unclip", torch.zeros(1, 7, 20), r"\(1, L, 24\)"),
    ],
)
def test_text_conditions(kind, text, message):
    with pytest.raises(ShapeError, match=message):
        Teacher(tiny_unet(kind), text_condition=text)


def test_text_conditions_are_finite():
    with pytest.raises(DataError, match="text_condition has values that are not finite"):
        Teacher(tiny_unet(), text_condition=torch.full((1, 7, 24), float("nan")))


@pytest.mark.parametrize(
    ("kind", "added", "error", "message"),
    [
        ("sd1", {}, ConfigError, "no embedding of pooled text and sizes"),
        ("sdxl", {"text_embed": torch.zeros(1, 24)}, ConfigError, "added_cond_kwargs has 'text_embed'"),
        ("sdxl", {"text_embeds": torch.zeros(2, 24)}, ShapeError, r"is <torch.float32 \(2, 24\)>"),
        ("sdxl", {"text_embeds": torch.zeros(1, 23)}, ShapeError, "takes 72 values, but text_embeds of 23"),
        ("sdxl", {"time_ids": torch.zeros(1, 9)}, ShapeError, "takes 72 values, but text_embeds of 0 and 9"),
    ],
)
def test_added_conditions(kind, added, error, message):
    with pytest.raises(error, match=message):
        Teacher(tiny_unet(kind), added_cond_kwargs=added)


def test_vaes():
    with pytest.raises(ConfigError, match="vae is a Linear, expected a diffusers autoencoder"):
        Teacher(tiny_unet(), vae=torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="the VAE's latents have 8 channels, the denoiser takes 4"):
        Teacher(tiny_unet(), vae=tiny_vae(latent_channels=8))
    pipeline = tiny_pipeline()
    pipeline.vae = tiny_vae(latent_channels=8)
    with pytest.raises(ConfigError, match="the VAE's latents have 8 channels"):
        Teacher.of(pipeline).encode(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 32, 32), r"\(3, 32, 32\)>, expected floating point \(B, 3, H, W\)"),
        (torch.zeros(1, 1, 32, 32), r"\(1, 1, 32, 32\)>"),
        (torch.zeros(1, 3, 32, 30), r"\(1, 3, 32, 30\): height and width must be multiples of 4"),
        (
            torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
            "images is <torch.uint8 .* for uint8, images / 127.5 - 1",
        ),
        (torch.zeros(0, 3, 32, 32), "nothing of it empty"),
    ],
)
def test_images(images, message):
    with pytest.raises(ShapeError, match=message):
        Teacher(tiny_unet(), vae=tiny_vae()).encode(images)


def test_posterior_samples():
    teacher, images = Teacher(tiny_unet(), vae=tiny_vae()), torch.zeros(2, 3, 32, 32)
    noise = torch.zeros(2, 4, 8, 8)
    with pytest.raises(ShapeError, match=r"noise is \(2, 4, 8, 4\), expected \(2, 4, 8, 8\)"):
        teacher.encode(images, noise=noise[..., :4])
    with pytest.raises(ShapeError, match="3 seeds for 2 images"):
        teacher.encode(images, seeds=[1, 2, 3])
    with pytest.raises(ConfigError, match="both seeds and noise"):
        teacher.encode(images, seeds=[1, 2], noise=noise)
    with pytest.raises(ConfigError, match="micro_batch is 0, expected at least 1 image"):
        teacher.encode(images, micro_batch=0)
    with pytest.raises(ConfigError, match="works on pixels, which have no posterior"):
        Teacher(tiny_unet("pixel")).encode(images, seeds=[1, 2])


GOOD = {
    "noisy": torch.zeros(2, 4, 8, 8),
    "timesteps": torch.zeros(2).long(),
    "condition": torch.zeros(2, 5, 24),
}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"noisy": torch.zeros(4, 8, 8)}, r"noisy is float32 \(4, 8, 8\), expected .* \(B, 4, h, w\)"),
        ({"noisy": torch.zeros(2, 3, 8, 8)}, r"noisy is float32 \(2, 3, 8, 8\)"),
        ({"noisy": torch.zeros(0, 4, 8, 8)}, "nothing of it empty"),
        ({"noisy": torch.zeros(2, 4, 8, 8).long()}, r"noisy is int64 \(2, 4, 8, 8\)"),
        ({"timesteps": torch.tensor(3)}, r"timesteps is int64 \(\), expected numbers \(2,\)"),
        ({"timesteps": torch.zeros(2).bool()}, r"timesteps is bool \(2,\)"),
        ({"condition": torch.zeros(2, 24)}, r"condition is float32 \(2, 24\), expected .* \(2, S, 24\)"),
        ({"condition": torch.zeros(1, 5, 24)}, r"condition is float32 \(1, 5, 24\)"),
        ({"condition": torch.zeros(2, 0, 24)}, "with S > 0"),
        ({"condition": torch.zeros(2, 5, 24).long()}, r"condition is int64 \(2, 5, 24\)"),
    ],
)
def test_calls(bad, message):
    with pytest.raises(ShapeError, match=message):
        Teacher(tiny_unet()).denoise(**{**GOOD, **bad})


def test_dits():
    with pytest.raises(ConfigError, match='label is \'both\', expected "replace" or "join"'):
        Teacher(tiny_dit(), label="both")
    with pytest.raises(ConfigError, match="a DiTTransformer2DModel has no option added_cond_kwargs"):
        Teacher(tiny_dit(), added_cond_kwargs={})
    teacher, condition = Teacher(tiny_dit()), torch.zeros(1, 5, 16)
    for side in ((8, 4), (7, 7)):
        with pytest.raises(ShapeError, match="takes squares whose side is a multiple of its patch size, 2"):
            teacher.denoise(torch.zeros(1, 4, *side), torch.zeros(1).long(), condition)


def test_precisions_and_devices():
    with pytest.raises(ConfigError, match="precision is 'fp8', expected one of fp32, bf16, fp64"):
        Teacher(tiny_unet()).to_precision("fp8")
    with pytest.raises(DeviceError, match="device='no-device' is not available"):
        Teacher(tiny_unet(), device="no-device")
