"""post_train: steps, history, report, callbacks, what it writes, and the students it trains."""

import json
import logging
import math
import threading

import pytest
import torch

import diva_rs
from builders.runs import train, weights
from builders.small import images, small_clip
from diva_rs import ConfigError, DataError, PostTrainResult, Recipe
from diva_rs._base.checkpoint import load_state
from diva_rs.run.callbacks import Callback

FIELDS = {"step", "loss", "denoising", "grad_norm", "lr", "epoch", "samples"}
FIELDS |= {"samples_per_second", "skipped", "waiting"}


def test_the_history_holds_floats_of_each_logged_step(teacher, three):
    result = train(teacher, three, optimizer="adamw", lr=1e-3, anchor=0.5)
    assert isinstance(result, PostTrainResult)
    assert [row["step"] for row in result.history] == [1, 2, 3]
    for row in result.history:
        assert row.keys() == FIELDS | {"anchor"}
        assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in row.values())
        assert row["loss"] == pytest.approx(row["denoising"] + row["anchor"])
        assert row["grad_norm"] > 0 and row["samples"] == 4 and row["samples_per_second"] > 0
    # The anchor holds to the CLIP before training: nothing at first, something once the weights have moved.
    assert abs(result.history[0]["anchor"]) < 1e-6 < result.history[2]["anchor"]
    # cosine over the three steps of the pass
    expected = [1e-3 * 0.5 * (1 + math.cos(math.pi * step / 3)) for step in range(3)]
    assert [row["lr"] for row in result.history] == pytest.approx(expected)


@pytest.mark.parametrize(("log_every", "steps", "logged"), [(2, 5, [2, 4, 5]), (10, 3, [3]), (2, 4, [2, 4])])
def test_logs_come_every_so_often_and_at_the_end(teacher, three, log_every, steps, logged):
    result = train(teacher, three, steps=steps, log_every=log_every)
    assert [row["step"] for row in result.history] == logged


def test_the_report_says_what_was_trained_on_what(teacher, three):
    clip = small_clip()
    result = train(teacher, three, clip=clip, steps=4)
    assert result.report["steps"] == 4 and result.report["samples"] == 16
    assert result.report["clip"] == "CLIP (VisionTransformer)"
    assert "UNet2DConditionModel" in result.report["teacher"]
    assert result.report["device"] == "cpu" and result.report["seconds"] > 0
    assert result.report["torch"] == torch.__version__ and result.report["diva_rs"] == diva_rs.__version__
    assert result.report["interrupted"] is False and result.interrupted is False
    assert result.clip is clip
    json.dumps(result.report)


def test_clip_moves_and_the_rest_stays(teacher, three):
    clip = small_clip()
    before = weights(clip)
    result = train(teacher, three, clip=clip, lr=1e-2)
    moved = {name for name, value in clip.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name, _ in clip.named_parameters() if name.startswith("visual.")}
    assert isinstance(result.projector, torch.nn.Linear)
    assert clip.training  # the mode is the caller's
    models = [clip, result.projector, *teacher.modules()]
    assert all(parameter.grad is None for model in models for parameter in model.parameters())


def test_what_the_caller_froze_stays_frozen(teacher, three):
    clip = small_clip()
    frozen = {"visual.proj", "visual.ln_post.weight", "visual.conv1.weight"}
    for name, parameter in clip.named_parameters():
        parameter.requires_grad_(name not in frozen)
    before = weights(clip)
    train(teacher, three, clip=clip, lr=1e-2, anchor=0.1, optimizer="adamw", weight_decay=0.1)
    for name, value in clip.state_dict().items():
        trains = name.startswith("visual.") and name not in frozen
        assert torch.equal(value, before[name]) != trains, name


def test_a_run_in_another_thread(teacher, three):
    """Where Python delivers no Ctrl-C, and signal handlers cannot be set."""
    results = []
    thread = threading.Thread(target=lambda: results.append(train(teacher, three)))
    thread.start()
    thread.join()
    here = train(teacher, three)
    assert [row["loss"] for row in results[0].history] == [row["loss"] for row in here.history]


def test_fields_override_the_recipe(teacher, three):
    result = train(teacher, three, Recipe(draws=1, lr=1e-5), steps=2, draws=3)
    assert (result.recipe.steps, result.recipe.draws, result.recipe.lr) == (2, 3, 1e-5)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"densty": 0.5}, "post_train has no argument 'densty', .*did you mean 'density'"),
        ({"outputdir": "x"}, "'outputdir', .*did you mean 'output_dir'"),
        ({"callbacks": ["tensorboard"]}, "callback 'tensorboard' is a str"),
        ({"recipe": "diva-openai"}, "there is no recipe 'diva-openai'; did you mean 'diva-openai-vit-l-14-"),
        ({"resume": "yes"}, r"resume='yes': give True, .*\"force\""),
    ],
    ids=str,
)
def test_slips_in_the_arguments_are_named(teacher, three, given, match):
    with pytest.raises(ConfigError, match=match):
        train(teacher, three, **given)


def test_without_steps_the_run_is_one_pass(teacher, three):
    with_length = train(teacher, three)
    assert with_length.recipe.steps == 3
    without_length = train(teacher, iter(three))
    assert without_length.recipe.steps is None
    assert [row["step"] for row in without_length.history] == [1, 2, 3]
    assert {row["lr"] for row in without_length.history} == {1e-4}  # a cosine needs to know its end


@pytest.mark.parametrize("sized", [True, False], ids=["len", "no len"])
@pytest.mark.parametrize(
    ("samples", "batch", "steps"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (6, 8, [6]), (7, 3, [4, 3])]
)
def test_loader_batches_add_up_to_the_recipes(teacher, sized, samples, batch, steps):
    """Batches of two; the remainder of the pass is a step of its own."""
    loader = torch.utils.data.DataLoader(list(images(samples)), batch_size=2)
    result = train(teacher, loader if sized else iter(loader), batch=batch)
    assert [row["samples"] for row in result.history] == steps
    assert result.report["samples"] == samples
    assert result.recipe.steps == (len(steps) if sized else None)


def test_loader_batches_larger_than_the_recipes_are_reported(teacher, three, caplog):
    with caplog.at_level(logging.WARNING, "diva_rs"):
        train(teacher, three, batch=3)
    [record] = caplog.records
    assert record.getMessage().startswith("a step takes 4 samples, not batch=3: the loader's batches do not")


def test_each_pass_sets_the_loaders_epoch_and_has_other_draws(teacher, three):
    told = []

    class Loader(list):
        def set_epoch(self, epoch):
            told.append(epoch)

    loader = Loader(three[:1])
    result = train(teacher, loader, steps=3, lr=0.0)
    assert told == [0, 1, 2]
    assert [row["epoch"] for row in result.history] == [0, 1, 2]
    assert len({row["loss"] for row in result.history}) == 3  # the same image and weights under other draws


def test_a_generator_that_ends_early_says_after_how_many_steps(teacher, three, tmp_path):
    clip = small_clip()
    with pytest.raises(DataError, match=r"no batch in pass 2, after 3 steps: .*can be iterated only once"):
        train(teacher, iter(three), clip=clip, steps=5, output_dir=tmp_path)
    assert all(parameter.grad is None for parameter in clip.parameters())
    assert load_state(tmp_path / "checkpoints" / "step-00000003")["counters"]["steps_done"] == 3


def test_callbacks_see_everything_in_order(teacher, three):
    seen, losses, spy = [], [], Callback()
    spy.on_train_begin = lambda trainer: seen.append(("begin", trainer.steps_done))
    spy.on_step = lambda step, metrics: seen.append(("step", step, type(metrics["loss"])))
    spy.on_log = lambda step, metrics: seen.append(("log", step, metrics.keys() == FIELDS - {"step"}))
    spy.on_train_end = lambda result: seen.append(("end", result.report["steps"]))
    function = lambda step, row: losses.append((step, row["loss"]))  # noqa: E731
    result = train(teacher, three, log_every=2, callbacks=[spy, function])
    steps = [("step", step, torch.Tensor) for step in (1, 2, 3)]
    assert seen == [("begin", 0), *steps[:2], ("log", 2, True), steps[2], ("log", 3, True), ("end", 3)]
    assert losses == [(row["step"], row["loss"]) for row in result.history]


@pytest.mark.parametrize("hook", ["on_train_begin", "on_step", "on_log", "on_train_end"])
def test_an_exception_in_a_callback_ends_the_run(teacher, three, tmp_path, hook):
    class Trouble(Exception):
        pass

    def fail(*_):
        raise Trouble(hook)

    spy = Callback()
    setattr(spy, hook, fail)
    clip = small_clip()
    with pytest.raises(Trouble, match=hook):
        train(teacher, three, clip=clip, callbacks=[spy], output_dir=tmp_path)
    assert all(parameter.grad is None for parameter in clip.parameters())
    assert any((tmp_path / "checkpoints").iterdir()) == (hook != "on_train_begin")


def test_the_last_log_is_as_safe_as_the_others(teacher, three, tmp_path):
    """Without a length the last log comes after the loop: its steps must not be lost either."""

    def fail(step, metrics):
        raise RuntimeError("disk full")

    clip = small_clip()
    with pytest.raises(RuntimeError, match="disk full"):
        train(teacher, iter(three), clip=clip, callbacks=[fail], log_every=10, output_dir=tmp_path)
    assert load_state(tmp_path / "checkpoints" / "step-00000003")["counters"]["steps_done"] == 3
    assert all(parameter.grad is None for parameter in clip.parameters())


def test_the_progress_bar_shows_the_loss(teacher, three, capsys):
    result = train(teacher, three, progress=True)
    shown = capsys.readouterr().err
    assert "post-train" in shown and "3/3" in shown and f"loss={result.history[-1]['loss']:.4f}" in shown
    train(teacher, three)
    assert capsys.readouterr().err == ""


def test_terms_of_the_callers_own_are_logged_by_name(teacher, three, tmp_path):
    def spread(view):
        return view.pooled.var(dim=0).mean()

    given = {"terms": {"spread": (0.5, spread)}, "output_dir": tmp_path, "anchor": 0.1}
    result = train(teacher, three, **given)
    for row in result.history:
        assert row["loss"] == pytest.approx(row["denoising"] + row["anchor"] + row["spread"], rel=1e-5)
    assert result.report["losses"] == ["loss", "denoising", "anchor", "spread"]
    with pytest.raises(ConfigError, match="losses was loss, denoising, anchor, spread, is loss, denoising"):
        train(teacher, three, output_dir=tmp_path, anchor=0.1)
