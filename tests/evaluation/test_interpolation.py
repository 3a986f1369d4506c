"""Weights between two models, and what they score."""

import csv
import random

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from safetensors.torch import save_file

import diva_rs
from builders import texts
from builders.clips import pixels
from builders.mmvp import mmvp_folder
from builders.small import small_clip
from diva_rs import ConfigError, WeightsError
from diva_rs.evaluation import Drift, DriftResult, mmvp_vlm, pairs
from diva_rs.evaluation.measures import measured


@pytest.fixture
def two():
    return small_clip(seed=0), small_clip(seed=1)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_ends_are_the_two_models_to_the_bit_and_between_is_the_formula(two):
    before, after = two
    assert same(diva_rs.interpolate(before, after, 0), before.state_dict())
    assert same(diva_rs.interpolate(before, after, 1.0), after.state_dict())
    mixed = diva_rs.interpolate(before, after, 0.3)
    for name, value in mixed.items():
        exact = 0.7 * before.state_dict()[name].double() + 0.3 * after.state_dict()[name].double()
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-7)
    # New tensors: to change one changes neither model.
    mixed["visual.proj"].zero_()
    diva_rs.interpolate(before, after, 1)["visual.proj"].zero_()
    assert before.visual.proj.abs().sum() > 0 and after.visual.proj.abs().sum() > 0


def test_models_state_dicts_and_files_are_the_same(two, tmp_path):
    before, after = two
    save_file(before.state_dict(), tmp_path / "before.safetensors")
    torch.save({"state_dict": after.state_dict(), "epoch": 3}, tmp_path / "after.pt")
    (tmp_path / "run").mkdir()
    save_file(before.state_dict(), tmp_path / "run" / "clip.safetensors")
    expected = diva_rs.interpolate(before, after, 0.5)
    files = tmp_path / "before.safetensors", str(tmp_path / "run")
    for old in (weights(before), *files, torch.nn.DataParallel(before)):
        assert same(diva_rs.interpolate(old, tmp_path / "after.pt", 0.5), expected)


def test_a_model_is_filled_in_place(two):
    before, after = two
    expected = diva_rs.interpolate(before, after, 0.25)
    parameter = after.visual.proj
    returned = diva_rs.interpolate(before, after, 0.25, into=after)
    assert after.visual.proj is parameter and same(after.state_dict(), expected) and same(returned, expected)


def test_half_precision_is_mixed_in_float32_and_counters_must_agree():
    old = {"w": torch.tensor([1.0, 3e-8], dtype=torch.float16), "n": torch.tensor(3)}
    new = {"w": torch.tensor([2.0, 6e-8], dtype=torch.float16), "n": torch.tensor(3)}
    mixed = diva_rs.interpolate(old, new, 1 / 3)
    assert mixed["w"].dtype == torch.float16 and mixed["n"].item() == 3
    assert torch.equal(mixed["w"], torch.lerp(old["w"].float(), new["w"].float(), 1 / 3).half())
    with pytest.raises(WeightsError, match=r"n is torch\.int64 and differs between before and after"):
        diva_rs.interpolate(old, {**new, "n": torch.tensor(4)}, 0.5)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, 50, float("nan")])
def test_an_alpha_beyond_the_two_is_refused(two, alpha):
    with pytest.raises(ConfigError, match=r"a number from 0 \(before\) to 1 \(after\) is needed"):
        diva_rs.interpolate(*two, alpha)


def test_what_does_not_fit_is_named_and_changes_nothing(two, tmp_path):
    before, after = two
    old, start = weights(before), weights(after)
    missing = {name: value for name, value in old.items() if name != "visual.proj"}
    for source, message in (
        (missing, r"visual\.proj is in after, but not in before \(1 keys differ\)"),
        ({**old, "extra": torch.ones(1)}, r"extra is in before, but not in after"),
        ({**old, "visual.proj": torch.ones(2)}, r"visual\.proj is \(2,\) in before, \(32, 20\) in after"),
        ({**old, "visual.proj": 3}, r"before: entry 'visual\.proj' is an int, expected a tensor"),
        (tmp_path, r"before: .* holds none of clip\.safetensors"),
        (tmp_path / "nowhere.pt", r"before: .*nowhere\.pt cannot be read as weights"),
    ):
        with pytest.raises(WeightsError, match=message):
            diva_rs.interpolate(source, after, 0.5, into=after)
    with pytest.raises(WeightsError, match=r"visual\.\S+ is \(32,\) in the interpolation, \(16,\)"):
        diva_rs.interpolate(before, after, 0.5, into=small_clip(width=16))
    with pytest.raises(ConfigError, match="after is an int: give a model, a state dict or a file"):
        diva_rs.interpolate(before, 3, 0.5)
    assert same(after.state_dict(), start) and same(before.state_dict(), old)


def test_a_sweep_scores_every_alpha_and_leaves_the_model_as_it_was(two, tmp_path):
    before, after = two
    original, trained = weights(before), weights(after)
    seen = []

    def size(clip):
        assert not clip.training and not torch.is_grad_enabled()
        seen.append(weights(clip))
        return clip.visual.proj.norm()

    sweep = diva_rs.interpolation_sweep(
        original, after, {"size": size, "drift": Drift(before, pixels(before, 4))}, alphas=(0, 0.5, 1)
    )
    assert same(seen[0], original) and same(seen[2], trained) and same(after.state_dict(), trained)
    assert same(seen[1], diva_rs.interpolate(original, trained, 0.5))
    assert [row["alpha"] for row in sweep.rows] == [0, 0.5, 1]
    assert [row["size"] for row in sweep.rows] == [float(state["visual.proj"].norm()) for state in seen]
    assert abs(sweep.rows[0]["drift"] - 1) < 1e-6 and sweep.rows[2]["drift"] < sweep.rows[1]["drift"] < 1
    assert after.training  # its own mode

    rows = list(csv.DictReader(sweep.to_csv(tmp_path / "sweep.csv").open()))
    assert [float(row["drift"]) for row in rows] == [row["drift"] for row in sweep.rows]
    lines = str(sweep).splitlines()
    assert lines[0].split() == ["alpha", "size", "drift"] and len(lines) == 4
    assert sweep.best("drift")["alpha"] == 0
    best = max(sweep.rows[:2], key=lambda row: row["size"])
    assert sweep.best("size", drift=sweep.rows[1]["drift"]) == best
    with pytest.raises(ConfigError, match=r"no alpha keeps drift >= 2: the highest are drift 1"):
        sweep.best("size", drift=2)
    with pytest.raises(ConfigError, match=r"no score 'dirft'.*drift"):
        sweep.best("dirft")


def test_the_best_alpha_is_not_chosen_by_a_test_set(tmp_path):
    root, transform = mmvp_folder(tmp_path / "MMVP", pairs=1), image_transform(32, is_train=False)
    clip, given = small_clip(), (transform, texts.tokenize, root)
    metrics = {
        "mmvp": lambda clip: mmvp_vlm(clip, *given).average,
        "validation": lambda clip: pairs(clip, *given, half="validation"),
    }
    sweep = diva_rs.interpolation_sweep(small_clip(seed=1), clip, metrics, alphas=(0, 1))
    with pytest.raises(ConfigError, match=r"mmvp is a score of MMVP-VLM, a test set.*half='validation'"):
        sweep.best("mmvp")
    assert sweep.best("validation") in sweep.rows and sweep.best("mmvp", best_on_test=True) in sweep.rows


def test_the_plots(two):
    pytest.importorskip("matplotlib").use("agg")
    rows = tuple({"alpha": a / 4, "mmvp": 20 + a, "top1": 75 - a * a / 8} for a in range(5))
    sweep = diva_rs.InterpolationSweep(rows)
    lines = {line.get_label(): line.get_ydata() for line in sweep.plot().lines}
    assert list(lines) == ["mmvp", "top1"] and list(lines["mmvp"]) == [20, 21, 22, 23, 24]
    trade = sweep.plot("top1", "mmvp")
    assert (trade.get_xlabel(), trade.get_ylabel()) == ("top1", "mmvp")
    assert [text.get_text() for text in trade.texts] == ["0", "0.25", "0.5", "0.75", "1"]
    with pytest.raises(ConfigError, match="needs y"):
        sweep.plot("top1")


def test_a_failing_metric_leaves_the_weights(two):
    before, after = two
    trained = weights(after)
    with pytest.raises(ConfigError, match="metric words gave a str: a number"):
        diva_rs.interpolation_sweep(weights(before), after, {"words": lambda clip: "good"}, alphas=[0.5])
    assert same(after.state_dict(), trained)
    with pytest.raises(ConfigError, match="give clip="):
        diva_rs.interpolation_sweep(weights(before), trained, {"one": lambda clip: 1})
    with pytest.raises(ConfigError, match="metrics is 3"):
        diva_rs.interpolation_sweep(before, after, 3)


def test_measuring_leaves_no_trace(two):
    clip = two[0].train()
    clip.visual.proj.grad = torch.ones_like(clip.visual.proj)
    clip.visual.ln_post.eval()
    kept = clip.visual.proj.grad
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    def noisy(model):
        random.random(), np.random.rand(), torch.rand(3)
        with torch.enable_grad():
            model.encode_image(pixels(model)).sum().backward()
        return DriftResult(0.5, 0.25, 1.0, ())

    found = measured({"noisy": noisy, "parts": lambda clip: {"a": 1, "b": torch.tensor(2.0)}}, clip)
    assert {name: value for name, (value, _) in found.items()} == {"noisy": 0.5, "parts/a": 1, "parts/b": 2}
    assert [result.cosine for result in found["noisy"][1]] == [0.5] and not found["parts/a"][1]
    assert clip.visual.proj.grad is kept and clip.visual.conv1.weight.grad is None
    assert clip.training and not clip.visual.ln_post.training
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
