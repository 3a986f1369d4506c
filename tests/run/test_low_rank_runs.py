"""Runs of low-rank towers: resuming, evaluation, the best weights, errors, and what is saved."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file

import diva_rs
from builders import clips
from builders.runs import Stop, same, stop_at, weights
from builders.small import images, small_clip
from diva_rs import ConfigError, Stage
from diva_rs.clip.wrappers import own_weights

STAGES = (
    Stage(train=("projector",), steps=2, optimizer="adamw", lr=1e-2),
    Stage(train=("projector", "tower"), steps=4, optimizer="adamw", lr=1e-2),
)


def train(teacher, clip=None, **given):
    clip = small_clip() if clip is None else clip
    loader = [images(2, seed=n) for n in range(6)]
    settings = {"progress": False, "log_every": 1, "density": 0.5, "stages": STAGES, "low_rank": 3, **given}
    return diva_rs.post_train(clip, teacher, loader, **settings)


def merged(result):
    """The weights of the targets as their definition has them, by key and place."""
    for matrix, base, a, b in result.low_rank.pairs:
        yield matrix, base + result.low_rank.scale * b @ a


def is_merged(result):
    return all((matrix.of(matrix.weight) - value).abs().max() < 1e-6 for matrix, value in merged(result))


@pytest.mark.invariant
@pytest.mark.parametrize("stop", [1, 4])
def test_a_stopped_run_resumes_to_the_same_bits(teacher, tmp_path, stop):
    straight, clip = train(teacher), small_clip()
    flags = [parameter.requires_grad for parameter in clip.parameters()]
    given = {"output_dir": tmp_path, "checkpoint_every": 1}
    with pytest.raises(Stop):
        train(teacher, clip, callbacks=[stop_at(stop)], **given)
    # After an error CLIP is an ordinary model with the weights of the last step.
    assert flags == [parameter.requires_grad for parameter in clip.parameters()]
    assert all(parameter.grad is None for parameter in clip.parameters())
    left = weights(clip)
    if stop > 2:  # in the stage that trains the tower
        with pytest.raises(ConfigError, match=r"low_rank=3 needs the CLIP that the run .* began from"):
            train(teacher, clip, **given)
        with pytest.raises(ConfigError, match=r"low_rank was 3, is 4"):
            train(teacher, low_rank=4, **given)
        assert all(torch.equal(left[name], value) for name, value in weights(clip).items())
    result = train(teacher, **given)
    assert same(result, straight) and is_merged(result)
    assert result.report["trained_parameters"]["clip"] == sum(
        value.numel() for value in result.low_rank.parameters.values()
    )


@pytest.mark.invariant
def test_evaluations_see_the_merged_weights_and_change_nothing(teacher):
    start, seen = small_clip().visual.proj, []

    def distance(clip):
        seen.append(float((clip.visual.proj - start).detach().norm()))
        return seen[-1]

    result = train(teacher, evaluate={"distance": distance}, eval_every=1)
    assert seen[:3] == [0, 0, 0] and 0 < seen[3] < seen[-1]
    assert same(result, train(teacher)) and is_merged(result)


def test_the_best_weights_are_put_back_and_read_back(teacher, tmp_path):
    scores = iter([5.0, 6.0, 7.0, 9.0, 8.0, 1.0])
    kept = []

    def score(clip):
        kept.append(weights(clip))
        return next(scores)

    given = {"eval_every": 1, "best": "score", "guard": {"score": 4}, "output_dir": tmp_path}
    result = train(teacher, evaluate={"score": score}, **given)
    assert result.stopped and is_merged(result)
    assert all(torch.equal(kept[3][name], value) for name, value in weights(result.clip).items())
    best = load_file(tmp_path / "best" / "low_rank.safetensors")
    assert all(torch.equal(best[name], value) for name, value in result.low_rank.factors().items())
    again = train(teacher, evaluate={"score": score}, **given)
    assert again.stopped and same(again, result) and is_merged(again)


@pytest.mark.parity
def test_peft_loads_the_folder_of_a_run(teacher, tmp_path):
    make = clips.clip_variants()["transformers-clip-projection"]
    clip = make().eval()
    result = train(teacher, clip, output_dir=tmp_path, low_rank_bias=True, low_rank_alpha=6.0)
    model = peft.PeftModel.from_pretrained(make().eval(), tmp_path).merge_and_unload()
    found = load_file(tmp_path / "clip.safetensors")
    for name, value in own_weights(model).items():
        assert (value - found[name]).norm() <= 1e-6 * max(value.norm(), 1), name
    factors = load_file(tmp_path / "low_rank.safetensors")
    assert all(torch.equal(factors[name], value) for name, value in result.low_rank.factors().items())
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == 6
    train(teacher, make().eval(), output_dir=tmp_path, low_rank=None, resume=False)
    assert not {"low_rank.safetensors", "adapter_config.json"} & {path.name for path in tmp_path.iterdir()}


def test_what_peft_cannot_adapt_is_a_warning(teacher, tmp_path, caplog):
    result = train(teacher)
    result.save(tmp_path)
    assert "no adapter of peft is written" in caplog.text and "out_proj.weight twice" in caplog.text
    assert (tmp_path / "low_rank.safetensors").exists() and not (tmp_path / "adapter_config.json").exists()
