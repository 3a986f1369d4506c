"""``diva-rs cache``, ``info`` and ``demo``, and how the process ends."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import numpy as np
import torch
from PIL import Image

import diva_rs
from builders.cli import message
from diva_rs.cli import info, main
from diva_rs.recipes.presets import presets
from diva_rs.recipes.recipe import Recipe

FEW = ("--workers", "0", "--device", "cpu")


def test_cache_and_training_with_it(trained, teacher, photos, command, capsys, tmp_path):
    out = str(tmp_path / "latents")
    argv = ["cache", "--data", photos, "--teacher", teacher, "--out", out, *FEW]
    assert main(argv) == 0
    assert "6 latents (4, 8, 8)" in capsys.readouterr().out
    assert "holds a latent cache already" in message(capsys, argv)
    assert main([*argv, "--overwrite", "--dtype", "float16"]) == 0
    assert main([*command, "--latents", out]) == 0
    [call] = trained
    seen = {tuple(batch["latents"].shape[1:]) for batch in call.loader}
    assert seen == {(4, 8, 8)}
    assert "vae_pixels" in message(capsys, [*command, "--latents", out, "--vae-pixels", "official"])


def test_training_sees_the_views_of_the_cache(trained, teacher, command, capsys, tmp_path):
    out, photos = str(tmp_path / "latents"), str(tmp_path / "photos")
    os.mkdir(photos)
    for number in range(6):  # no two crops of noise are alike
        pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{photos}/{number}.png")
    command = [photos if word == command[command.index("--data") + 1] else word for word in command]
    argv = ["cache", "--data", photos, "--teacher", teacher, "--out", out, *FEW]
    assert main([*argv, "--crops", "2", "--flip"]) == 0
    assert "24 latents (4, 8, 8)" in capsys.readouterr().out
    assert main([*command, "--latents", out, "--seed", "5"]) == 0
    [call] = trained
    seen = set()
    for epoch in range(4):
        call.loader.set_epoch(epoch)
        seen |= {latent.numpy().tobytes() for batch in call.loader for latent in batch["latents"]}
    assert len(seen) == 24
    assert "--crops=9999: " in message(capsys, [*argv[:6], out + "2", "--crops", "9999"])


def test_cache_with_official_pixels_needs_a_mean(teacher, photos, capsys, tmp_path):
    argv = ["cache", "--data", photos, "--teacher", teacher, "--out", str(tmp_path / "latents"), *FEW]
    assert "give --clip-mean and --clip-std" in message(capsys, [*argv, "--vae-pixels", "official"])
    assert "--out is needed: " in message(capsys, argv[:5])
    official = ["--recipe", "diva-official-openai-vit-l-14-224", "--image-size", "16"]
    assert main([*argv, *official]) == 0


# info


def test_info(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert f"diva-rs         {diva_rs.__version__}" in text and f"torch           {torch.__version__}" in text
    assert "CPU threads" in text and "diffusers" in text
    assert "devices         cpu only" in text or "cuda:0" in text


def test_info_recipes(capsys):
    assert main(["info", "--recipes"]) == 0
    text = capsys.readouterr().out
    assert [line.split(":")[0] for line in text.splitlines() if line[0] != " "] == Recipe.names()
    for preset in presets().values():
        assert "\n".join(preset.needs()) in text
    assert main(["info", "--recipe", "diva-dfn-vit-h-14-378"]) == 0
    assert capsys.readouterr().out == Recipe.named("diva-dfn-vit-h-14-378").describe() + "\n"
    near = message(capsys, ["info", "--recipe", "diva-dfn-vit-h14-378"])
    assert "did you mean 'diva-dfn-vit-h-14-378'" in near


def test_info_says_how_to_install_what_is_missing(monkeypatch, capsys):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(info, "version", absent)
    assert main(["info"]) == 0
    assert "webdataset      not installed: pip install 'diva-rs[data]'" in capsys.readouterr().out


# demo, and the process


def test_demo_checks_its_steps(capsys):
    assert "--steps=0: it must be an integer of at least 1" in message(capsys, ["demo", "--steps", "0"])
    assert "--steps=many: it must be an integer" in message(capsys, ["demo", "--steps", "many"])


def test_a_process_ends_with_the_code_and_has_not_imported_what_it_does_not_use():
    code = (
        "import sys; from diva_rs.cli import main; code = main(['info', '--recipe', 'nothing']); "
        "heavy = {'open_clip', 'transformers', 'diffusers', 'tensorboard', 'diva_rs.step.trainer'}; "
        "print(heavy.intersection(sys.modules)); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "set()\n")
    assert done.stderr.startswith("diva-rs: error: there is no recipe 'nothing'")


def test_a_pipe_that_nobody_reads_is_no_error():
    read, write = os.pipe()
    os.close(read)
    argv = [sys.executable, "-m", "diva_rs.cli", "info", "--recipe", Recipe.names()[0]]
    closed = subprocess.run(argv, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (closed.returncode, closed.stderr) == (141, "")
