"""The demo: its table against plain figures, the same one twice, a report with its pictures, its flags."""

import importlib
from functools import partial

import numpy as np
import pytest
import torch

from diva_rs import cli, demo
from diva_rs.microworld import PATTERNS, World
from diva_rs.microworld.demo import scoring
from diva_rs.microworld.demo.reconstruction import views
from diva_rs.microworld.pretrained import Microworld


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """Two short runs in folders of their own."""
    return [
        demo.run(tmp_path_factory.mktemp("demo"), steps=3, progress=False, per_pattern=3, images=48)
        for _ in range(2)
    ]


def test_the_table_is_the_same_twice(twice):
    assert twice[0].table == twice[1].table
    assert twice[0].before.mmvp.average == twice[1].before.mmvp.average


def test_the_rows_are_the_scores(twice):
    before, after = twice[0].before, twice[0].after
    rows = {row.name.strip(): row for row in scoring.rows(before, after)}
    assert all(str(row) in twice[0].table for row in rows.values())
    assert len(rows) == 1 + 9 + 1 + 1 + 9
    assert rows["mini-MMVP"].before == pytest.approx(before.mmvp.average)
    for name in PATTERNS:
        assert rows[name].after == pytest.approx(after.mmvp.patterns[name])
    zero_shot = rows["zero-shot objects"]
    assert zero_shot.difference == pytest.approx(after.zero_shot.accuracy - before.zero_shot.accuracy)
    assert zero_shot.interval == before.zero_shot.compare(after.zero_shot).interval
    probes = [np.mean([probe.accuracy for probe in side.probes.values()]) for side in (before, after)]
    mean = rows["probes of the class token"]
    assert (mean.before, mean.after) == pytest.approx(tuple(probes))
    assert mean.interval[0] <= mean.difference <= mean.interval[1]


def test_a_row_is_marked_where_its_interval_excludes_zero():
    marked = [
        str(scoring.Row("a", 10.0, 12.0, 2.0, interval)).endswith("*")
        for interval in ((0.5, 3.5), (-3.5, -0.5), (-0.5, 4.5), (0.0, 4.0))
    ]
    assert marked == [True, True, False, False]


def test_training_and_scoring_share_no_scene(monkeypatch):
    monkeypatch.setattr(scoring, "_rows", lambda world: None)  # no picture is needed
    measured = scoring.Scoring(per_pattern=200, images=2048)
    spans = [
        range(world.first, world.first + len(world))
        for world in (measured.pairs, measured.scenes, World("train", 4096, start=1 << 20))
    ]
    fitted = World("train", 2048, start=(1 << 24) - 2048)
    spans.append(range(fitted.first, fitted.first + len(fitted)))
    numbers = [number for span in spans for number in span]
    assert len(set(numbers)) == len(numbers)


def test_the_report_shows_the_reconstructions_and_the_pairs(twice):
    folder = twice[0].folder
    page = (folder / "report.html").read_text()
    assert 'class="picture"' in page and "data:image/png;base64," in page
    assert (folder / "reconstructions.png").stat().st_size > 10_000
    assert "with the noise of timestep 600" in page
    flipped = twice[0].before.mmvp.compare(twice[0].after.mmvp)
    assert len(list((folder / "pairs").iterdir())) == 2 * len({*flipped.gained, *flipped.lost})
    assert "image not found" not in page


def test_the_denoiser_sees_again_what_the_condition_tells_it(twice):
    world = Microworld()
    teacher, images = world.teacher(), World("validation", 6).images(range(6))
    clip, result = world.clip(), twice[0].result
    shown = views(teacher, world.vae, result.recipe, images, {"CLIP": (clip, result.projector)})
    assert [view.title.split("\n")[0] for view in shown] == ["image", "with noise", "text alone", "CLIP"]
    assert torch.equal(shown[0].pictures, images)
    assert all(view.pictures.shape == images.shape for view in shown)
    assert not torch.equal(shown[2].pictures, shown[3].pictures)
    noise, alone = (float((view.pictures - images).square().mean()) for view in shown[1:3])
    assert alone < noise  # one step of the denoiser brings the noisy image nearer to the true one


def test_ctrl_c_ends_it_without_a_report(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        result = post_train(*args, **kwargs)
        result.report["interrupted"] = True
        return result

    module = importlib.import_module("diva_rs.microworld.demo.run")  # as an attribute it is the function
    post_train = module.post_train
    monkeypatch.setattr(module, "post_train", interrupted)
    monkeypatch.setattr(demo, "run", partial(demo.run, per_pattern=1, images=64))
    code = cli.main(["demo", "--steps", "1", "--no-progress", "--output-dir", str(tmp_path / "run")])
    assert code == 130 and not (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run" / "clip.safetensors").is_file()


def test_a_world_that_is_not_there_is_named(tmp_path, capsys):
    assert cli.main(["demo", "--world", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no manifest.json" in capsys.readouterr().err
