"""Evaluation during training: sees every score, keeps the best, stops where it must, and disturbs nothing."""

import json
import random
import re
import warnings

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

import diva_rs
from builders import texts
from builders.benchmarks import photos_folder
from builders.clips import pixels
from builders.mmvp import mmvp_folder
from builders.runs import Stop, stop_at, weights
from builders.small import images, small_clip
from diva_rs import ConfigError, DataError
from diva_rs.evaluation import Drift, mmvp_vlm, report, zero_shot_folder


def train(teacher, clip=None, loader=None, **given):
    clip = small_clip() if clip is None else clip
    loader = [images(2, seed=n) for n in range(6)] if loader is None else loader
    settings = {"progress": False, "log_every": 2, "lr": 1e-2, "density": 0.5, **given}
    return diva_rs.post_train(clip, teacher, loader, **settings)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Planted:
    """A metric that gives these scores in turn, and remembers the weights that it saw."""

    def __init__(self, *scores):
        self.scores, self.seen = list(scores), []

    def __call__(self, clip):
        self.seen.append(weights(clip))
        return self.scores[len(self.seen) - 1]


def noisy(clip):
    """As thoughtless as a metric can be: draws from every generator, and leaves gradients behind."""
    random.random(), np.random.rand(3), torch.rand(5)
    with torch.enable_grad():
        features = clip.encode_image(pixels(clip))
        features.sum().backward()
    return {"mean": features.mean(), "drawn": torch.rand(())}


def test_training_is_the_same_to_the_bit_with_and_without(teacher):
    data = TensorDataset(torch.cat([images(2, seed=n) for n in range(6)]))

    def run(**given):
        torch.manual_seed(5)  # decides the loader's order, batch by batch
        clip = small_clip().train()
        result = train(teacher, clip, DataLoader(data, batch_size=2, shuffle=True), steps=9, **given)
        return clip, result

    (plain, before), (watched, after) = run(), run(evaluate={"noisy": noisy}, eval_every=1)
    assert same(plain.state_dict(), watched.state_dict())
    assert same(before.projector.state_dict(), after.projector.state_dict())
    assert all(parameter.grad is None for parameter in watched.parameters())
    assert watched.training and len(after.history) == 9


def test_scores_are_those_of_the_weights_at_their_step(teacher, tmp_path):
    clip, states = small_clip(), {}
    states[0] = float(clip.visual.proj.norm())

    def keep(step, metrics):
        states[step] = float(clip.visual.proj.norm())

    given = {"evaluate": {"size": lambda model: model.visual.proj.norm()}, "output_dir": tmp_path}
    result = train(teacher, clip, eval_every=4, callbacks=[keep], **given)
    sizes = [(row["step"], row.get("size")) for row in result.history]
    assert sizes == [(2, None), (4, states[4]), (6, states[6])]  # the last step is always measured
    found = result.report["evaluation"]
    assert found["before"] == {"step": 0, "size": states[0]}
    assert found["after"] == {"step": 6, "size": states[6]}
    assert "best" not in found and result.stopped is None and not (tmp_path / "best").exists()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.history
    assert json.loads((tmp_path / "evaluations.json").read_text())[1] == {"step": 4, "size": states[4]}
    assert result.plot().get_xlabel() == "step"


def test_without_eval_every_before_and_after(teacher):
    metric = Planted(1.0, 2.0)
    result = train(teacher, evaluate=metric)
    assert [row.get("planted") for row in result.history] == [None, None, 2.0]
    # One pass over a loader that does not tell its length ends where nobody knew.
    metric, loader = Planted(1.0, 2.0), (images(2, seed=n) for n in range(3))
    result = train(teacher, loader=loader, evaluate={"score": metric}, log_every=1)
    assert result.history[-1]["step"] == 3 and result.history[-1]["score"] == 2.0 and len(metric.seen) == 2


@pytest.mark.parametrize(
    ("best", "scores", "kept"),
    [
        ("score", (5.0, 7.0, 6.0, 7.0), 1),
        (("score", "min"), (5.0, 7.0, 6.0, 4.0), 3),
        ("score", (9.0, 7.0, 6.0, 4.0), 0),
        ("score", (5.0, float("nan"), 6.0, 4.0), 2),
        ("score", (float("nan"), float("nan"), 3.0, 2.0), 2),
    ],
)
def test_the_best_weights_are_kept(teacher, tmp_path, best, scores, kept):
    metric, clip = Planted(*scores), small_clip()
    given = {"evaluate": {"score": metric}, "best": best, "output_dir": tmp_path}
    result = train(teacher, clip, eval_every=2, keep=1, **given)
    folder, row = tmp_path / "best", {"step": 2 * kept, "score": scores[kept]}
    assert same(load_file(folder / "clip.safetensors"), metric.seen[kept])
    assert load_file(folder / "projector.safetensors").keys() == result.projector.state_dict().keys()
    assert json.loads((folder / "scores.json").read_text()) == row == result.report["evaluation"]["best"]
    # Its checkpoint is spared where only the last one is kept; step 0 has none.
    checkpoints = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert checkpoints == [f"step-{step:08d}" for step in sorted({2 * kept, 6} - {0})]
    # The run itself went on to its end.
    assert result.report["steps"] == 6 and same(clip.state_dict(), metric.seen[3])
    assert not any(path.name.startswith(".best") for path in tmp_path.iterdir())


def test_the_guard_stops_and_gives_back_what_kept_the_bounds(teacher, tmp_path):
    metric, clip = Planted(70.0, 71.0, 69.5, 68.0), small_clip()
    given = {"evaluate": {"zero_shot": metric}, "guard": {"zero_shot": 69}, "output_dir": tmp_path}
    result = train(teacher, clip, eval_every=1, **given)
    why = "zero_shot is 68 at step 3, below 69; the weights are those of step 2"
    assert result.stopped == result.report["stopped"] == why
    assert json.loads((tmp_path / "report.json").read_text())["stopped"] == why
    assert result.report["steps"] == 3 and result.history[-1]["step"] == 3
    assert same(clip.state_dict(), metric.seen[2])
    assert same(load_file(tmp_path / "clip.safetensors"), metric.seen[2])
    assert same(load_file(tmp_path / "best" / "clip.safetensors"), metric.seen[2])
    assert all(parameter.grad is None for parameter in clip.parameters())
    page = report.write(tmp_path).read_text()
    assert f"The guard ended the run: {why}." in page and "stopped by the guard" in page
    cells = "</th>" + "".join(f">{score}</td>" for score in ("70.00", "69.50", "68.00"))
    assert cells in re.sub(r"<td [^>]*", "", page)
    assert "zero_shot over the steps: 70.00 at step 0, 68.00 at the last." in page


def test_the_guard_gives_back_the_best_of_what_kept_the_bounds(teacher):
    mmvp, clip = Planted(20.0, 26.0, 24.0, 30.0), small_clip()
    scores = iter((75.0, 74.8, 74.5, 73.0))
    metrics = {"mmvp": mmvp, "zero_shot": lambda model: {"top1": next(scores), "top5": 90.0}}
    guard = {"zero_shot/top1": ("drop", 1.5), "zero_shot/top5": ("max", 95)}
    result = train(teacher, clip, evaluate=metrics, eval_every=1, best="mmvp", guard=guard)
    assert result.stopped == "zero_shot/top1 is 73 at step 3, below 73.5; the weights are those of step 1"
    assert result.report["evaluation"]["best"]["mmvp"] == 26.0
    assert same(clip.state_dict(), mmvp.seen[1])


def test_a_score_that_is_not_a_number_breaks_a_bound(teacher):
    metric = {"score": Planted(1.0, float("nan"))}
    assert "is nan at step 1" in train(teacher, evaluate=metric, eval_every=1, guard={"score": 0}).stopped


def test_real_drift_ends_a_run_that_learns_too_fast(teacher):
    clip = small_clip()
    start = weights(clip)
    given = {"evaluate": {"drift": Drift(clip, pixels(clip, 8))}, "eval_every": 1, "guard": {"drift": 0.9}}
    calm = train(teacher, small_clip(), lr=1e-5, **given)
    assert calm.stopped is None and 0.999 < calm.history[-1]["drift"] <= 1 + 1e-6
    wild = train(teacher, clip, optimizer="adamw", lr=1.0, **given)
    assert wild.stopped.startswith("drift is ") and wild.report["steps"] < 6
    assert same(clip.state_dict(), start) and wild.report["evaluation"]["best"]["step"] == 0


def test_a_bound_that_is_broken_before_the_first_step(teacher, tmp_path):
    clip = small_clip()
    start = weights(clip)
    with pytest.raises(ConfigError, match=r"guard: score is 62 at step 0, below 70, before the first step"):
        train(teacher, clip, evaluate={"score": Planted(62.0)}, guard={"score": 70.0}, output_dir=tmp_path)
    assert same(clip.state_dict(), start)


def test_ctrl_c_in_a_metric_ends_the_run_cleanly(teacher):
    def metric(clip, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return 1.0

    clip = small_clip().train()
    result = train(teacher, clip, evaluate=metric, eval_every=1)
    assert result.interrupted and result.report["steps"] == 2 and result.history[-1]["step"] == 2
    assert clip.training


def test_a_resumed_run_has_measured_and_kept_the_same(teacher, tmp_path):
    def run(folder, clip, **given):
        metrics = {"drift": Drift(clip, pixels(clip, 4))}
        kept = {"eval_every": 2, "best": ("drift", "min"), "checkpoint_every": 1, "log_every": 1}
        return train(teacher, clip, evaluate=metrics, output_dir=folder, **kept, **given)

    straight, once = small_clip(), tmp_path / "once"
    result = run(once, straight)
    broken, twice = small_clip(), tmp_path / "twice"
    with pytest.raises(Stop):
        run(twice, broken, callbacks=[stop_at(5)])
    broken = small_clip()
    resumed = run(twice, broken)
    assert same(straight.state_dict(), broken.state_dict())
    assert (once / "evaluations.json").read_text() == (twice / "evaluations.json").read_text()
    assert [row.get("drift") for row in resumed.history] == [row.get("drift") for row in result.history]
    assert resumed.report["evaluation"]["best"] == result.report["evaluation"]["best"]
    assert same(load_file(once / "best" / "clip.safetensors"), load_file(twice / "best" / "clip.safetensors"))


def test_a_stopped_run_is_read_back_and_resumes_under_another_guard(teacher, tmp_path):
    def run(clip, metric, bound):
        given = {"evaluate": {"s": metric}, "eval_every": 1, "output_dir": tmp_path}
        return train(teacher, clip, guard={"s": bound}, **given)

    clip = small_clip()
    stopped = run(clip, Planted(70.0, 69.0, 60.0), 65)
    kept, why = weights(clip), "s is 60 at step 2, below 65; the weights are those of step 1"
    assert stopped.stopped == why
    again, metric = small_clip(), Planted()
    result = run(again, metric, 65)
    assert result.stopped == why and metric.seen == [] and result.report["steps"] == 2
    assert same(again.state_dict(), kept) and result.report["evaluation"]["before"] == {"step": 0, "s": 70.0}
    # Under a weaker guard it goes on from where it was stopped, to where it would have come.
    metric, freely = Planted(59.0, 58.0, 57.0, 56.0), small_clip()
    result = run(again, metric, 50)
    assert result.stopped is None and result.report["steps"] == 6 and len(metric.seen) == 4
    train(teacher, freely)
    assert same(again.state_dict(), freely.state_dict())
    # And anew.
    result = train(teacher, small_clip(), steps=1, output_dir=tmp_path, resume=False)
    assert not (tmp_path / "best").exists() and not (tmp_path / "evaluations.json").exists()


@pytest.fixture
def scored(tmp_path):
    """Metrics over MMVP-VLM, as a result and as a number of one, and over an image folder."""
    root, transform = mmvp_folder(tmp_path / "MMVP", pairs=1), image_transform(32, is_train=False)
    photos = photos_folder(tmp_path)
    given = (transform, texts.tokenize)
    return {
        "mmvp": lambda clip: mmvp_vlm(clip, *given, root),
        "average": lambda clip: mmvp_vlm(clip, *given, root).average,
        "folder": lambda clip: {"of": zero_shot_folder(clip, *given, photos)},
    }


@pytest.mark.parametrize("name", ["mmvp", "average"])
def test_best_does_not_go_by_a_test_set(teacher, tmp_path, scored, name, recwarn):
    given = {"evaluate": scored, "output_dir": tmp_path / "run"}
    with pytest.raises(ConfigError, match=rf"best='{name}' goes by MMVP-VLM, a test set.*half='validation'"):
        train(teacher, best=name, **given)
    assert "chosen_on_test" not in train(teacher, best="folder/of", **given).report["evaluation"]
    # Also where the run is resumed, and the score is named later.
    with pytest.raises(ConfigError, match="a test set"):
        train(teacher, best=name, **given)
    result = train(teacher, best=name, best_on_test=True, **given, resume=False)
    assert result.report["evaluation"]["chosen_on_test"] == "MMVP-VLM"
    assert not [warning for warning in recwarn if "retention" in str(warning.message)]


def test_detail_alone_is_warned_of_once(teacher, scored):
    drift = Drift(small_clip(), torch.randn(2, 3, 32, 32))
    with pytest.warns(UserWarning, match="retention is not measured. Add a score") as caught:
        train(teacher, evaluate={"mmvp": scored["average"], "drift": drift}, eval_every=2)
    assert sum("retention" in str(warning.message) for warning in caught) == 1
    with warnings.catch_warnings(record=True) as others:
        train(teacher, evaluate={"mmvp": scored["mmvp"], "mine": Planted(1.0, 2.0)})
    assert not [warning for warning in others if "retention" in str(warning.message)]


def test_results_are_kept_before_after_and_of_the_best(teacher, tmp_path, scored):
    steady = {"score": Planted(9.0, 8.0, 1.0), **scored}
    guarded = {"evaluate": steady, "guard": {"score": 5}, "eval_every": 1, "output_dir": tmp_path}
    result = train(teacher, **guarded)
    assert result.stopped.endswith("those of step 1")
    assert result.evaluations["before"]["score"] == []
    before, after = (result.evaluations[moment]["mmvp"][0] for moment in ("before", "after"))
    assert (before["name"], before["kind"], before["is_test_set"]) == ("MMVP-VLM", "detail", True)
    # Those of the weights that the model has now.
    assert after["result"]["average"] == result.report["evaluation"]["best"]["mmvp"]
    written = json.loads(json.dumps(result.evaluations))
    assert written["after"] == json.loads((tmp_path / "evaluations-after.json").read_text())
    assert train(teacher, small_clip(), **guarded).evaluations == written


def test_a_folder_of_the_callers_is_not_taken_for_best(teacher, tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match=r"best holds 'thesis\.tex', which is not part of a run's"):
        train(teacher, evaluate=Planted(1.0), best="planted", output_dir=tmp_path)
    train(teacher, steps=1, output_dir=tmp_path, resume=False)
    assert (tmp_path / "best" / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"evaluate": None, "eval_every": 10}, r"eval_every, best and guard need scores: give evaluate="),
        ({"eval_every": 0}, r"eval_every=0: give a number of steps from 1"),
        ({"best": ("planted", "up")}, r"best=.* give a score, or \(score, 'min'\)"),
        ({"best": "plated"}, r"'plated' is not one.*planted"),
        ({"guard": {"x": 1}}, r"'x' is not one: measured are planted"),
        ({"guard": {"planted": ("least", 1)}}, r"guard=\{'planted': .*the lowest score"),
        ({"evaluate": {"loss": Planted(1.0)}}, r"a score is named 'loss'.*rename"),
        ({"evaluate": Planted("high")}, r"metric planted gave a str"),
        ({"evalute": Planted(1.0)}, r"no argument 'evalute'.*'evaluate'"),
    ],
)
def test_slips_are_explained_before_the_first_step(teacher, given, message):
    clip = small_clip()
    start = weights(clip)
    with pytest.raises(ConfigError, match=message):
        train(teacher, clip, **{"evaluate": Planted(1.0), **given})
    assert same(clip.state_dict(), start)
