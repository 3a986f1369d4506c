"""``diva-rs train``: what it hands over, its output folder, devices, Ctrl-C."""

import json

import numpy as np
import open_clip
import pytest
import torch

from builders.cli import MODEL, NEEDED, message, parsed
from builders.flows import flux_pipeline
from diva_rs.captions import Evidence, Judgements, Vocabulary
from diva_rs.cli import main
from diva_rs.cli.models import load_teacher
from diva_rs.data import ImageFolder
from diva_rs.diffusion import Teacher
from diva_rs.errors import ConfigError
from diva_rs.recipes.recipe import Recipe
from diva_rs.run import post_training
from diva_rs.run.callbacks import TensorBoard


def test_train_hands_over_models_images_and_recipe(trained, command, capsys, tmp_path):
    board = str(tmp_path / "board")
    extra = ["--recipe", "diva-openai-vit-l-14-224", "--batch", "4", "--tensorboard", board, "--no-progress"]
    assert main([*command, *extra]) == 0
    [call] = trained
    assert call.recipe == Recipe.named("diva-openai-vit-l-14-224").replace(batch=4)
    assert call.clip.visual.conv1.weight.dtype == torch.float32
    assert isinstance(call.teacher, Teacher) and call.teacher.latent_shape == (4, 8, 8)
    batches = list(call.loader)
    assert [tuple(batch["images"].shape) for batch in batches] == [(4, 3, 32, 32), (2, 3, 32, 32)]
    assert (call.progress, call.output_dir) == (False, tmp_path / "run")
    assert [type(callback) for callback in call.callbacks] == [TensorBoard]
    output = capsys.readouterr()
    assert "recipe diva-openai-vit-l-14-224; differing from the defaults" in output.out
    assert "batch 4 changed: the preset has 640" in " ".join(output.out.split())
    assert "done: 3 steps, loss 0.5000 at the first log, 0.2500 at the last" in output.out
    assert "starts from random weights" in output.err
    assert main([*command, "--overwrite"]) == 130  # as after Ctrl-C
    assert "interrupted after 3 steps" in capsys.readouterr().out


def test_train_in_double_precision_and_at_another_size(trained, command):
    assert main([*command, "--precision", "fp64", "--image-size", "24", "--loader-batch", "3"]) == 0
    [call] = trained
    assert call.clip.visual.conv1.weight.dtype == torch.float64
    assert [tuple(batch["images"].shape) for batch in call.loader] == [(3, 3, 24, 24)] * 2


def test_crops_are_augmented_and_follow_the_seed(trained, command):
    for extra in (["--seed", "1"], ["--seed", "1", "--overwrite"], ["--seed", "2", "--overwrite"]):
        main([*command, *extra])
    orders = [[int(key) for batch in call.loader for key in batch["ids"]] for call in trained]
    assert orders[0] == orders[1] != orders[2]


def test_an_output_folder_that_holds_something_is_not_overwritten(trained, command, capsys, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("old\n")
    (folder / "note").write_text("mine")
    assert "is not empty and holds no run to resume: choose another" in message(capsys, command)
    assert (folder / "metrics.jsonl").read_text() == "old\n" and not trained
    assert main([*command, "--overwrite"]) == 0
    assert trained[-1].resume is False
    assert (folder / "note").read_text() == "mine"


def test_a_run_in_the_folder_is_resumed(trained, command, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    assert main(command) == 0
    assert main([*command, "--resume", "force"]) == 130
    assert [call.resume for call in trained] == [True, "force"]


def test_an_output_folder_that_cannot_be(trained, command, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    argv = [*command, "--output-dir", str(tmp_path / "file")]
    assert "cannot be made: File exists" in message(capsys, argv)
    argv[-1] = str(tmp_path / "file" / "run")
    assert "cannot be made: Not a directory" in message(capsys, argv)
    assert not trained


def test_a_device_that_is_not_there(command, capsys):
    assert "--device=cuda:99 is not available" in message(capsys, [*command, "--device", "cuda:99"])


def test_ctrl_c_outside_the_training_is_exit_code_130(monkeypatch, command, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(post_training, "post_train", interrupted)
    assert main(command) == 130
    assert capsys.readouterr().err.endswith("diva-rs: interrupted\n")


def test_train_end_to_end(command, capsys, tmp_path):
    flags = ["--steps", "2", "--batch", "3", "--log-every", "1", "--density", "0.5", "--lr", "1e-2"]
    assert main([*command, *flags, "--no-progress"]) == 0
    assert "done: 2 steps" in capsys.readouterr().out
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert json.loads((run / "recipe.json").read_text())["density"] == 0.5
    model = open_clip.create_model(MODEL, pretrained=str(run / "clip.safetensors"))
    assert model.visual.conv1.weight.shape == (32, 3, 8, 8)


def test_judgements_train_without_the_diffusion_model(command, clip, photos, capsys, tmp_path):
    words = Vocabulary({"colour": ("red", "blue")}, subjects=("car", "dog"))
    evidence = {}
    for place, key in enumerate(ImageFolder(photos).ids.tolist()):
        losses = np.roll([[0.0, 0.0], [1.0, 1.0]], place, axis=0)
        evidence[key] = [Evidence(words.set_of("colour", {"subject": "car"}), losses)]
    given = {key: {"subject": "car"} for key in evidence}
    Judgements(evidence, words, given=given).save(tmp_path / "judged")
    command = [*command[:2], clip, *command[3:], "--judged", str(tmp_path / "judged"), "--no-progress"]
    flags = ["--steps", "2", "--batch", "3", "--log-every", "1", "--lr", "1e-2", "--denoising", "0"]
    assert main([*command, *flags]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["captions"] > 0 and "keep" in row and "denoising" not in row for row in rows)
    assert "a folder of judgements is needed" in message(capsys, [*command, "--judged", photos])


def test_options_reach_the_family_of_the_teacher(tmp_path):
    flux_pipeline().save_pretrained(tmp_path)
    flags = ["--teacher-options", "guidance=4", "--teacher-options", "slot=tokens"]
    options, _ = parsed([*NEEDED, "--teacher", str(tmp_path), *flags])
    teacher = load_teacher(options, torch.device("cpu"))
    assert (teacher.family.guidance, teacher.slots.names) == (4.0, ("tokens",))
    options, _ = parsed([*NEEDED, "--teacher-options", "guidance"])
    with pytest.raises(ConfigError, match="--teacher-options guidance: write NAME=VALUE"):
        load_teacher(options, torch.device("cpu"))
