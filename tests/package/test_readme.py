"""README and docs: their Python runs as pasted, their commands parse, what they name exists."""

import ast
import contextlib
import importlib
import io
import re
import shlex
from itertools import chain
from pathlib import Path

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
from builders.diffusion import tiny_pipeline, tiny_text_encoder, tiny_tokenizer
from builders.flows import flow_vae
from builders.mmvp import mmvp_folder
from builders.small import WIDTH, images, scheduler, small_clip, small_teacher, small_unet
from builders.unclip import small_unclip
from diva_rs import cli
from diva_rs.captions import Evidence, Judgements
from diva_rs.cli import options

ROOT = Path(__file__).parents[2]
PAGES = {page: (ROOT / page).read_text() for page in ("README.md", "CONTRIBUTING.md")}
# In the order in which the README's last section links to them, without those that the site alone has.
_SITE = {"index.md", "readme.md", "contributing.md", "changelog.md"}
_PAGES = [page for page in (ROOT / "docs").glob("*.md") if page.name not in _SITE]
_DOCS = sorted(_PAGES, key=lambda page: PAGES["README.md"].rindex(f"docs/{page.name}"))
PAGES |= {f"docs/{page.name}": page.read_text() for page in _DOCS}
TEXT = "\n".join(PAGES.values())
# The Python under each heading, by the heading; what is in blocks without a language are commands.
PYTHON = dict(
    re.findall(r"^## ([^\n]*)\n(?:(?!^## ).)*?^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
)
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
COMMANDS = "".join(code for language, code in BLOCKS if language == "")


GENHANCER = "GenHancer: a light denoiser that starts from nothing"
UN2CLIP = "un²CLIP: a generator that inverts CLIP"
# What is shortened where a block runs: (block, text, replacement).
SHORTER = [
    ("In a notebook", "steps=200", "steps=2"),
    ("Train in stages", "batch=4", "batch=4, log_every=1"),
    ("Keep what CLIP could before", "steps=2000", "steps=4"),
    ("Keep what CLIP could before", "eval_every=200", "eval_every=2"),
    ("2. Judge the photographs", "size=512", "size=32"),
    (GENHANCER, "num_layers=2", "num_layers=1, num_attention_heads=1, joint_attention_dim=24"),
    (GENHANCER, "size=224", "size=32"),
    (GENHANCER, '-224"', '-224", image_size=32, batch=4, stages=SHORT'),
    (UN2CLIP, '-224"', '-224", image_size=16, batch=4, steps=2'),
    ("4. Train on the judgements", "steps=500", "steps=2, log_every=1"),
    ("4. Train on the judgements", "CaptionTerm(judged,", "CaptionTerm(sure(judged),"),
]


@pytest.fixture(scope="module")
def pasted(tmp_path_factory):
    """Every block of the README and the docs, pasted in order into one session with tiny models.

    The values of the names after each block, by its heading; and what the block printed, as "told".
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    folder = tmp_path_factory.mktemp("pasted")
    folders(folder)
    transform, unet = image_transform(32, is_train=False), small_unet()
    asked = []

    def create(*args, **kwargs):
        asked.append((args, kwargs))
        return exports.model("openai"), None, transform

    # What the pages say that a block does not define.
    names = {"torch": torch, "diva_rs": diva_rs, "preprocess": transform, "tokenizer": texts.tokenize}
    names |= {"unet": small_teacher(), "scheduler": scheduler(), "text": torch.zeros(1, 4, WIDTH)}
    names |= {"model": lambda noisy, timesteps, tokens: unet(noisy, timesteps, tokens).sample}
    names["sure"] = sure
    names["SHORT"] = [{"train": ["projector", "denoiser"], "steps": 1}, {"train": ["tower"], "steps": 1}]
    names |= {"loader": [{"images": images(4, seed=n), "latents": torch.randn(4, 4, 8, 8)} for n in range(4)]}
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(open_clip, "create_model_and_transforms", create)
        patch.setattr(open_clip, "get_tokenizer", lambda name: texts.tokenize)
        for heading, code in PYTHON.items():
            for _, text, replacement in (row for row in SHORTER if row[0] == heading):
                assert code.count(text) == 1
                code = code.replace(text, replacement)
            with contextlib.redirect_stdout(io.StringIO()) as told:
                exec(code, names)
            found[heading] = {**names, "told": told.getvalue(), "asked": tuple(asked)}
            found[heading]["weights"] = {k: v.clone() for k, v in names["clip"].state_dict().items()}
        pyplot.close("all")
    return folder, found


def sure(judged):
    """Image number i shows word i of every set, counted round: an untrained model is sure of nothing."""
    evidence = {
        key: [Evidence(one.set, -np.eye(len(one.set))[:, [number % len(one.set)] * 4]) for one in judged[key]]
        for number, key in enumerate(judged)
    }
    return Judgements(evidence, judged.vocabulary)


def folders(root):
    """The folders that the blocks read."""
    (root / "photos").mkdir()
    for i in range(16):
        pixels = np.random.default_rng(i).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "photos" / f"{i}.jpg")
    tiny_pipeline().save_pretrained(root / "stable-diffusion-2-1-base")
    flow_vae().save_pretrained(root / "FLUX.1-schnell" / "vae")
    generator = small_unclip(exports.model("openai").visual.output_dim)
    generator.register_modules(tokenizer=tiny_tokenizer(), text_encoder=tiny_text_encoder())
    generator.save_pretrained(root / "stable-diffusion-2-1-unclip-small")
    mmvp_folder(root / "MMVP_VLM", pairs=1)
    (words,) = (code for language, code in BLOCKS if language == "toml")
    (root / "words.toml").write_text(words)
    (root / "classes").mkdir()
    photos_folder(root / "classes").rename(root / "imagenette")
    for place, name in enumerate("abcdefg"):  # fer2013 has seven classes
        (root / "datasets" / "fer2013" / "test" / name).mkdir(parents=True)
        Image.new("L", (48, 48), 30 * place).save(root / "datasets" / "fer2013" / "test" / name / "0.png")


def test_the_notebook_example(pasted):
    folder, found = pasted
    names, weights = found["In a notebook"], load_file(folder / "runs" / "a" / "clip.safetensors")
    assert names["asked"] == ((("ViT-L-14-quickgelu",), {"pretrained": "openai"}),)
    assert names["result"].report["steps"] == 2 and names["result"].report["samples"] == 128
    assert names["result"].recipe.name == "diva-openai-vit-l-14-224"
    start = exports.model("openai").state_dict()
    assert weights.keys() == start.keys() and not torch.equal(weights["visual.proj"], start["visual.proj"])
    assert torch.equal(weights["visual.proj"], names["weights"]["visual.proj"])


def test_the_examples_of_training(pasted):
    folder, found = pasted
    loop, model = found["In your own training loop"], found["Use any generative model"]
    before = found["In a notebook"]["weights"]["visual.proj"]
    assert np.isfinite(float(loop["loss"].detach()))
    assert not torch.equal(loop["weights"]["visual.proj"], before)
    assert model["result"].report["steps"] == 4
    assert not torch.equal(model["weights"]["visual.proj"], loop["weights"]["visual.proj"])
    assert 0 < float(found["Add your own loss term"]["told"]) <= 0.1
    assert found["Train in stages"]["told"] == "[1, 1, 2, 2]\n"
    watched = found["Keep what CLIP could before"]
    assert {"pairs", "zero_shot"} <= watched["result"].history[-1].keys()
    assert (folder / "runs" / "b" / "best").is_dir()
    assert [row["alpha"] for row in watched["sweep"].rows] == [n / 10 for n in range(11)]
    halfway = diva_rs.interpolate(watched["original"], folder / "runs" / "b", 0.5)
    assert torch.equal(halfway["visual.proj"], watched["weights"]["visual.proj"])


def test_the_lines_beside_the_loop():
    names = {"diva_rs": diva_rs, "clip": small_clip(), "unet": small_teacher(), "batch": images(2)}
    names["recipe"] = diva_rs.Recipe()
    for line in ("trainer = diva_rs.Trainer(clip, unet, recipe)", "trainer.step(batch)"):
        assert f"`{line}`" in TEXT
        exec(line, names)
    assert names["trainer"].steps_done == 1


def test_the_examples_of_caption_feedback(pasted):
    folder, found = pasted
    judged, trained = found["2. Judge the photographs"], found["4. Train on the judgements"]
    again = Judgements.load(folder / "judged")
    assert len(judged["judged"]) == len(again) == 16 and again.vocabulary == judged["words"]
    told = found["3. Look at the judgements"]["told"].splitlines()
    assert len(told) == 4 and told[0].startswith("colour: ") and told[0].endswith("(a guess: 33%)")
    assert float(trained["told"]) > 0
    assert not torch.equal(trained["weights"]["visual.proj"], judged["weights"]["visual.proj"])
    assert "a photo of" in found["Write the judgements out as captions"]["told"]
    assert (folder / "captions.jsonl").read_text().count("\n") == 16
    assert [path.name for path in sorted((folder / "captioned").iterdir())] == ["00000.tar", "sizes.json"]
    swapped, accuracy = found["Captions of your own"]["told"].splitlines()
    assert "One black cat is seen from above" in swapped and 0 <= float(accuracy) <= 1


def test_the_example_of_genhancer(pasted):
    names = pasted[1][GENHANCER]
    assert names["enhanced"].report["steps"] == 2 and names["enhanced"].denoiser is names["flux"]
    assert not torch.equal(
        names["weights"]["visual.proj"], pasted[1]["In a notebook"]["weights"]["visual.proj"]
    )


def test_the_example_of_un2clip(pasted):
    names = pasted[1][UN2CLIP]
    assert names["inverted"].report["steps"] == 2 and names["inverted"].recipe.lr == 3e-7
    assert not torch.equal(names["weights"]["visual.proj"], pasted[1][GENHANCER]["weights"]["visual.proj"])


def test_the_evaluation_example(pasted):
    names = pasted[1]["Does it see better?"]
    assert str(names["after"]) in names["told"] and "exact McNemar p = " in names["told"]
    assert re.search(r"fer2013 +\d of 7 ", names["told"]) and names["told"].count("missing: ") == 26


def test_the_example_of_pairs(pasted):
    folder, found = pasted
    names = found["Beyond 135 pairs"]
    assert names["told"].splitlines() == [names["found"].line, names["found"]["text"].line]
    assert (folder / "decisions.csv").read_text().count("\n") == 1 + 3 * names["found"].asked
    assert 0 < names["found"].asked < 9


def test_the_export_example(pasted):
    folder, found = pasted
    weights = found["Put it into LLaVA, SAN or your own code"]["weights"]
    tower = transformers.CLIPVisionModel.from_pretrained(folder / "clip-diva").state_dict()
    assert torch.equal(tower["post_layernorm.weight"], weights["visual.ln_post.weight"])
    pickled = torch.load(folder / "clip-diva.pt", weights_only=True)
    for file in (load_file(folder / "clip-diva.safetensors"), pickled):
        assert all(torch.equal(file[key], value) for key, value in weights.items())


def test_every_python_block_runs():
    assert sum(language == "python" for language, _ in BLOCKS) == len(PYTHON) >= 9


def test_the_names_of_the_package_in_the_texts_exist():
    """On the pages and in the report: with `import diva_rs` alone. In docstrings and messages: by import."""
    package = ROOT / "python" / "diva_rs"
    shown = [TEXT, *(page.read_text() for page in package.rglob("*.html"))]
    trees = [ast.walk(ast.parse(file.read_text())) for file in package.rglob("*.py")]
    others = [n.value for n in chain(*trees) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    for pages, public in ((shown, True), (others, False)):
        named = {name for text in pages for name in re.findall(r"\bdiva_rs((?:\.[A-Za-z_]\w*)+)", text)}
        # A program, and groups of entry points.
        named -= {".cli", ".benchmarks", ".clips", ".families", ".recipes"}
        assert len(named) > 10
        for name in named:
            value, place = diva_rs, "diva_rs"
            assert not public or name.split(".")[1] in dir(diva_rs), name
            for part in name.strip(".").split("."):
                place = f"{place}.{part}"
                value = getattr(value, part, None) or (None if public else importlib.import_module(place))
                assert value is not None, place


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
            assert values.clip in ("ViT-B-32:openai", "ViT-L-14-quickgelu:openai")
            assert values.data == "photos"
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
