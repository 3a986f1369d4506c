"""Low-rank towers: what trains, that it is the same in every way of training, and resuming."""

import copy

import pytest
import torch

from builders import clips
from builders.small import gradients, images, small_clip, small_teacher, worst
from diva_rs import ConfigError, FeedbackLoss, Recipe, Stage, Trainer, WeightsError
from diva_rs.clip import adapt

FIELDS = {"precision": "fp64", "draws": 2, "choose": 4, "optimizer": "adamw", "lr": 1e-2}
FIELDS |= {"low_rank": 3, "low_rank_alpha": 6.0}
DTYPE = torch.float64


def trainer_of(clip=None, **fields):
    return Trainer(clip or small_clip(DTYPE), small_teacher(DTYPE), Recipe(**{**FIELDS, **fields}))


def run(trainer, first, last):
    return [float(trainer.step(images(4, seed=step, dtype=DTYPE))) for step in range(first, last)]


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def away_from_zero(trainer):
    """Steps after which neither A nor B has a gradient of zero."""
    run(trainer, 100, 102)
    return trainer


def test_a_and_b_train_and_clip_holds_the_merged_weights():
    clip = small_clip(DTYPE)
    start, flags = weights(clip), [p.requires_grad for p in clip.parameters()]
    trainer = trainer_of(clip)
    parameters = trainer.parameters()
    tower = {name: value for name, value in parameters.items() if not name.startswith("projector.")}
    assert len(tower) == 2 * (1 + 2 * 6) and all(".lora_" in name for name in tower)
    assert same(weights(clip), start)  # B is zero
    before = weights(trainer.step_modules.projector) | {name: v.detach().clone() for name, v in tower.items()}
    run(trainer, 0, 3)
    assert all(not torch.equal(value, before[name]) for name, value in tower.items())
    now = weights(clip)
    moved = {name for name in now if not torch.equal(now[name], start[name])}
    assert moved == {
        name.partition(".lora_")[0].removesuffix(".q").removesuffix(".k").removesuffix(".v") for name in tower
    }
    for name in moved:
        parts = [part for part in ("", ".q", ".k", ".v") if f"{name}{part}.lora_A" in tower]
        updates = [2 * tower[f"{name}{p}.lora_B"] @ tower[f"{name}{p}.lora_A"] for p in parts]
        update = torch.cat(updates).T if name == "visual.proj" else torch.cat(updates)
        assert (now[name] - start[name] - update).abs().max() < 1e-15
    assert flags == [p.requires_grad for p in clip.parameters()]
    trainer.discard()
    assert all(p.grad is None for p in clip.parameters())


def test_the_seed_alone_decides_the_start():
    def start(**fields):
        return trainer_of(**fields).parameters()["visual.proj.lora_A"].detach()

    first = start()
    assert torch.equal(first, start(backend="torch", lr=1.0)) and not torch.equal(first, start(seed=1))
    bound = 32**-0.5
    assert first.shape == (3, 32) and first.abs().max() <= bound < 1.3 * first.abs().max()
    single = Trainer(small_clip(), small_teacher(), Recipe(**{**FIELDS, "precision": "fp32"}))
    assert torch.equal(single.parameters()["visual.proj.lora_A"].double(), first)


@pytest.mark.invariant
@pytest.mark.parametrize(
    "fields", [{"backend": "torch"}, {"micro_batch": 1}, {"gradient_checkpointing": True}]
)
@pytest.mark.parametrize("bias", [False, True])
def test_every_way_of_training_has_the_same_gradient(fields, bias):
    one, other = (away_from_zero(trainer_of(low_rank_bias=bias, **more)) for more in ({}, fields))
    for trainer in (one, other):
        trainer.accumulate(images(4, dtype=DTYPE))
    assert worst(gradients(one), gradients(other)) < 1e-10
    assert one.parameters().keys() == gradients(one).keys()


@pytest.mark.invariant
def test_several_batches_are_one():
    one, other = away_from_zero(trainer_of()), away_from_zero(trainer_of())
    batch = images(4, dtype=DTYPE)
    one.accumulate(batch, ids=[0, 1, 2, 3])
    other.accumulate(batch[:1], ids=[0])
    other.accumulate(batch[1:], ids=[1, 2, 3])
    assert worst(gradients(one), gradients(other)) < 1e-10
    one.apply(), other.apply()
    assert worst(weights(one.clip), weights(other.clip)) < 1e-10


@pytest.mark.invariant
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_run_resumes_to_the_same_bits(stop):
    stages = (
        Stage(train=("projector",), steps=2, lr=1e-2),
        Stage(train=("projector", "tower"), steps=2),
        Stage(train=("tower:*mlp*", "tower:*in_proj_weight.q*"), steps=2, continues=True),
    )
    straight, first = trainer_of(stages=stages), trainer_of(stages=stages)
    run(straight, 0, 6)
    run(first, 0, stop)
    state = copy.deepcopy(first.state_dict())
    resumed = trainer_of(stages=stages)
    resumed.load_state_dict(state)
    run(resumed, stop, 6)
    assert same(weights(resumed.clip), weights(straight.clip))
    assert same(resumed.state_dict()["parameters"], straight.state_dict()["parameters"])


def test_a_stage_leaves_the_other_matrices_alone():
    train = (("projector",), ("tower:*resblocks.1*",), ("tower:*.mlp.c_fc.weight",))
    trainer = trainer_of(stages=tuple(Stage(train=names, steps=1) for names in train))
    for part in ("projector.", "resblocks.1", "mlp.c_fc.weight"):
        parameters, start = trainer.parameters(), weights(trainer.clip)
        before = {name: value.detach().clone() for name, value in parameters.items()}
        run(trainer, 0, 1)
        moved = {name for name, value in parameters.items() if not torch.equal(value, before[name])}
        # A has no gradient while B is zero.
        group = {name for name in parameters if part in name}
        assert {name for name in group if not name.endswith("lora_A")} <= moved <= group
        assert same(weights(trainer.clip), start) == (part == "projector.")


@pytest.mark.invariant
def test_a_skipped_update_leaves_the_weights():
    trainer = away_from_zero(trainer_of())
    before = weights(trainer.clip)
    trainer.accumulate(images(4, dtype=DTYPE))
    next(iter(trainer.parameters().values())).grad[0, 0] = torch.nan
    trainer.apply()
    assert same(weights(trainer.clip), before)


@pytest.mark.hostile
def test_a_state_of_another_low_rank_is_refused_by_name():
    trainer = away_from_zero(trainer_of())
    state = trainer.state_dict()
    with pytest.raises(
        WeightsError, match=r"visual.proj.lora_A is torch.float64 \(3, 32\).* here .*\(4, 32\)"
    ):
        trainer_of(low_rank=4).load_state_dict(state)
    with pytest.raises(WeightsError, match=r"low_rank_alpha is 6.0 in the saved state, here 3.0"):
        trainer_of(low_rank_alpha=None).load_state_dict(state)
    with pytest.raises(WeightsError, match="low_rank=3 needs the CLIP that the saved state began from"):
        trainer_of(trainer.clip).load_state_dict(state)
    full = Trainer(small_clip(DTYPE), small_teacher(DTYPE), Recipe(precision="fp64"))
    with pytest.raises(WeightsError, match="missing from the saved state"):
        full.load_state_dict(state)


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"low_rank_targets": ("*c_fx*",)},
            r"'\*c_fx\*' matches no matrix .*did you mean 'c_fc'.*visual.proj",
        ),
        ({"low_rank_targets": ("*ln_1*",)}, "matches no matrix"),
        ({"low_rank": None}, "low_rank_alpha=6.0 needs low_rank"),
        ({"low_rank": 0}, "low_rank=0: it must be an integer of at least 1"),
        (
            {"stages": (Stage(train=("tower:*ln_1*",)),)},
            "no trainable parameter has such a key; low_rank trains .* matrices alone",
        ),
    ],
)
def test_fields_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        trainer_of(**fields)


@pytest.mark.parametrize("name", ["open_clip-coca", "timm-siglip", "transformers-siglip", "openai"])
def test_targets_are_every_linear_layer(name):
    clip = clips.clip_variants()[name](dtype=DTYPE)
    trainer = trainer_of(clip)
    own = adapt(clip).named_parameters()
    linear = {
        key
        for key, value in own.items()
        if value.ndim == 2 and not any(word in key for word in ("position", "class", "query", "probe"))
    }
    taken = {pair.matrix.key for pair in trainer.step_modules.low_rank.pairs}
    assert taken == linear


def feedback_of(clip=None, **fields):
    clip = clip or small_clip(DTYPE)
    return FeedbackLoss(clip, small_teacher(DTYPE), Recipe(**{**FIELDS, **fields}))


def twin(trainer, **fields):
    """A FeedbackLoss with the trainer's A, B and projector."""
    feedback = feedback_of(**fields)
    feedback.step_modules.write(trainer.parameters())
    return feedback


@pytest.mark.invariant
@pytest.mark.parametrize("bias", [False, True])
def test_feedback_loss_has_the_same_gradient(bias):
    trainer = away_from_zero(trainer_of(low_rank_bias=bias))
    feedback = twin(trainer, low_rank_bias=bias)
    batch = images(4, dtype=DTYPE)
    loss = trainer.accumulate(batch, ids=[5, 6, 7, 8])
    found = feedback(batch, ids=[5, 6, 7, 8])
    found.backward()
    assert abs(float(found) - float(loss)) < 1e-12
    parameters = feedback.step_modules.parts["tower"] | feedback.step_modules.parts["projector"]
    assert worst({name: p.grad for name, p in parameters.items()}, gradients(trainer)) < 1e-10
    trained = {id(p) for p in feedback.trained_parameters()}
    assert trained <= {id(p) for p in feedback.parameters()}
    assert {id(p) for p in feedback.parameters() if p.grad is not None} == trained


def test_feedback_loss_under_autocast_keeps_the_update_in_float32():
    recipe = {"precision": "fp32", "low_rank_bias": False}
    feedback = FeedbackLoss(small_clip(), small_teacher(), Recipe(**{**FIELDS, **recipe}))
    optimizer = torch.optim.AdamW(feedback.trained_parameters(), lr=1e-2)
    for seed in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = feedback(images(4, seed=seed))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not feedback.clip.visual.ln_post.weight.requires_grad
    feedback.merge()
    assert all(p.requires_grad for p in feedback.clip.parameters())
    pair = feedback.step_modules.low_rank.pairs[1]
    expected = pair.base + 2 * pair.b @ pair.a
    assert (pair.matrix.of(pair.matrix.weight) - expected).abs().max() < 1e-7


@pytest.mark.invariant
def test_a_copy_has_its_own_a_and_b():
    feedback = twin(away_from_zero(trainer_of()))
    copied = copy.deepcopy(feedback)
    batch, before = images(4, dtype=DTYPE), weights(feedback.clip)
    own = {id(p) for p in feedback.parameters()}
    assert not own & {id(p) for p in copied.trained_parameters()}
    optimizer = torch.optim.SGD(copied.trained_parameters(), lr=0.1)
    loss = copied(batch, ids=[0, 1, 2, 3])
    loss.backward()
    optimizer.step()
    copied.merge()
    assert same(weights(feedback.clip), before)
    assert not same(weights(copied.clip), weights(feedback.clip))
    assert float(feedback(batch, ids=[0, 1, 2, 3])) == float(loss)


def test_a_state_of_a_feedback_loss_resumes_on_the_clip_it_began_from():
    feedback = twin(away_from_zero(trainer_of()))
    state = copy.deepcopy(feedback.state_dict())
    assert {name for name in state if name.startswith("low_rank.")} >= {"low_rank.visual/proj/lora_A"}
    batch, other = images(4, dtype=DTYPE), feedback_of()
    other.load_state_dict(state)
    assert float(other(batch)) == float(feedback(batch))
    assert same(weights(other.clip), weights(feedback.clip))
    for refused in (feedback_of(copy.deepcopy(feedback.clip)), feedback_of(low_rank_alpha=1.0)):
        with pytest.raises(WeightsError, match="another low_rank, low_rank_alpha or CLIP"):
            refused.load_state_dict(state)


@pytest.mark.invariant
@pytest.mark.parametrize("name", ["open_clip-gelu", "transformers-clip-projection", "timm-siglip"])
def test_gradient_checkpointing_of_the_library_changes_no_gradient(name):
    found = []
    for checkpointing in (False, True):
        clip = clips.clip_variants()[name](dtype=DTYPE)
        if checkpointing and hasattr(clip, "gradient_checkpointing_enable"):
            clip.gradient_checkpointing_enable()
        elif checkpointing:
            clip.set_grad_checkpointing()
        feedback = feedback_of(clip, low_rank_bias=True)
        for pair in feedback.step_modules.low_rank.pairs:
            torch.nn.init.constant_(pair.b, 0.01)
        feedback(images(2, dtype=DTYPE)).backward()
        found.append({n: p.grad.clone() for n, p in feedback.step_modules.parts["tower"].items()})
    assert worst(*found) < 1e-10


@pytest.mark.hostile
def test_a_gradient_that_a_and_b_do_not_get_is_named():
    clip = clips.clip_variants()["transformers-clip-projection"](dtype=DTYPE)
    clip.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    clip.enable_input_require_grads()
    feedback, batch = feedback_of(clip), images(2, dtype=DTYPE)
    feedback(batch).backward()
    with pytest.raises(ConfigError, match=r"encoder.layers.*weight has a gradient, which A and B do not get"):
        feedback(batch)


@pytest.mark.hostile
def test_weights_that_are_loaded_too_late_are_named():
    trainer = away_from_zero(trainer_of())
    merged = weights(trainer.clip)
    trainer.clip.load_state_dict(small_clip(DTYPE, seed=1).state_dict())
    with pytest.raises(ConfigError, match=r"visual.proj has other values than the trainer gave it"):
        run(trainer, 0, 1)
    trainer.clip.load_state_dict(merged)  # as one who swaps averaged weights in and out
    run(trainer, 0, 1)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_bf16_trains_a_and_b_in_float32(backend):
    fields = {**FIELDS, "precision": "bf16", "backend": backend, "lr": 1e-6}
    trainer = Trainer(small_clip(), small_teacher(), Recipe(**fields))
    for seed in range(3):
        trainer.step(images(4, seed=seed))
    for matrix, base, a, b in trainer.step_modules.low_rank.pairs:
        assert (a.dtype, b.dtype, matrix.weight.dtype) == (torch.float32,) * 3
        # An update of 1e-6, which bfloat16 would round away, is in the weights.
        update = matrix.of(matrix.weight) - base
        assert b.abs().max() < 1e-5 and (update - 2 * b @ a).abs().max() < 1e-7 and update.abs().max() > 1e-7
