"""The step on PyTorch's meta device: a stray CPU tensor or a read of a value raises there. A step that passes
has no hidden synchronisation on CUDA and fixed shapes."""

import pytest
import torch

import diva_rs
from builders.judged import given, judged
from builders.small import SIDE, WIDTH, scheduler, small_clip, small_unet, small_vae
from builders.texts import tokenize
from diva_rs import FeedbackLoss, Recipe, Trainer
from diva_rs.captions import CaptionTerm, KeepTerm, WrittenTerm

VARIANTS = {
    "default": {},
    "concat": {"text": "concat", "condition": "all"},
    "window": {"text": "none", "condition": "window", "window": 3},
    "class-mlp": {"condition": "class", "projector": "mlp", "text": "add"},
    "bernoulli": {"bernoulli": True, "density": 0.4},
    "adamw-anchor": {"optimizer": "adamw", "anchor": 0.1, "micro_batch": 1, "weight_decay": 0.1},
    "min-snr-l1": {"min_snr": 5.0, "loss": "l1", "draws": 3, "replacement": True},
    "text": {"condition": "text", "anchor": 0.1},
    "official-pixels": {"vae_pixels": "official", "resize": "bilinear", "antialias": False},
    "sampled-posterior": {"latent": "sample", "pixels": "symmetric", "micro_batch": 1},
    "contrast": {"contrast": 1.0, "denoising": 0.0, "condition": "class", "text": "add"},
    "contrast-official": {
        "contrast": 1.0,
        "contrast_view": "official",
        "contrast_negatives": 1,
        "anchor": 0.1,
        "anchor_kind": "squared+kernel",
        "micro_batch": 1,
        "denoiser_batch": 1,
        "denoiser_checkpointing": True,
    },
    "clip-pixels": {"pixels": "clip", "resize": "bilinear", "gradient_checkpointing": True},
}
LOW_RANK = {"low_rank": 2, "low_rank_bias": True, "grad_clip": 0.5}


def meta_teacher():
    unet, vae = small_unet().to("meta"), small_vae().to("meta")
    text = torch.empty(1, 8, WIDTH, device="meta")
    return diva_rs.Teacher(unet, vae=vae, scheduler=scheduler(), text_condition=text)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("fields", [*VARIANTS.values(), LOW_RANK], ids=[*VARIANTS, "low-rank"])
def test_a_whole_step_reads_nothing_from_the_device(fields, backend):
    trainer = Trainer(small_clip().to("meta"), meta_teacher(), Recipe(backend=backend, **fields))
    batch = torch.empty(2, 3, SIDE, SIDE, device="meta")
    for _ in range(2):
        loss = trainer.accumulate(batch)
        assert loss.is_meta and loss.shape == ()
        trainer.accumulate(batch)
        trainer.apply()
    for name, parameter in trainer.parameters().items():
        assert parameter.grad is not None, name
        assert parameter.grad.is_meta and parameter.grad.shape == parameter.shape, name


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_one_native_call_from_images_to_updated_weights_reads_nothing(fields):
    trainer = Trainer(small_clip().to("meta"), meta_teacher(), Recipe(backend="native", **fields))
    batch = trainer.step_modules.batch(torch.empty(2, 3, SIDE, SIDE, device="meta"), None, 0, None, 0)
    before = torch.empty((), device="meta")
    losses, norm = trainer.step_modules.step.train(
        trainer.step_modules.reader.native, batch, trainer._stages.optimizer, update=(1.0, [0.5, 0.5], before)
    )
    assert set(trainer.backend.values()) == {"native"}
    for statistic in (*losses.values(), norm):
        assert statistic.is_meta and statistic.shape == ()
    for name, parameter in trainer.parameters().items():
        assert parameter.grad.is_meta and parameter.grad.shape == parameter.shape, name


@pytest.mark.parametrize("item", ["pixel_values", "latents", "pixels-teacher"])
def test_every_way_in_reads_nothing(item):
    teacher, batch = meta_teacher(), {"images": torch.empty(2, 3, SIDE, SIDE, device="meta")}
    if item == "pixels-teacher":
        text = torch.empty(1, 8, WIDTH, device="meta")
        unet = small_unet(channels=3).to("meta")
        teacher = diva_rs.Teacher(unet, scheduler=scheduler(), text_condition=text)
    elif item == "latents":
        batch["latents"] = torch.empty(2, 4, 8, 8, device="meta")
    else:
        batch["pixel_values"] = batch.pop("images")
    assert Trainer(small_clip().to("meta"), teacher, Recipe(backend="native")).step(batch).is_meta


@pytest.mark.parametrize("teacher", [meta_teacher, lambda: None], ids=["feedback", "alone"])
@pytest.mark.parametrize("face", [Trainer, FeedbackLoss])
def test_terms_over_texts_read_nothing(face, teacher):
    clip = small_clip().to("meta")
    terms = {
        "captions": CaptionTerm(given(), clip, tokenize),
        "written": WrittenTerm(judged(20), clip, tokenize, hard=1),
        "keep": KeepTerm(clip, tokenize, ["a", "b"]),
    }
    unet = teacher()
    recipe = Recipe(denoising=0.0 if unet is None else 1.0)
    step = face(clip, unet, recipe, terms={name: (0.5, term) for name, term in terms.items()})
    run = step.step if face is Trainer else step
    for ids in ([10, 11, 13], [12, 14, 11]):
        assert run({"images": torch.empty(3, 3, SIDE, SIDE, device="meta"), "ids": ids}).is_meta


def test_host_batches_go_to_the_device():
    trainer = Trainer(small_clip().to("meta"), meta_teacher(), Recipe())
    assert trainer.step({"images": torch.rand(2, 3, SIDE, SIDE), "ids": [4, 5]}).is_meta


def test_feedback_loss_on_the_device():
    feedback = FeedbackLoss(small_clip().to("meta"), meta_teacher())
    loss = feedback(torch.empty(2, 3, SIDE, SIDE, device="meta"))
    loss.backward()
    assert all(parameter.grad.is_meta for parameter in feedback.trained_parameters())


def test_the_meta_device_catches_a_host_read():
    """The instrument itself: what the tests above rely on."""
    trainer = Trainer(small_clip().to("meta"), meta_teacher(), Recipe(backend="torch"))

    def reads(module, inputs):
        inputs[0].sum().item()

    hook = trainer.teacher.unet.mid_block.register_forward_pre_hook(reads)
    with pytest.raises(RuntimeError, match="meta"):
        trainer.step(torch.empty(2, 3, SIDE, SIDE, device="meta"))
    hook.remove()


def test_the_meta_device_catches_a_stray_host_tensor():
    trainer = Trainer(small_clip().to("meta"), meta_teacher(), Recipe(backend="torch"))

    def strays(module, inputs):
        return (inputs[0] + torch.ones(16, 1, 1), *inputs[1:])

    hook = trainer.teacher.unet.mid_block.register_forward_pre_hook(strays)
    with pytest.raises(RuntimeError, match="device"):
        trainer.step(torch.empty(2, 3, SIDE, SIDE, device="meta"))
    hook.remove()
