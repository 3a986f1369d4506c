"""Half precision, and a teacher on another device than CLIP."""

import shutil
import warnings

import pytest
import torch

from builders.small import images, small_clip, small_teacher, small_unet
from diva_rs import FeedbackLoss, Recipe, Teacher, Trainer, post_train
from diva_rs.captions import ContrastSet, Judge
from diva_rs.errors import ConfigError, WeightsError
from diva_rs.native import NotNative, native_denoiser, native_encoder
from diva_rs.step import precision

pytestmark = pytest.mark.hostile

BF16 = Recipe(precision="bf16")


def _speeds(monkeypatch, bf16, fp32):
    monkeypatch.setattr(precision, "measured", lambda: {"bf16": bf16, "fp32": fp32})


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_bf16_on_a_cpu_where_float32_is_faster_says_so_and_trains(monkeypatch, backend):
    _speeds(monkeypatch, 121e9, 189e9)
    with pytest.warns(UserWarning, match=r'precision="bf16": this cpu .*121 .* 189 .*"fp32" is faster'):
        trainer = Trainer(small_clip(), small_teacher(), Recipe(precision="bf16", backend=backend))
    assert trainer.step_modules.products == "fp32"
    loss = trainer.step(images(2))
    assert loss.dtype == torch.float32 and bool(torch.isfinite(loss))
    assert all(parameter.grad.dtype == torch.float32 for parameter in trainer.parameters().values())


def test_no_warning_where_bf16_is_faster_or_not_chosen(monkeypatch):
    _speeds(monkeypatch, 2e9, 2.05e9)  # within what a measurement may be off
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert Trainer(small_clip(), small_teacher(), BF16).step_modules.products == "bf16"
        _speeds(monkeypatch, 1e9, 2e9)
        for recipe in (Recipe(precision="fp32"), BF16.replace(products="bf16")):
            Trainer(small_clip(), small_teacher(), recipe)


def test_a_resumed_run_keeps_what_multiplies_unless_the_recipe_says(monkeypatch):
    _speeds(monkeypatch, 1e9, 1e9)
    wide = Trainer(small_clip(), small_teacher(), BF16.replace(products="fp32"))
    narrow = Trainer(small_clip(), small_teacher(), BF16)
    states = [wide.state_dict(), narrow.state_dict()]
    assert [state["products"] for state in states] == ["fp32", "bf16"]
    losses = [float(trainer.step(images(2))) for trainer in (wide, narrow)]
    assert losses[0] != losses[1]
    for state, loss in zip(states, losses, strict=True):
        again = Trainer(small_clip(seed=5), small_teacher(), BF16)
        again.load_state_dict(state)
        assert float(again.step(images(2))) == loss
    wide.load_state_dict(states[1])
    assert wide.step_modules.products == "fp32"
    with pytest.raises(WeightsError, match="products is 7 in the saved state"):
        wide.load_state_dict({**states[0], "products": 7})


def test_a_run_resumes_with_the_products_it_began_with(monkeypatch, tmp_path):
    def run(bf16, steps):
        _speeds(monkeypatch, bf16, 1e9)
        recipe = BF16.replace(batch=2, schedule="constant", steps=steps)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            result = post_train(small_clip(), small_teacher(), [images(2)] * 4, recipe, output_dir=tmp_path)
        return result.history[-1]["loss"]

    whole = run(0.5e9, 4)
    shutil.rmtree(tmp_path)
    run(0.5e9, 2)
    assert run(2e9, 4) == whole  # on a machine that would choose otherwise


def test_float16_weights_of_clip_are_refused_with_what_to_do():
    with pytest.raises(ConfigError, match=r"torch.float16.*call clip.float\(\)"):
        Trainer(small_clip(torch.float16), small_teacher(), Recipe())


def test_a_float16_teacher_is_converted_for_the_run_and_never_runs_natively_in_float16():
    teacher = small_teacher(torch.float16)
    with pytest.raises(NotNative, match="float16"):
        native_denoiser(teacher)
    trainer = Trainer(small_clip(), teacher, Recipe(backend="native"))
    assert trainer.teacher.dtype == torch.float32 and teacher.dtype == torch.float16
    assert bool(torch.isfinite(trainer.step(images(2))))


def test_a_teacher_elsewhere_gets_copies_and_its_result_comes_back():
    """CLIP on meta, the teacher on meta, and the caller's batch on the CPU: everything is carried over."""
    teacher = Teacher(
        small_unet(), vae=small_teacher().vae, scheduler=small_teacher()._parts.need("scheduler"),
        text_condition=torch.zeros(1, 8, 24), device="meta",
    )  # fmt: skip
    assert teacher.device.type == "meta" and teacher.vae is not None
    trainer = Trainer(small_clip().to("meta"), teacher, Recipe(backend="native", latent="sample"))
    assert trainer.step(images(2)).is_meta
    # Seen from the CPU the way there works; meta, which holds no values, cannot go the way back.
    for run in (
        lambda: native_denoiser(teacher).predict(
            torch.rand(2, 4, 8, 8), torch.tensor([1, 2]), torch.rand(2, 5, 24, requires_grad=True)
        ),
        lambda: native_encoder(teacher).encode(torch.rand(2, 3, 16, 16)),
    ):
        with pytest.raises(Exception, match="Cannot copy out of meta tensor"):
            run()


@pytest.mark.parametrize(("backend", "products"), [("native", "bf16"), ("native", "fp32"), ("torch", "auto")])
def test_a_teacher_in_another_dtype_than_clip_is_the_same_as_one_that_was_cast(backend, products):
    """The copies change device and dtype in one place: here the dtype is seen to come back."""
    clip, teacher = small_clip(), small_teacher()
    recipe = BF16.replace(backend=backend, products=products, lr=1e-2)
    trainer = Trainer(clip, teacher, recipe)
    assert trainer.teacher.dtype == torch.bfloat16 and teacher.dtype == torch.float32
    inputs = trainer.step_modules.inputs(images(2), None, 0, None, 0)
    tokens = trainer.step_modules.tokens(inputs.images).detach().float()
    step = trainer.step_modules.step
    losses, d_tokens, d_bridge, _ = step.at_tokens(tokens, inputs.images, inputs.targets)
    gradients = (d_tokens, *d_bridge)
    assert {losses["loss"].dtype, *(gradient.dtype for gradient in gradients)} == {torch.float32}
    exact = Trainer(small_clip(), small_teacher(), Recipe(precision="fp32", backend=backend)).step_modules
    reference, *_ = exact.step.at_tokens(tokens, inputs.images, inputs.targets)
    loss, expected = float(losses["loss"]), float(reference["loss"])
    assert abs(loss - expected) <= 2e-2 * expected


def test_float32_products_hold_for_a_feedback_loss_tower_and_vae_too(monkeypatch):
    def found(products):
        feedback = FeedbackLoss(small_clip(), small_teacher(), BF16.replace(products=products))
        inputs = feedback.step_modules.inputs(images(2), None, 0, None, 0)
        tokens, _ = feedback.step_modules.at_cut(inputs.images)
        return tokens.detach(), inputs.targets[0]

    (narrow, near), (wide, latents) = found("bf16"), found("fp32")
    exact = FeedbackLoss(small_clip(), small_teacher(), Recipe()).step_modules
    inputs = exact.inputs(images(2), None, 0, None, 0)
    assert torch.equal(wide, exact.at_cut(inputs.images)[0]) and not torch.equal(narrow.float(), wide)
    # Either way rounds the same results to bf16, so that neither is always the nearer one.
    assert not torch.equal(latents, near)
    for each in (latents, near):
        assert 0 < float((each - inputs.targets[0]).norm()) <= 2e-2 * float(inputs.targets[0].norm())


def test_a_judge_multiplies_as_a_step_does(monkeypatch):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    texts = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(2))
    sets = [[ContrastSet("size", ("big", "small"), ("big", "small"))]] * 2

    def losses(dtype):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            judge = Judge(small_teacher(dtype), draws=2, backend="native", encode=lambda names: texts)
        found = judge.losses(latents, [1, 2], sets, range(2))
        return torch.tensor([[each.tolist() for each in of] for of in found])

    _speeds(monkeypatch, 2e9, 1e9)
    narrow, exact = losses(torch.bfloat16), losses(torch.float32)
    _speeds(monkeypatch, 1e9, 2e9)
    wide = losses(torch.bfloat16)
    assert not torch.equal(wide, narrow) and torch.equal(exact, losses(torch.float32))
    assert float((wide - exact).norm()) <= 2e-2 * float(exact.norm())
