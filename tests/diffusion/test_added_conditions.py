"""What a UNet reads beside the condition is what its own diffusers pipeline would give it."""

import diffusers
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer

from builders.changes import relative_error
from builders.diffusion import (
    TEXT_WIDTH,
    loss_of,
    teacher_inputs,
    tiny_pipeline,
    tiny_scheduler,
    tiny_text_encoder,
    tiny_tokenizer,
    tiny_unet,
    tiny_vae,
)
from diva_rs.diffusion import Teacher
from diva_rs.errors import ConfigError
from diva_rs.native import NotNative, native_denoiser

pytestmark = pytest.mark.parity

POOLED, EACH = 16, 8


def refiner(pooled=POOLED):
    """SDXL's refiner: one text encoder as wide as the pooled text, five ids."""
    changes = {"projection_class_embeddings_input_dim": pooled + 5 * EACH, "cross_attention_dim": pooled}
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=tiny_vae(),
        unet=tiny_unet("sdxl", **changes),
        scheduler=tiny_scheduler(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=tiny_text_encoder(2, width=pooled, projection=pooled),
        tokenizer_2=tiny_tokenizer(),
        requires_aesthetics_score=True,
    )


def unclip():
    """With an image normaliser and a cosine schedule that both do something."""
    pipeline = tiny_pipeline("unclip")
    torch.manual_seed(6)
    normalizer = StableUnCLIPImageNormalizer(10)
    normalizer.mean.data, normalizer.std.data = torch.randn(1, 10), torch.rand(1, 10) + 0.5
    return diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=None,
        image_encoder=None,
        image_normalizer=normalizer,
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=pipeline.tokenizer,
        text_encoder=pipeline.text_encoder,
        unet=pipeline.unet,
        scheduler=pipeline.scheduler,
        vae=pipeline.vae,
    )


def check(ours, theirs, inputs):
    """Prediction and gradient against diffusers."""
    *_, condition = inputs
    found = []
    for predict in (ours, theirs):
        prediction = predict(*inputs)
        found += [prediction.detach(), *torch.autograd.grad(loss_of(prediction), condition)]
    tolerance = 1e-10 if found[0].dtype == torch.float64 else 1e-5
    assert relative_error(found[0], found[2]) <= tolerance
    assert relative_error(found[1], found[3]) <= tolerance


@pytest.mark.parametrize("source", ["pipeline", "folder", "unet of the folder"])
def test_the_refiner_reads_five_ids_and_its_own_pooled_width(source, tmp_path):
    pipeline = refiner()
    given = pipeline
    if source != "pipeline":
        pipeline.save_pretrained(tmp_path)
        given = tmp_path
    if source == "unet of the folder":
        given = diffusers.UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet")
    ids, _ = pipeline._get_add_time_ids((32, 32), (0, 0), (32, 32), 6.0, 2.5, (32, 32), (0, 0), (32, 32),
                                        torch.float32, POOLED)  # fmt: skip

    def theirs(noisy, timesteps, condition):
        added = {"text_embeds": torch.zeros(3, POOLED), "time_ids": ids.repeat(3, 1)}
        return pipeline.unet(noisy, timesteps, condition, added_cond_kwargs=added).sample

    teacher = Teacher(given)
    check(teacher.denoise, theirs, teacher_inputs(4, 5, POOLED, torch.float32))
    with pytest.raises(NotNative, match="aesthetic score"):
        native_denoiser(teacher)


def test_a_refiner_without_its_text_encoder_needs_its_added_condition():
    unet = refiner().unet
    inputs = teacher_inputs(4, 5, POOLED, torch.float32)
    with pytest.raises(ConfigError, match=r"SDXL's refiner.*added_cond_kwargs"):
        Teacher(unet, vae=tiny_vae()).denoise(*inputs)
    ids = torch.tensor([[32.0, 32.0, 0.0, 0.0, 2.5]])
    for added in ({"time_ids": ids}, {"text_embeds": torch.zeros(1, POOLED)}):
        score = 2.5 if "time_ids" in added else 6.0
        whole = {"text_embeds": torch.zeros(3, POOLED), "time_ids": ids.clone().repeat(3, 1)}
        whole["time_ids"][:, 4] = score
        expected = unet(*inputs, added_cond_kwargs=whole).sample
        found = Teacher(unet, vae=tiny_vae(), added_cond_kwargs=added).denoise(*inputs)
        assert relative_error(found, expected) <= 1e-5


def test_sdxl_reads_the_pooled_text_of_each_condition():
    pipeline = tiny_pipeline("sdxl")
    teacher = Teacher(pipeline, slot="both")
    prompts = ["a photo of a cat", "a photo of two dogs", ""]
    with torch.no_grad():
        tokens, _, pooled, _ = pipeline.encode_prompt(
            prompts, device="cpu", do_classifier_free_guidance=False
        )
    assert teacher.condition_width == tokens.shape[2] + pooled.shape[1]
    condition = teacher.texts(prompts).requires_grad_()
    size = 8 * teacher.family.added.factor()
    ids = torch.tensor([[size, size, 0, 0, size, size]]).repeat(3, 1)
    noisy, timesteps, _ = teacher_inputs(4, 1, 1, torch.float32)

    def theirs(noisy, timesteps, condition):
        added = {"text_embeds": condition[..., tokens.shape[2] :].mean(1), "time_ids": ids}
        return pipeline.unet(
            noisy, timesteps, condition[..., : tokens.shape[2]], added_cond_kwargs=added
        ).sample

    check(teacher.denoise, theirs, (noisy, timesteps, condition))
    own = pipeline.unet(
        noisy, timesteps, tokens, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}
    ).sample
    assert relative_error(teacher.denoise(noisy, timesteps, condition), own) <= 1e-5
    with pytest.raises(NotNative, match="pooled text"):
        native_denoiser(teacher)
    with pytest.raises(ConfigError, match="text_embeds"):
        Teacher(pipeline, slot="both", added_cond_kwargs={"text_embeds": pooled[:1]})
    with pytest.raises(ConfigError, match="slot is 'pooled'"):
        Teacher(pipeline, slot="pooled")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("source, level", [("pipeline", None), ("folder", 0), ("unet of the folder", 300)])
def test_stable_unclip_reads_what_its_pipeline_makes_of_an_embedding(source, level, dtype, tmp_path):
    pipeline = unclip()
    text = pipeline.encode_prompt("", "cpu", 1, False)[0].detach().to(dtype)
    given = pipeline
    if source != "pipeline":
        pipeline.save_pretrained(tmp_path)
        given = tmp_path
    if source == "unet of the folder":
        given = diffusers.UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet")
    teacher = Teacher(given, text_condition=text, noise_level=level)
    teacher = teacher.to_precision("fp64" if dtype == torch.float64 else "fp32")
    assert teacher.condition_width == 10
    pipeline.unet.to(dtype)
    pipeline.image_normalizer.mean.data, pipeline.image_normalizer.std.data = (
        part.to(dtype) for part in (pipeline.image_normalizer.mean.data, pipeline.image_normalizer.std.data)
    )

    def theirs(noisy, timesteps, condition):
        noise = torch.zeros(3, 10, dtype=dtype)
        labels = pipeline.noise_image_embeddings(condition.mean(1), level or 0, noise)
        return pipeline.unet(noisy, timesteps, text.repeat(3, 1, 1), class_labels=labels).sample

    inputs = teacher_inputs(4, 3, 10, dtype)
    check(teacher.denoise, theirs, inputs)
    check(native_denoiser(teacher).predict, theirs, inputs)


def test_a_unet_without_its_pipeline_reads_the_level_alone():
    unet, text = tiny_unet("unclip"), torch.zeros(1, 7, TEXT_WIDTH)

    def theirs(noisy, timesteps, condition):
        level = diffusers.models.embeddings.get_timestep_embedding(torch.tensor([7] * 3), 10, True, 0)
        labels = torch.cat((condition.mean(1), level), 1)
        return unet(noisy, timesteps, text.repeat(3, 1, 1), class_labels=labels).sample

    teacher = Teacher(unet, text_condition=text, noise_level=7)
    check(teacher.denoise, theirs, teacher_inputs(4, 3, 10, torch.float32))
    assert Teacher(unet, text_condition=text).condition_width == 20


def test_conditions_that_do_not_fit():
    with pytest.raises(ConfigError, match="noise_level is -1, expected a whole number"):
        Teacher(tiny_unet("unclip"), text_condition=torch.zeros(1, 7, TEXT_WIDTH), noise_level=-1)
    with pytest.raises(ConfigError, match="noise_level is 1000, but the pipeline has 1000 levels"):
        Teacher(unclip(), noise_level=1000)
    pipeline = unclip()
    pipeline.image_normalizer = StableUnCLIPImageNormalizer(8)
    with pytest.raises(ConfigError, match="normalizer is for embeddings 8 wide, this UNet takes 10"):
        Teacher(pipeline)
    with pytest.raises(ConfigError, match="the VAE encodes images of 6 channels"):
        Teacher(tiny_unet(), vae=tiny_vae(in_channels=6))
