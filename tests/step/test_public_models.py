"""Models and recipes that cannot work together, models that change under way, and wrappers that may."""

import open_clip
import pytest
import torch
from torch import nn

import diva_rs
from builders.diffusion import tiny_pipeline
from builders.refused import refused
from builders.small import images, scheduler, small_clip, small_teacher, small_unet, small_vae
from diva_rs import ConfigError, DeviceError, Recipe, ShapeError, Teacher, Trainer

pytestmark = pytest.mark.hostile

GOOD = images(3)


@pytest.fixture(scope="module")
def teacher():
    return small_teacher()


@pytest.mark.parametrize(
    "entry", [Trainer, diva_rs.FeedbackLoss, lambda *args: diva_rs.post_train(*args[:2], [GOOD])]
)
def test_students_that_cannot_be_trained(teacher, entry):
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": (1, 1, 1, 1), "width": 8, "head_width": 8}
    resnet = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)
    with refused(ConfigError, "ModifiedResNet is a ResNet: it has no patch tokens", resnet):
        entry(resnet, teacher)
    frozen = small_clip().requires_grad_(False)
    with refused(
        ConfigError, r"every parameter of the vision tower .* is frozen.*requires_grad_\(True\)", frozen
    ):
        entry(frozen, teacher)
    computed = small_clip()
    computed.visual._parameters["class_embedding"] = computed.visual.class_embedding * 1.0
    with pytest.raises(ConfigError, match=r"visual.class_embedding cannot be trained: it is not a leaf"):
        entry(computed, teacher)
    half = small_clip().half()
    with refused(
        ConfigError, r"is torch.float16, precision=\"fp32\" trains torch.float32 .*clip.float\(\)", half
    ):
        entry(half, teacher)
    with pytest.raises(ConfigError, match="clip is a str, expected a loaded model"):
        entry("ViT-B-32", teacher)


def test_precision_and_weights_must_agree(teacher):
    single, double = small_clip(), small_clip(torch.float64)
    with refused(ConfigError, r"precision=\"fp64\" trains torch.float64 .*call clip.double\(\)", single):
        Trainer(single, teacher, Recipe(precision="fp64"))
    for precision in ("fp32", "bf16"):
        match = rf'precision="{precision}" trains torch.float32 .*clip.float\(\), or precision="fp64"'
        with refused(ConfigError, match, double):
            Trainer(double, teacher, Recipe(precision=precision))
    Trainer(double, teacher, Recipe(precision="fp64")).step(GOOD)


def test_recipes_that_do_not_fit(teacher):
    clip = small_clip()
    for fields, match in (
        ({"choose": 17}, "choose=17 is more than the tower's 16 patches"),
        ({"condition": "window", "window": 17}, "window=17 is wider than the tower's 16 patches"),
        ({"timestep_range": (0, 1001)}, r"timestep_range=\(0, 1001\) ends beyond the teacher's 1000"),
    ):
        with refused(ConfigError, match, clip):
            Trainer(clip, teacher, Recipe(**fields))
    with refused(ConfigError, "there is no recipe 'diva-siglip'; did you mean", clip):
        Trainer(clip, teacher, "diva-siglip")
    with refused(ConfigError, "recipe is a dict: give a diva_rs.Recipe", clip):
        diva_rs.FeedbackLoss(clip, teacher, {"draws": 2})
    with pytest.raises(ConfigError, match="draws=0: it must be an integer of at least 1"):
        Recipe(draws=0)


def test_more_visual_tokens_than_text_to_add(teacher):
    few = Teacher(small_unet(), vae=small_vae(), scheduler=scheduler(), text_condition=torch.zeros(1, 5, 24))
    clip = small_clip()
    trainer = Trainer(clip, few, Recipe(text="add", choose=5))
    with refused(
        ShapeError, r"text token for each of the 6 visual tokens, but it has 5: choose at most 4", clip
    ):
        trainer.accumulate(GOOD)
    Trainer(clip, few, Recipe(text="add", choose=4)).step(GOOD)


def test_teachers_without_a_part():
    clip, text = small_clip(), torch.zeros(1, 5, 24)
    with refused(ConfigError, r"no scheduler was found.*pass Teacher\(unet, scheduler=...\)", clip):
        Trainer(clip, Teacher(small_unet(), vae=small_vae(), text_condition=text))
    with refused(ConfigError, r"no tokenizer was found|no text encoder was found", clip):
        Trainer(clip, Teacher(small_unet(), vae=small_vae(), scheduler=scheduler())).accumulate(GOOD)
    trainer = Trainer(clip, Teacher(small_unet(), scheduler=scheduler(), text_condition=text))
    with refused(ConfigError, r"no VAE was found.*pass Teacher\(unet, vae=...\)", clip):
        trainer.accumulate(GOOD)
    trainer.accumulate({"images": GOOD, "latents": torch.zeros(3, 4, 8, 8)})  # latents need none
    with refused(ConfigError, "Linear cannot be a teacher", small_clip()):
        Trainer(clip, nn.Linear(2, 2))
    with refused(ConfigError, "does not exist; expected a diffusers ", small_clip()):
        Trainer(clip, "stable-diffusion-2-1-base")


def test_a_text_condition_that_does_not_fit():
    clip = small_clip()
    with pytest.raises(
        ShapeError, match=r"text_condition is <torch.float32 \(1, 5, 16\)>, but the denoiser reads .* 24\)"
    ):
        Trainer(clip, Teacher(small_unet(), scheduler=scheduler(), text_condition=torch.zeros(1, 5, 16)))
    pipeline = tiny_pipeline()
    pipeline.unet = type(pipeline.unet).from_config({**pipeline.unet.config, "cross_attention_dim": 32})
    trainer = Trainer(clip, pipeline)
    with refused(ShapeError, "text encoder's tokens are 24 wide, the denoiser reads a width of 32", clip):
        trainer.accumulate(GOOD)
    own = Teacher(small_unet(), vae=small_vae(), scheduler=scheduler(), text_condition=torch.zeros(4, 5, 24))
    for fields in ({}, {"micro_batch": 2}):
        trainer = Trainer(clip, own, Recipe(**fields))
        trainer.step(images(4))
        with refused(ShapeError, r"text_condition is \(4, 5, 24\), the batch has 3 samples", clip):
            trainer.accumulate(GOOD)


def test_apply_needs_a_gradient(teacher):
    clip = small_clip()
    trainer = Trainer(clip, teacher)
    with refused(ConfigError, r"apply\(\) has no gradient to apply: call accumulate\(images\) first", clip):
        trainer.apply()
    trainer.accumulate(GOOD)
    trainer.discard()
    with refused(ConfigError, "no gradient to apply", clip):
        trainer.apply()


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        ("double", DeviceError, "is now torch.float64 on cpu, but was torch.float32 on cpu when"),
        ("half", DeviceError, "is now torch.float16 on cpu, but was .*move the model first"),
        ("meta", ConfigError, "is another tensor than when this trainer was made"),
    ],
)
def test_a_clip_that_moves_after_the_trainer_was_made(teacher, change, kind, match):
    clip = small_clip()
    trainer = Trainer(clip, teacher)
    state = trainer.state_dict()
    trainer.accumulate(GOOD)
    clip.to({"double": torch.float64, "half": torch.float16, "meta": "meta"}[change])
    with pytest.raises(kind, match=match):
        trainer.apply()
    assert all(parameter.grad is None for parameter in trainer.parameters().values())
    for _ in range(2):
        with pytest.raises(kind, match=match):
            trainer.accumulate(GOOD)
    with pytest.raises(kind, match=match):
        trainer.load_state_dict(state)
    assert trainer.steps_done == 0


def test_a_projector_that_moves_and_weights_that_are_replaced(teacher):
    clip = small_clip()
    trainer = Trainer(clip, teacher)
    trainer.projector.double()
    with refused(DeviceError, "projector.weight is now torch.float64", clip):
        trainer.accumulate(GOOD)
    trainer = Trainer(clip, teacher)
    clip.load_state_dict(small_clip(seed=3).state_dict(), assign=True)
    with refused(ConfigError, "is another tensor than when this trainer was made.*assign=True", clip):
        trainer.accumulate(GOOD)
    trainer = Trainer(clip, teacher)
    clip.load_state_dict(small_clip(seed=4).state_dict())
    trainer.step(GOOD)


@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_the_callers_modes_do_not_reach_the_step(teacher, mode):
    plain, other = small_clip(), small_clip()
    expected = Trainer(plain, teacher, Recipe(lr=1e-2, anchor=0.1))
    expected.step(GOOD)
    with mode():
        batch = {"images": GOOD + 0, "latents": torch.zeros(3, 4, 8, 8) + 0.5}
        trainer = Trainer(other, teacher, Recipe(lr=1e-2, anchor=0.1))
        trainer.step(GOOD + 0)
        trainer.accumulate(batch)
        trainer.discard()
    assert all(map(torch.equal, plain.state_dict().values(), other.state_dict().values()))


def test_images_in_a_graph_get_no_gradient(teacher):
    batch = GOOD.clone().requires_grad_()
    Trainer(small_clip(), teacher).accumulate(
        {"images": batch, "latents": batch.mean() * torch.ones(3, 4, 8, 8)}
    )
    assert batch.grad is None


def test_wrapped_models_train_as_they_are(teacher, tmp_path):
    bare = small_clip()
    expected = Trainer(bare, teacher, Recipe(lr=1e-2))
    expected.step(GOOD)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
        for wrap in wrappers:
            inner = small_clip()
            trainer = Trainer(wrap(inner), teacher, Recipe(lr=1e-2))
            trainer.step(GOOD)
            assert all(map(torch.equal, bare.state_dict().values(), inner.state_dict().values()))
            assert trainer.parameters().keys() == expected.parameters().keys()
    finally:
        torch.distributed.destroy_process_group()
