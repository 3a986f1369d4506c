"""What a run leaves: its folder, weights that plain libraries load, the plot, and its numbers."""

import html
import json
import logging
import math
import os
import tracemalloc

import open_clip
import pytest
import torch
from safetensors.torch import load_file

import diva_rs
from builders.clips import clip_variants
from builders.pictures import encoded
from builders.runs import train, weights
from builders.small import SIDE, images, small_clip
from diva_rs import DataError, Recipe
from diva_rs._base.checkpoint import load_state
from diva_rs.data import folder_loader
from diva_rs.run.folder import RunFolder


def test_the_run_folder(teacher, three, tmp_path):
    result = train(teacher, three, output_dir=tmp_path / "runs" / "a", lr=1e-3)
    folder = tmp_path / "runs" / "a"
    files = {f"{name}.json" for name in ("history", "recipe", "report", "run")} | {"metrics.jsonl", ".lock"}
    files |= {"checkpoints", "clip.safetensors", "projector.safetensors", "recipe.txt"}
    assert {file.name for file in folder.iterdir()} == files
    assert (folder / "recipe.txt").read_text() == result.recipe.describe() + "\n"
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in rows] == result.history
    assert json.loads((folder / "history.json").read_text()) == result.history
    assert json.loads((folder / "report.json").read_text()) == result.report
    assert Recipe.from_dict(json.loads((folder / "recipe.json").read_text())) == result.recipe
    saved = load_file(folder / "projector.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in result.projector.state_dict().items())


def test_a_second_run_replaces_the_first_with_resume_false(teacher, three, tmp_path):
    for steps in (3, 1):
        train(teacher, three, output_dir=tmp_path, steps=steps, resume=False)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    assert len(json.loads((tmp_path / "history.json").read_text())) == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_checkpoint_folder_of_something_else_is_refused_before_the_run(teacher, tmp_path):
    folder = tmp_path / "checkpoints" / "step-00000003"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("mine")

    def untouched():
        raise AssertionError("the loader was read")
        yield

    with pytest.raises(DataError, match=r"step-00000003 holds 'thesis.tex', which is not part"):
        train(teacher, untouched(), output_dir=tmp_path)


def test_the_checkpoint_continues_where_the_run_ended(teacher, three, tmp_path):
    clip = small_clip()
    train(teacher, three, clip=clip, output_dir=tmp_path, steps=4, optimizer="adamw", lr=1e-3)
    state = load_state(tmp_path / "checkpoints" / "step-00000004")
    again = diva_rs.Trainer(small_clip(seed=5), teacher, Recipe.from_dict(state["recipe"]))
    again.load_state_dict(state)
    assert (again.steps_done, again.epoch, again.samples_seen) == (4, 1, 4)
    for name, value in clip.state_dict().items():
        if name.startswith("visual."):
            assert torch.equal(again.clip.state_dict()[name], value), name


@pytest.mark.parametrize("wrapper", [lambda clip: clip, torch.nn.DataParallel, torch.compile])
def test_plain_open_clip_loads_the_result_and_gives_the_same_embeddings(teacher, three, tmp_path, wrapper):
    clip = small_clip()
    given = wrapper(clip)
    train(teacher, three, clip=given, output_dir=tmp_path, lr=1e-2)
    config = {
        "embed_dim": 20,
        "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
    }
    # open_clip strips wrappers' prefixes when it loads; other libraries do not.
    assert load_file(tmp_path / "clip.safetensors").keys() == clip.state_dict().keys()
    (tmp_path / "tiny-for-reload.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-for-reload.json")
    again = open_clip.create_model("tiny-for-reload", pretrained=str(tmp_path / "clip.safetensors"))
    probe, tokens = images(3, seed=8), torch.arange(16).view(2, 8)
    with torch.no_grad():
        assert torch.equal(again.eval().encode_image(probe), clip.eval().encode_image(probe))
        assert torch.equal(again.encode_text(tokens), clip.encode_text(tokens))
        assert not torch.equal(small_clip().eval().encode_image(probe), clip.encode_image(probe))


@pytest.mark.parametrize("name", ["transformers-clip", "transformers-siglip", "transformers-clip-vision"])
def test_students_of_transformers(teacher, three, tmp_path, name):
    build = clip_variants()[name]
    clip = build()
    before = weights(clip)
    result = train(teacher, three, clip=clip, output_dir=tmp_path, lr=1e-2)
    moved = {key for key, value in clip.state_dict().items() if not torch.equal(value, before[key])}
    assert moved and not any(key.startswith(("text_model", "logit")) for key in moved)
    again = build(seed=9)
    again.load_state_dict(load_file(tmp_path / "clip.safetensors"), strict=True)
    assert all(torch.equal(value, clip.state_dict()[key]) for key, value in again.state_dict().items())
    assert result.report["clip"].startswith(type(clip).__name__)


def test_plot_draws_the_losses(teacher, three, tmp_path):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    result = train(teacher, three, steps=6, projector_warmup=2, anchor=0.1)
    assert [row["stage"] for row in result.history] == [1, 1, 2, 2, 2, 2]
    axes = result.plot()
    losses, smoothed, *terms, warmup = axes.get_lines()
    assert [line.get_label() for line in terms] == ["denoising", "anchor"]
    assert list(losses.get_xdata()) == [1, 2, 3, 4, 5, 6]
    assert list(losses.get_ydata()) == [row["loss"] for row in result.history]
    assert smoothed.get_ydata()[0] == pytest.approx(losses.get_ydata()[0])
    assert min(losses.get_ydata()) < smoothed.get_ydata()[-1] < max(losses.get_ydata())
    assert warmup.get_xdata()[0] == 2
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("step", "loss", "custom")
    axes.figure.savefig(tmp_path / "plot.png")
    _, own = pyplot.subplots()
    assert result.plot(own) is own
    result.history[2]["loss"] = float("nan")  # a loss that is not a number leaves a gap, not an empty curve
    gap, curve = (line.get_ydata() for line in result.plot().get_lines()[:2])
    assert math.isnan(gap[2]) and all(map(math.isfinite, curve))
    del result.history[1:]
    assert result.plot().get_lines()[0].get_marker() == "o"  # a line of one point would be invisible
    result.history.clear()
    assert result.plot().get_xlabel() == "step"
    pyplot.close("all")


def test_a_hole_in_the_log_costs_no_row_and_no_memory(tmp_path):
    run = RunFolder(tmp_path)
    first, last = (json.dumps({"step": step, "loss": 0.5}).encode() + b"\n" for step in (1, 2))
    run.metrics.write_bytes(first)
    os.truncate(run.metrics, 1 << 28)  # zeros that no disk holds
    with run.metrics.open("ab") as file:
        file.write(b"\n" + last)
    tracemalloc.start()
    try:
        assert [row["step"] for row in run.rows(2)] == [1, 2]
        assert tracemalloc.get_traced_memory()[1] < 16 << 20  # the peak, in bytes
    finally:
        tracemalloc.stop()
    assert run.metrics.read_bytes() == first + last
    os.truncate(run.metrics, (1 << 30) + 1)
    with pytest.raises(DataError, match=r"metrics\.jsonl cannot be read: .*more than 1073741824 bytes"):
        run.rows(2)
    run.close()


def test_what_the_loader_left_out_is_in_log_result_and_report(teacher, tmp_path, caplog):
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png", "c.heic", "d.heic", "notes.txt"):
        (tmp_path / "photos" / name).write_bytes(encoded(kind="png"))
    (tmp_path / "photos" / "b.png").write_bytes(b"cut off")
    loader = folder_loader(tmp_path / "photos", batch=2, size=SIDE, workers=0, on_bad_image="skip")
    with caplog.at_level(logging.INFO, "diva_rs"):
        result = train(teacher, loader, output_dir=tmp_path / "run")
    counts = "1 image used, 4 left out: 2 with the ending .heic (c.heic), "
    assert counts in result.report["data"] and "1 unreadable (" in result.report["data"]
    assert f"the run read {result.report['data']}" in caplog.text
    page = html.unescape(diva_rs.report.write(tmp_path / "run").read_text())
    assert page.count(counts) == 1 and f"on ImageFolder('{tmp_path}/photos', 2 images); recipe" in page
