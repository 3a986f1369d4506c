"""README and docs: their Python runs as pasted, their commands parse, what they name exists."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
import transformers
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import load_file

import diva_rs
from builders import exports, texts
from builders.benchmarks import photos_folder
from builders.diffusion import tiny_pipeline
from builders.mmvp import mmvp_folder
from builders.small import WIDTH, images, scheduler, small_clip, small_teacher, small_unet
from diva_rs import cli
from diva_rs.cli import options

ROOT = Path(__file__).parents[2]
PAGES = {page: (ROOT / page).read_text() for page in ("README.md", "CONTRIBUTING.md")}
PAGES |= {f"docs/{page.name}": page.read_text() for page in (ROOT / "docs").glob("*.md")}
TEXT = "\n".join(PAGES.values())
# The Python under each heading, by the heading; what is in blocks without a language are commands.
PYTHON = dict(
    re.findall(r"^## ([^\n]*)\n(?:(?!^## ).)*?^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
)
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
COMMANDS = "".join(code for language, code in BLOCKS if language == "")


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """The README's names in small: a photos folder, a Stable Diffusion folder, a CLIP for open_clip."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i in range(16):
        pixels = np.random.default_rng(i).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.jpg")
    tiny_pipeline().save_pretrained(tmp_path / "stable-diffusion-2-1-base")
    asked = []

    def create(*args, **kwargs):
        asked.append((args, kwargs))
        return small_clip(), None, None

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    return asked


def test_the_notebook_example_runs_as_it_is_pasted(scene, tmp_path):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    code = PYTHON["In a notebook"]
    # The one change: two steps in place of two hundred.
    assert code.count("steps=200") == 1
    names = {}
    exec(code.replace("steps=200", "steps=2"), names)
    assert scene == [(("ViT-L-14-quickgelu",), {"pretrained": "openai"})]
    assert names["result"].report["steps"] == 2 and names["result"].report["samples"] == 128
    assert names["result"].recipe.name == "diva-openai-vit-l-14-224"
    before, after = small_clip().state_dict(), load_file(tmp_path / "runs" / "a" / "clip.safetensors")
    assert after.keys() == before.keys()
    assert not torch.equal(after["visual.proj"], before["visual.proj"])
    assert torch.equal(after["visual.proj"], names["clip"].visual.proj)
    pyplot.close("all")


def test_the_loop_example_runs_as_it_is_pasted():
    clip = small_clip()
    start = clip.visual.proj.detach().clone()
    names = {"torch": torch, "diva_rs": diva_rs, "clip": clip, "unet": small_teacher()}
    names["loader"] = [images(2, seed=n) for n in range(2)]
    exec(PYTHON["In your own training loop"], names)
    assert np.isfinite(float(names["loss"].detach()))
    assert not torch.equal(clip.visual.proj, start)
    for line in ("trainer = diva_rs.Trainer(clip, unet, recipe)", "trainer.step(images)"):
        assert f"`{line}`" in TEXT
        exec(line, {**names, "recipe": diva_rs.Recipe()} if "recipe" in line else names, names)
    assert names["trainer"].steps_done == 1


def test_the_example_of_any_model_runs_as_it_is_pasted():
    unet, clip = small_unet(), small_clip()
    start = clip.visual.proj.detach().clone()
    names = {"diva_rs": diva_rs, "clip": clip, "scheduler": scheduler(), "text": torch.zeros(1, 4, WIDTH)}
    names["model"] = lambda noisy, timesteps, tokens: unet(noisy, timesteps, tokens).sample
    names["loader"] = [{"images": images(2), "latents": torch.randn(2, 4, 8, 8)}]
    exec(PYTHON["Use any generative model"], names)
    assert names["result"].report["steps"] == 1 and not torch.equal(clip.visual.proj, start)


def test_the_example_of_a_term_runs_as_it_is_pasted(capsys):
    names = {"torch": torch, "diva_rs": diva_rs, "clip": small_clip(), "unet": small_teacher()}
    names["loader"] = [images(4, seed=n) for n in range(2)]
    exec(PYTHON["Add your own loss term"], names)
    assert 0 < float(capsys.readouterr().out.splitlines()[-1]) <= 0.1


def test_the_example_of_stages_runs_as_it_is_pasted(capsys):
    names = {"diva_rs": diva_rs, "clip": small_clip(), "unet": small_teacher()}
    names["loader"] = [images(4, seed=n) for n in range(4)]
    exec(PYTHON["Train in stages"].replace("batch=4", "batch=4, log_every=1"), names)
    assert capsys.readouterr().out.splitlines()[-1] == "[1, 1, 2, 2]"


def test_the_example_that_watches_runs_as_it_is_pasted(tmp_path, monkeypatch):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    monkeypatch.chdir(tmp_path)
    code = PYTHON["Keep what CLIP could before"]
    # The changes: four steps in place of two thousand, and two measurements in place of ten.
    assert code.count("steps=2000") == 1 and code.count("eval_every=200") == 1
    code = code.replace("steps=2000", "steps=4").replace("eval_every=200", "eval_every=2")
    mmvp_folder(tmp_path / "MMVP_VLM", pairs=1)
    photos_folder(tmp_path).rename("imagenette")
    clip = small_clip()
    names = {"diva_rs": diva_rs, "clip": clip, "unet": small_teacher(), "images": [images(2)]}
    names |= {"preprocess": image_transform(32, is_train=False), "tokenizer": texts.tokenize}
    exec(code, names)
    history = names["result"].history
    assert {"mmvp", "zero_shot"} <= history[-1].keys() and (tmp_path / "runs" / "b" / "best").is_dir()
    assert [row["alpha"] for row in names["sweep"].rows] == [n / 10 for n in range(11)]
    halfway = diva_rs.interpolate(names["original"], tmp_path / "runs" / "b", 0.5)
    assert torch.equal(halfway["visual.proj"], clip.visual.proj)
    pyplot.close("all")


def test_the_export_example_runs_as_it_is_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = exports.model("openai")
    exec(
        PYTHON["Put it into LLaVA, SAN or your own code"],
        {"diva_rs": diva_rs, "result": SimpleNamespace(clip=clip)},
    )
    tower = transformers.CLIPVisionModel.from_pretrained("clip-diva")
    assert torch.equal(tower.state_dict()["post_layernorm.weight"], clip.visual.ln_post.weight)
    for file in (load_file("clip-diva.safetensors"), torch.load("clip-diva.pt", weights_only=True)):
        assert all(torch.equal(file[key], value) for key, value in clip.state_dict().items())


def test_the_evaluation_example_runs_as_it_is_pasted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mmvp_folder(tmp_path / "MMVP_VLM", pairs=1)
    for place, name in enumerate("abcdefg"):  # fer2013 has seven classes
        folder = tmp_path / "datasets" / "fer2013" / "test" / name
        folder.mkdir(parents=True)
        Image.new("L", (48, 48), 30 * place).save(folder / "0.png")
    clip = small_clip()
    transform = image_transform(32, is_train=False)
    monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda *_, **__: (clip, None, transform))
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: texts.tokenize)
    names = {"unet": small_teacher(), "images": [images(2, seed=n) for n in range(2)]}
    exec(PYTHON["Does it see better?"], names)
    told = capsys.readouterr().out
    assert str(names["after"]) in told and "exact McNemar p = " in told
    assert re.search(r"fer2013 +7 ", told) and told.count("missing: ") == 26


def test_every_python_block_runs_in_a_test():
    assert PYTHON.keys() == {
        "In a notebook",
        "In your own training loop",
        "Use any generative model",
        "Add your own loss term",
        "Train in stages",
        "Keep what CLIP could before",
        "Does it see better?",
        "Put it into LLaVA, SAN or your own code",
    }
    assert sum(language == "python" for language, _ in BLOCKS) == len(PYTHON)


def test_the_command_lines_parse(monkeypatch):
    lines = re.findall(r"^diva-rs .*$", COMMANDS, re.MULTILINE)
    assert {line.split()[1] for line in lines} >= {"train", "eval", "info", "cache", "export", "report"}
    for line in lines:
        command = cli._COMMANDS[line.split()[1]]
        seen = []
        monkeypatch.setattr(command, "run", lambda args, seen=seen: seen.append(args) or 0)
        assert cli.main(shlex.split(line)[1:]) == 0, line
        if line.split()[1] == "train":
            values, recipe = options.settings(seen[0], options.TrainOptions)
            assert (values.clip, values.data) == ("ViT-B-32:openai", "photos")
            assert (recipe.lr, recipe.steps) == (1e-5, 500)


def test_the_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)", COMMANDS, re.MULTILINE))
    named |= set(re.findall(r"`make ([a-z-]+)[`\s]", TEXT))
    assert {"demo", "test"} <= named <= targets


def test_the_recipes_and_extras_that_they_name_exist():
    recipes = re.findall(r'recipe="([^"]+)"', TEXT)
    assert recipes and set(recipes) <= set(diva_rs.Recipe.names())
    extras = re.findall(r"\.\[([a-z-]+)\]", TEXT)
    declared = re.findall(r"^([a-z-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert extras and set(extras) <= set(declared)


def headings(text):
    """GitHub's anchors of a page's headings."""
    words = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in words}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[page]):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in headings(target.read_text()), link


def test_paths_in_the_pages_exist():
    """Of files and folders of the repository, as code: `lab/benchmarks/allreduce.py`."""
    rooms = "benches|docs|lab|notebooks|python|src|tests"
    paths = set(re.findall(rf"`((?:{rooms})/[\w./-]*)`", TEXT))
    assert len(paths) > 10
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_the_readme_is_short():
    assert PAGES["README.md"].count("\n") <= 110
