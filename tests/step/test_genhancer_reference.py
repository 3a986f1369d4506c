"""GenHancer's two stages against plain PyTorch, and its run on the microworld."""

import copy

import pytest
import torch

import diva_rs
from builders import small
from builders.clips import clip_variants
from builders.flows import flow_scheduler, flow_vae, tiny_flux, tiny_sd3
from builders.genhancer import Reference, recipe, teacher
from builders.reference import OPENAI, channels
from diva_rs import Recipe, Teacher, Trainer
from diva_rs.clip import adapt
from diva_rs.clip.lora import LowRank
from diva_rs.errors import ConfigError

TORCH = "torch (as the recipe says)"
TOLERANCE = {"fp64": 1e-10, "fp32": 1e-5}
TRAINED = {
    "genhancer": ({"projector", "denoiser"}, {"visual"}),
    "genhancer-official": ({"projector", "denoiser"}, {"projector", "denoiser", "visual"}),
}


@pytest.mark.parity
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize(
    "account, micro_batch", [("genhancer", None), ("genhancer-official", 1), ("genhancer-official", 2)]
)
def test_loss_and_gradients_of_both_stages(account, micro_batch, backend, precision):
    dtype = torch.float64 if precision == "fp64" else torch.float32
    settings = recipe(account, precision=precision, backend=backend, micro_batch=micro_batch, latent="mean")
    settings = settings.replace(stages=tuple({**dict(stage), "steps": 1} for stage in settings.stages))
    clip, flow = small.small_clip(dtype), teacher(dtype)
    reference = Reference(copy.deepcopy(clip.visual), copy.deepcopy(flow.denoiser), 20)
    trainer = Trainer(clip, flow, settings)
    assert set(trainer.backend.values()) <= {"native" if backend == "native" else TORCH, "not needed yet"}
    images = small.images(3, dtype=dtype)
    mean, std = (channels(values, images) for values in OPENAI)
    mode = flow.vae.encode(images * 2 - 1).latent_dist.mode().detach()
    latents = (mode - 0.1159) * 0.3611
    for stage, trained in enumerate(TRAINED[account]):
        for name, value in trainer.parameters().items():
            if name.endswith("lora_B") and stage:  # with zeros, A's gradient would be zero
                value.data.normal_(std=0.1)
        trainer.step_modules.low_rank.merge()
        weights = {name: value.detach().clone() for name, value in trainer.parameters().items()}
        draws = diva_rs.draw(seed=11 + stage, ids=range(3), draws=1, latent_shape=(16, 8, 8))
        ours = float(trainer.accumulate(images, draws=draws))
        leaves = {
            name: value.requires_grad_(name.split(".")[0] in trained) for name, value in weights.items()
        }
        theirs = reference.loss(leaves, 16.0 / 4, (images - mean) / std, latents, draws)
        theirs.backward()
        expected = {name: value.grad for name, value in leaves.items() if value.grad is not None}
        assert {name.split(".")[0] for name in expected} == trained and trainer.stage == stage
        assert abs(ours - float(theirs.detach())) <= TOLERANCE[precision] * float(theirs.detach())
        assert small.worst(small.gradients(trainer), expected) <= TOLERANCE[precision]
        trainer.apply()


@pytest.mark.parametrize("account", TRAINED)
def test_each_stage_changes_what_it_trains(account):
    clip, flow = small.small_clip(), teacher()
    settings = recipe(account)
    trainer = Trainer(clip, flow, settings)
    for trained in TRAINED[account]:
        before = {name: value.detach().clone() for name, value in trainer.parameters().items()}
        tower = copy.deepcopy(clip.state_dict())
        for _ in range(3):
            trainer.step(small.images())
        changed = {name for name, value in trainer.parameters().items() if not value.equal(before[name])}
        assert {name.split(".")[0] for name in changed} == trained
        moved = {name for name, value in clip.state_dict().items() if not value.equal(tower[name])}
        assert bool(moved) == ("visual" in trained)


@pytest.mark.parametrize("make", [tiny_flux, tiny_sd3])
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_no_stage_reads_a_value_from_the_device(make, backend):
    flow = Teacher(make().to("meta"), vae=flow_vae().to("meta"), scheduler=flow_scheduler())
    trainer = Trainer(small.small_clip().to("meta"), flow, recipe(backend=backend))
    for _ in range(6):
        assert trainer.step(torch.empty(2, 3, 32, 32, device="meta")).is_meta
    assert trainer.stage == 1


def test_a_teacher_without_both_slots_is_an_error_that_says_what_to_give():
    with pytest.raises(ConfigError, match=r"through tokens and pooled, .* through tokens: give a FLUX"):
        Trainer(small.small_clip(), small.small_teacher(), Recipe.named("genhancer-openai-vit-l-14-224"))
    one = Teacher(teacher().denoiser, slot="pooled")
    with pytest.raises(ConfigError, match=r"through tokens and pooled, .* through pooled: give a FLUX"):
        Trainer(small.small_clip(), one, recipe())


@pytest.mark.parametrize(("slot", "names"), [("both", "tokens and pooled"), ("pooled", "pooled")])
def test_a_pooled_slot_holds_one_vector(slot, names):
    settings = Recipe(condition="class", class_tokens=2, text="none")
    with pytest.raises(ConfigError, match=f"class_tokens=2: .* through {names}, and a pooled slot holds"):
        Trainer(small.small_clip(), Teacher(teacher().denoiser, slot=slot), settings)


@pytest.mark.parametrize("kind", ["timm-siglip", "transformers-siglip"])
def test_siglips_targets_have_the_same_meaning_in_both_libraries(kind):
    targets = Recipe.named("genhancer-siglip-so400m-14-384").low_rank_targets
    chosen = [pair.matrix.name for pair in LowRank(adapt(clip_variants()[kind]()), 2, targets=targets).pairs]
    head = [name.split(".mlp.")[1] for name in chosen if "attn_pool" in name or ".head." in name]
    assert head == ["fc1.weight", "fc2.weight"]
    assert len(chosen) == 2 + 2 * 6  # and q, k, v, out_proj, fc1, fc2 of two blocks
