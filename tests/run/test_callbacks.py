"""Callbacks: what they write, how they fail, and what counts as one."""

import json
import sys
from types import SimpleNamespace
from unittest.mock import Mock, call

import pytest

from diva_rs.errors import ConfigError, DataError, DependencyError
from diva_rs.recipes.recipe import Recipe
from diva_rs.run.callbacks import Callback, JsonLines, TensorBoard, WandB, as_callback

TRAINER = SimpleNamespace(recipe=Recipe(lr=1e-5))
RESULT = SimpleNamespace(report={"steps": 2})
LOGS = [(10, {"loss": 0.5, "lr": 1e-5}), (20, {"loss": 0.25, "lr": 2e-5})]


def run(callback):
    callback.on_train_begin(TRAINER)
    for step, metrics in LOGS:
        callback.on_step(step, metrics)
        callback.on_log(step, metrics)
    callback.on_train_end(RESULT)


def test_json_lines_appends_one_object_per_log(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    run(JsonLines(path))
    run(JsonLines(str(path)))
    JsonLines(path).on_log(30, {"loss": float("nan"), "grad_norm": float("inf")})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[:4] == [{"step": step, **metrics} for step, metrics in LOGS] * 2
    assert rows[4:] == [{"step": 30, "loss": None, "grad_norm": None}]


def test_json_lines_ends_a_line_that_was_cut_short(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "lo')
    run(JsonLines(path))
    lines = path.read_text().splitlines()
    assert lines[0] == '{"step": 1, "lo'
    assert [json.loads(line)["step"] for line in lines[1:]] == [10, 20]


def test_json_lines_fails_before_the_first_step_where_it_cannot_write(tmp_path):
    with pytest.raises(DataError, match="cannot be written: Is a directory"):
        JsonLines(tmp_path).on_train_begin(TRAINER)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"m\.jsonl cannot be written"):
        JsonLines(tmp_path / "file" / "m.jsonl").on_train_begin(TRAINER)


def test_tensorboard_files_hold_the_metrics_and_the_recipe(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(TensorBoard(tmp_path))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["train/loss", "train/lr"]
    for name in ("loss", "lr"):
        points = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert points == [(step, pytest.approx(metrics[name], rel=1e-6)) for step, metrics in LOGS]
    [text] = events.Tensors("recipe/text_summary")
    assert b"1e-05" in text.tensor_proto.string_val[0]


@pytest.mark.parametrize(("library", "make"), [("tensorboard", TensorBoard), ("wandb", WandB)])
def test_a_missing_library_names_the_pip_command(monkeypatch, library, make):
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    message = f"{library} is needed here and not installed: pip install {library}"
    with pytest.raises(DependencyError, match=message):
        make("name")


def test_a_broken_library_is_not_reported_as_missing(monkeypatch, tmp_path):
    (tmp_path / "wandb.py").write_text("import a_library_that_wandb_lacks")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ImportError, match="a_library_that_wandb_lacks") as error:
        WandB("project")
    assert not isinstance(error.value, DependencyError)


def test_wandb_gets_the_recipe_the_metrics_and_the_report(monkeypatch):
    wandb = Mock()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run(WandB("see", mode="offline", config={"data": "cc3m"}))
    config = {**TRAINER.recipe.to_dict(), "data": "cc3m"}
    logs = [call.log({"train/loss": m["loss"], "train/lr": m["lr"]}, step=step) for step, m in LOGS]
    wandb.init.assert_called_once_with(project="see", mode="offline", config=config)
    assert wandb.init.return_value.mock_calls == [*logs, call.summary.update(RESULT.report), call.finish()]


def test_a_function_is_called_at_each_log():
    seen = []
    run(as_callback(lambda step, metrics: seen.append((step, metrics))))
    assert seen == LOGS


def test_what_is_no_callback_is_refused():
    with pytest.raises(ConfigError, match=r"callback <class .* is a type: a diva_rs.callbacks.Callback, or"):
        as_callback(Callback)
    with pytest.raises(ConfigError, match="callback 'tensorboard' is a str"):
        as_callback("tensorboard")
