"""`post_train` without a diffusion model: on judgements alone, resumed to the same bits."""

import json

import pytest
import torch

import diva_rs
from builders.judged import judged
from builders.small import images, small_clip, small_teacher
from builders.texts import tokenize
from diva_rs import ConfigError
from diva_rs.captions import CaptionTerm, KeepTerm, WrittenTerm


class Stop(Exception):
    pass


def stop_at(step):
    def stop(at, metrics):
        if at == step:
            raise Stop

    return stop


def train(folder=None, teacher=None, clip=None, changed=None, **given):
    """Six steps over four batches of judged images; ``changed`` terms take the place of others."""
    loader = [{"images": images(2, seed=n), "ids": [2 * n, 2 * n + 1]} for n in range(4)]
    clip = small_clip() if clip is None else clip
    text, made = small_clip(), judged(8)
    terms = {
        "captions": (0.3, CaptionTerm(made, text, tokenize)),
        "written": (0.1, WrittenTerm(made, text, tokenize, hard=1)),
        "keep": (1.0, KeepTerm(text, tokenize, ["a cat", "a dog"])),
        **(changed or {}),
    }
    fields = {"denoising": 0, "steps": 6, "optimizer": "adamw", "lr": 1e-2, "log_every": 1, "terms": terms}
    fields |= {"checkpoint_every": 2, "progress": False, "output_dir": folder, **given}
    return diva_rs.post_train(clip, teacher, loader, **fields)


def weights(result):
    return {name: value.clone() for name, value in result.clip.state_dict().items()}


def test_a_run_on_judgements_alone(tmp_path):
    result = train(tmp_path / "run")
    report, [*rows] = result.report, result.history
    assert report["losses"] == ["loss", "captions", "written", "keep"] and report["teacher"] == "none"
    assert report["backend"]["denoiser"].startswith("none") and "projector" not in str(
        sorted(weights(result))
    )
    assert len(rows) == 6 and "denoising" not in rows[0]
    for row in rows:
        assert row["loss"] == pytest.approx(row["captions"] + row["written"] + row["keep"], rel=1e-5)
    assert rows[0]["keep"] == pytest.approx(0, abs=1e-6) and rows[-1]["keep"] > 0
    assert isinstance(result.projector, torch.nn.Identity)
    before = small_clip().state_dict()
    moved = {name for name, value in weights(result).items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("visual.") for name in moved)
    assert "captions" in diva_rs.report.write(tmp_path / "run", tmp_path / "page").read_text()


def test_it_resumes_to_the_same_bits(tmp_path):
    whole = weights(train(tmp_path / "whole"))
    with pytest.raises(Stop):
        train(tmp_path / "run", callbacks=[stop_at(3)])
    resumed = train(tmp_path / "run")
    assert [row["step"] for row in resumed.history] == [1, 2, 3, 4, 5, 6]
    assert all(torch.equal(value, whole[name]) for name, value in weights(resumed).items())


def test_what_differs_on_resume_is_named(tmp_path):
    trained = train(tmp_path / "run", steps=2).clip
    with pytest.raises(ConfigError, match=r"teacher was None, is UNet2DConditionModel"):
        train(tmp_path / "run", teacher=small_teacher(), steps=2)
    with pytest.raises(ConfigError, match=r"denoising was 0.0, is 1.0"):
        train(tmp_path / "run", teacher=small_teacher(), steps=2, denoising=1.0)
    with pytest.raises(ConfigError, match=r"keep needs the CLIP that the run"):
        train(tmp_path / "run", clip=trained, steps=2)


@pytest.mark.parametrize(
    ("name", "weight", "term", "match"),
    [
        ("captions", 0.5, lambda clip: CaptionTerm(judged(8), clip, tokenize), "0.3.*is weight 0.5"),
        ("captions", 0.3, lambda clip: CaptionTerm(judged(9), clip, tokenize), "'judged': '.*'judged': '"),
        ("captions", 0.3, lambda clip: CaptionTerm(judged(8), clip, tokenize, seed=1), "'seed': 1"),
        ("written", 0.1, lambda clip: WrittenTerm(judged(8), clip, tokenize), "'hard': 1.*'hard': 0"),
        ("keep", 1.0, lambda clip: KeepTerm(clip, tokenize, ["a cat", "a fox"]), "a dog.*a fox"),
    ],
    ids=["weight", "judgements", "seed", "negatives", "texts"],
)
def test_other_terms_on_resume_are_named(tmp_path, name, weight, term, match):
    with pytest.raises(Stop):
        train(tmp_path / "run", callbacks=[stop_at(3)])
    with pytest.raises(ConfigError, match=f"term {name} was weight.*{match}"):
        train(tmp_path / "run", changed={name: (weight, term(small_clip()))})


def test_a_run_from_before_the_weight_resumes(tmp_path):
    """A recipe without the field is that with its default."""
    folder, loader = tmp_path / "run", [images(2, seed=n) for n in range(2)]
    given = {"output_dir": folder, "progress": False, "steps": 2}
    result = diva_rs.post_train(small_clip(), small_teacher(), loader, **given)
    facts = json.loads((folder / "run.json").read_text())
    assert facts["recipe"].pop("denoising") == 1.0
    (folder / "run.json").write_text(json.dumps(facts))
    again = diva_rs.post_train(small_clip(), small_teacher(), loader, **given)
    assert again.history == result.history
    assert json.loads((folder / "run.json").read_text())["recipe_sha256"] == facts["recipe_sha256"]
