"""The teacher's parts against diffusers itself: latents, text, and what is found in pipelines and folders."""

import warnings

import diffusers
import pytest
import torch

from builders.changes import relative_error
from builders.diffusion import (
    TEXT_WIDTH,
    direct_call,
    teacher_inputs,
    tiny_dit,
    tiny_pipeline,
    tiny_scheduler,
    tiny_unet,
    tiny_vae,
)
from diva_rs.diffusion import Teacher

pytestmark = pytest.mark.parity

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
DTYPES = list(TOLERANCE)


@pytest.mark.parametrize(
    "config",
    [
        {"scaling_factor": 0.18215},
        {"scaling_factor": 1.5305, "shift_factor": 0.0609},
        {"scaling_factor": 0.5, "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [2.0, 3.0, 4.0, 5.0]},
        {"scaling_factor": 0.3, "use_quant_conv": False},
    ],
    ids=["scale", "shift", "per-channel", "no-quant-conv"],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_latents_are_the_vaes_own(config, dtype):
    vae = tiny_vae(**config).to(dtype)
    images = torch.rand(5, 3, 32, 24, dtype=dtype) * 2 - 1
    noise = torch.randn(5, 4, 8, 6, dtype=dtype)
    teacher = Teacher(tiny_unet().to(dtype), vae=vae)

    posterior = vae.encode(images).latent_dist

    def scaled(latents):
        if "latents_mean" in config:
            mean, std = (
                torch.tensor(config[key], dtype=dtype).view(1, 4, 1, 1)
                for key in ("latents_mean", "latents_std")
            )
            return (latents - mean) / std * config["scaling_factor"]
        return (latents - config.get("shift_factor", 0)) * config["scaling_factor"]

    assert relative_error(teacher.encode(images), scaled(posterior.mode())) <= TOLERANCE[dtype]
    sampled = scaled(posterior.mean + posterior.std * noise)
    for micro_batch in (1, 2, 8):
        ours = teacher.encode(images, noise=noise, micro_batch=micro_batch)
        assert relative_error(ours, sampled) <= TOLERANCE[dtype]


def test_encoding_takes_neither_gradients_nor_autocast():
    teacher = Teacher(tiny_unet(), vae=tiny_vae())
    images = (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    latents = teacher.encode(images)
    assert not latents.requires_grad and not Teacher(tiny_unet("pixel")).encode(images).requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(teacher.encode(images), latents)
    assert teacher.encode(images.half()).dtype == torch.float16


def test_seeds_sample_the_posterior_as_diffusers_does():
    vae = tiny_vae()
    teacher = Teacher(tiny_unet(), vae=vae)
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    ours = teacher.encode(images, seeds=[11, 12, 11])
    for row, seed in enumerate((11, 12, 11)):
        generator = torch.Generator().manual_seed(seed)
        expected = vae.encode(images[row : row + 1]).latent_dist.sample(generator) * 0.18215
        assert relative_error(ours[row : row + 1], expected) <= 1e-5
    assert relative_error(ours, teacher.encode(images)) > 1e-3


def test_pixels_are_their_own_latents():
    teacher = Teacher(tiny_unet("pixel", sample_size=(8, 16)))
    images = torch.rand(2, 3, 8, 16)
    assert torch.equal(teacher.encode(images), images)
    assert teacher.latent_shape == (3, 8, 16) and teacher.image_size == (8, 16)


@pytest.mark.parametrize("prompt", ["", "a photo of a cat.", "a " * 100])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_text_is_the_pipelines_own(kind, prompt):
    pipeline = tiny_pipeline(kind)
    if kind == "sd1":
        expected = pipeline.encode_prompt(prompt, "cpu", 1, False)[0]
    else:
        expected = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the long prompt
        teacher = Teacher.of(pipeline)
        text = teacher.text(prompt)
    assert text.shape == (1, 77, teacher.condition_width)
    assert relative_error(text, expected.detach()) <= 1e-5
    assert teacher.text(prompt) is text  # encoded once


def test_text_masks_its_padding_where_the_encoder_says_so():
    pipeline = tiny_pipeline()
    unmasked = Teacher.of(pipeline).text("a cat")
    pipeline.text_encoder.config.use_attention_mask = True
    masked = Teacher.of(pipeline).text("a cat")
    assert relative_error(masked, pipeline.encode_prompt("a cat", "cpu", 1, False)[0].detach()) <= 1e-5
    assert relative_error(masked, unmasked) > 1e-4


def test_unclip_reads_the_empty_prompt_and_leaves_the_condition_to_the_projection():
    pipeline = tiny_pipeline("unclip")
    teacher = Teacher.of(pipeline)
    assert teacher.condition_width == 20
    assert torch.equal(teacher.text("a cat"), torch.zeros(1, 1, 20))
    noisy, timesteps, condition = teacher_inputs(4, 3, 20, torch.float32)
    text = pipeline.encode_prompt("", "cpu", 1, False)[0]
    expected = direct_call("unclip", pipeline.unet, noisy, timesteps, condition, text)
    assert relative_error(teacher.denoise(noisy, timesteps, condition), expected) <= 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline("sd2-v").save_pretrained(path)
    return path


def from_subfolder(folder):
    return diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")


def from_own_folder(folder):
    return diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")


@pytest.mark.parametrize(
    "source",
    [from_subfolder, from_own_folder, lambda folder: folder, lambda folder: str(folder / "unet")],
    ids=["unet", "unet of its own folder", "folder", "folder of the unet"],
)
def test_everything_is_found_beside_the_unet(folder, source):
    pipeline = tiny_pipeline("sd2-v")
    expected = Teacher.of(pipeline)
    teacher = Teacher.of(source(folder))
    assert f"vae: in {folder}/vae, not loaded yet" in teacher.describe()

    images, call = torch.rand(2, 3, 32, 32) * 2 - 1, teacher_inputs(4, 3, TEXT_WIDTH, torch.float32)
    assert torch.equal(teacher.denoise(*call), expected.denoise(*call))
    assert torch.equal(teacher.encode(images), expected.encode(images))
    assert torch.equal(teacher.text("a cat"), expected.text("a cat"))
    assert torch.equal(teacher.schedule.alphas_cumprod, pipeline.scheduler.alphas_cumprod)
    assert teacher.schedule.prediction_type == "v_prediction"
    assert teacher.latent_shape == (4, 8, 8) and teacher.image_size == (32, 32)
    assert [type(module).__name__ for module in teacher.modules()] == [
        "UNet2DConditionModel",
        "AutoencoderKL",
        "CLIPTextModel",
    ]
    assert all(not p.requires_grad for module in teacher.modules() for p in module.parameters())
    parameters = sum(p.numel() for p in pipeline.vae.parameters())
    lines = teacher.describe().splitlines()
    assert lines[2] == f"vae: AutoencoderKL, {parameters:,} parameters, float32 on cpu, from {folder}/vae"
    assert "not loaded" not in "".join(lines)


def test_given_parts_come_before_found_ones(folder):
    vae, scheduler = tiny_vae(seed=9), tiny_scheduler("sd1")
    text = torch.randn(1, 4, TEXT_WIDTH)
    teacher = Teacher(folder, vae=vae, scheduler=scheduler, text_condition=text)
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(teacher.encode(images), Teacher(tiny_unet(), vae=vae).encode(images))
    assert teacher.schedule.prediction_type == "epsilon"
    assert torch.equal(teacher.text("whatever"), text)


def test_sdxl_and_dit_folders(tmp_path):
    pipeline = tiny_pipeline("sdxl")
    pipeline.save_pretrained(tmp_path / "sdxl")
    expected = pipeline.encode_prompt("a cat", do_classifier_free_guidance=False)[0].detach()
    assert relative_error(Teacher.of(tmp_path / "sdxl").text("a cat"), expected) <= 1e-5

    dit = tiny_dit()
    diffusers.DiTPipeline(dit, tiny_vae(), tiny_scheduler()).save_pretrained(tmp_path / "dit")
    call = teacher_inputs(4, 3, 16, torch.float32)
    for source in (tmp_path / "dit", tmp_path / "dit" / "transformer"):
        teacher = Teacher.of(source)
        assert torch.equal(teacher.denoise(*call), Teacher(dit).denoise(*call))
        assert teacher.image_size == (32, 32) and torch.equal(teacher.text("a cat"), torch.zeros(1, 1, 16))


def test_a_folder_with_half_precision_files_alone(tmp_path):
    pipeline = tiny_pipeline().to(torch.float16)
    pipeline.save_pretrained(tmp_path, variant="fp16")
    teacher = Teacher(diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet", variant="fp16"))
    vae, images = tiny_vae().half().float().eval(), torch.rand(1, 3, 32, 32) * 2 - 1
    expected = vae.encode(images).latent_dist.mode() * 0.18215
    assert relative_error(teacher.encode(images), expected.detach()) <= 1e-5
    assert teacher.text("a cat").dtype == torch.float32
