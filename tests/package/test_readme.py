"""README and docs: their Python runs as pasted, their commands parse, what they name exists."""

import ast
import contextlib
import functools
import importlib
import importlib.util
import io
import re
import shlex
from itertools import chain, pairwise, product
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
from builders.diffusion import tiny_pipeline, tiny_text_encoder, tiny_tokenizer
from builders.flows import flow_vae
from builders.unclip import small_unclip
from diva_rs import cli
from diva_rs.captions import Evidence, Judgements
from diva_rs.cli import options

ROOT = Path(__file__).parents[2]
# Pages that the site alone has, or that are another page.
_SITE = {"readme.md", "contributing.md", "changelog.md"}
_DOCS = sorted(page for page in (ROOT / "docs").glob("*.md") if page.name not in _SITE)
PAGES = {str(page.relative_to(ROOT)): page.read_text() for page in (ROOT / "README.md", *_DOCS)}
PAGES["CONTRIBUTING.md"] = (ROOT / "CONTRIBUTING.md").read_text()
TEXT = "\n".join(PAGES.values())
BLOCKS = re.findall(r"^```([\w{}]*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
# What is in blocks without a language are commands.
COMMANDS = "".join(code for language, code in BLOCKS if language == "").replace("\\\n", "")

# Each block of these pages needs the first one alone; on other pages blocks build on those before them.
ALONE = {"docs/training.md"}
# What is shortened where a block runs: (page, text, replacement).
SHORTER = [
    ("README.md", "steps=200", "steps=2"),
    ("docs/quickstart.md", "steps=60", "steps=2"),
    ("docs/report.md", "steps=20", "steps=2"),
    ("docs/caption-feedback.md", "size=512, scale", "size=32, scale"),
    ("docs/caption-feedback.md", "steps=500, lr=1e-5)", "steps=2, lr=1e-5, log_every=1)"),
    ("docs/caption-feedback.md", "CaptionTerm(judged,", "CaptionTerm(sure(judged),"),
    (
        "docs/successors.md",
        "num_layers=2",
        "num_layers=1, num_attention_heads=1, joint_attention_dim=24",
    ),
    ("docs/successors.md", "size=224", "size=32"),
    ("docs/successors.md", '"genhancer-openai-vit-l-14-224"', '"genhancer-openai-vit-l-14-224", **SHORT'),
    ("docs/successors.md", '"un2clip-openai-vit-l-14-224"', '"un2clip-openai-vit-l-14-224", **FEW'),
]
STAGES = [{"train": ["projector", "denoiser"], "steps": 1}, {"train": ["tower"], "steps": 1}]
SHORT = {"image_size": 32, "batch": 4, "stages": STAGES}
FEW = {"image_size": 16, "batch": 4, "steps": 2}


def python(page):
    """(heading, code) of each block of Python, shortened."""
    text = PAGES[page]
    for other, old, new in SHORTER:
        if other == page:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
    heading = ""
    for title, code in re.findall(r"^#+ ([^\n]*)$|^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        heading = title or heading
        if code:
            yield heading, code


@pytest.fixture(scope="module")
def pasted(tmp_path_factory):
    """A page -> its folder and heading -> the names after the block, with what it printed as "told"."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    @functools.cache
    def paste(page):
        folder = tmp_path_factory.mktemp(Path(page).stem)
        folders(folder, page)
        found, names, first = {}, {}, ""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            # In place of what a download gives.
            patch.setattr(open_clip, "create_model_and_transforms", published)
            patch.setattr(open_clip, "get_tokenizer", lambda name: texts.tokenize)
            for heading, code in python(page):
                if page in ALONE or not names:
                    names = {"sure": sure, "SHORT": SHORT, "FEW": FEW}
                    exec(first, names)
                first = first or code
                with contextlib.redirect_stdout(io.StringIO()) as told:
                    exec(code, names)
                found[heading] = {**names, "told": told.getvalue()}
                if "clip" in names:
                    found[heading]["weights"] = {k: v.clone() for k, v in names["clip"].state_dict().items()}
            pyplot.close("all")
        return folder, found

    return paste


def published(name, pretrained):
    assert (name, pretrained) == ("ViT-L-14-quickgelu", "openai")
    return exports.model("openai"), None, image_transform(32, is_train=False)


def sure(judged):
    """Image number i shows word i of every set, counted round: an untrained model is sure of nothing."""
    evidence = {
        key: [Evidence(one.set, -np.eye(len(one.set))[:, [number % len(one.set)] * 4]) for one in judged[key]]
        for number, key in enumerate(judged)
    }
    return Judgements(evidence, judged.vocabulary)


def folders(root, page):
    """The folders that a page expects, as their authors would write them."""
    if page == "docs/quickstart.md":
        return
    (root / "photos").mkdir()
    for i in range(16):
        pixels = np.random.default_rng(i).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "photos" / f"{i}.jpg")
    tiny_pipeline().save_pretrained(root / "stable-diffusion-2-1-base")
    if page == "docs/successors.md":
        flow_vae().save_pretrained(root / "FLUX.1-schnell" / "vae")
        generator = small_unclip(exports.model("openai").visual.output_dim)
        generator.register_modules(tokenizer=tiny_tokenizer(), text_encoder=tiny_text_encoder())
        generator.save_pretrained(root / "stable-diffusion-2-1-unclip-small")
    if page == "docs/caption-feedback.md":
        (words,) = (code for language, code in BLOCKS if language == "toml" and "subjects" in code)
        (root / "words.toml").write_text(words)


WITH_PYTHON = [page for page in PAGES if "```python" in PAGES[page]]


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_a_page_runs_as_pasted(pasted, page):
    """In a fresh namespace and folder."""
    _, found = pasted(page)
    assert len(found) == len({heading for heading, _ in python(page)})


def test_the_notebook_example(pasted):
    folder, found = pasted("README.md")
    names, weights = found["In a notebook"], load_file(folder / "runs" / "a" / "clip.safetensors")
    assert names["result"].report["steps"] == 2 and names["result"].report["samples"] == 128
    assert names["result"].recipe.name == "diva-openai-vit-l-14-224"
    start = exports.model("openai").state_dict()
    assert weights.keys() == start.keys() and not torch.equal(weights["visual.proj"], start["visual.proj"])
    assert torch.equal(weights["visual.proj"], names["weights"]["visual.proj"])


def test_the_examples_of_training(pasted):
    folder, found = pasted("docs/training.md")
    start = diva_rs.microworld.example("clip").state_dict()
    loop, model = found["In your own training loop"], found["Use any generative model"]
    assert np.isfinite(float(loop["loss"].detach())) and model["result"].report["steps"] == 2
    for block in (loop, model):
        assert not torch.equal(block["weights"]["visual.proj"], start["visual.proj"])
    assert 0 < float(found["Add your own loss term"]["told"]) <= 0.1
    assert found["Train in stages"]["told"] == "[1, 1, 2, 2]\n"
    watched = found["Keep what CLIP could before"]
    assert {"pairs", "zero_shot"} <= watched["result"].history[-1].keys()
    assert (folder / "runs" / "b" / "best").is_dir()
    assert [row["alpha"] for row in watched["sweep"].rows] == [n / 10 for n in range(11)]
    halfway = diva_rs.interpolate(watched["original"], folder / "runs" / "b", 0.5)
    assert torch.equal(halfway["visual.proj"], watched["weights"]["visual.proj"])


def test_the_lines_beside_the_loop():
    clip, unet, images = diva_rs.microworld.example()
    names = {"diva_rs": diva_rs, "clip": clip, "unet": unet, "batch": images, "recipe": diva_rs.Recipe()}
    for line in ("trainer = diva_rs.Trainer(clip, unet, recipe)", "trainer.step(batch)"):
        assert f"`{line}`" in TEXT
        exec(line, names)
    assert names["trainer"].steps_done == 1


def test_the_examples_of_caption_feedback(pasted):
    folder, found = pasted("docs/caption-feedback.md")
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


def test_the_examples_of_the_successors(pasted):
    found = pasted("docs/successors.md")[1]
    light, inverted = (
        next(names for title, names in found.items() if title.startswith(name))
        for name in ("GenHancer", "un²CLIP")
    )
    assert light["enhanced"].report["steps"] == 2 and light["enhanced"].denoiser is light["flux"]
    assert inverted["inverted"].report["steps"] == 2 and inverted["inverted"].recipe.lr == 3e-7
    states = [exports.model("openai").state_dict(), light["weights"], inverted["weights"]]
    assert not any(torch.equal(a["visual.proj"], b["visual.proj"]) for a, b in pairwise(states))


def test_the_examples_of_evaluation(pasted):
    folder, found = pasted("docs/evaluation.md")
    first, pairs = found["Does it see better?"], found["Beyond 135 pairs"]
    assert str(first["after"]) in first["told"] and "exact McNemar p = " in first["told"]
    assert pairs["told"].splitlines() == [pairs["found"].line, pairs["found"]["text"].line]
    assert (folder / "decisions.csv").read_text().count("\n") == 1 + 3 * pairs["found"].asked
    assert 0 < pairs["found"].asked < 18
    weights = found["Put it into LLaVA, SAN or your own code"]["weights"]
    tower = transformers.CLIPVisionModel.from_pretrained(folder / "clip-diva").state_dict()
    assert torch.equal(tower["post_layernorm.weight"], weights["visual.ln_post.weight"])
    file = load_file(folder / "clip-diva.safetensors")
    assert all(torch.equal(file[key], value) for key, value in weights.items())


def test_the_quickstart_runs(pasted, monkeypatch):
    """Its commands too, in their order, after the block that writes their files."""
    folder, found = pasted("docs/quickstart.md")
    assert found["4. Post-train"]["told"].startswith("PostTrainResult(2 steps, 32 images in ")
    monkeypatch.chdir(folder)
    lines = re.findall(r"^diva-rs (.*tiny/.*)$", PAGES["docs/quickstart.md"], re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["train", "eval", "export"]
    for line in lines:
        assert cli.main(shlex.split(line.replace("--steps 60", "--steps 2"))) == 0, line
    assert cli.main(["report", "runs/a"]) == 0
    for made in ("runs/a/report.html", "clip-diva/config.json", "clip-diva.safetensors"):
        assert (folder / made).is_file()


def test_the_cost_of_the_full_run(pasted):
    told = pasted("docs/vit-l-14.md")[1]["What it costs"]["told"]
    rows = re.findall(
        r"^\| (\d+) TFLOP/s \| (\d+) \| (\d+) dollars \|$", PAGES["docs/vit-l-14.md"], re.MULTILINE
    )
    assert told.splitlines() == [
        f"{speed} TFLOP/s: {hours} GPU-hours, {price} dollars at 2 dollars an hour"
        for speed, hours, price in rows
    ]


def test_the_messages_that_are_explained_exist():
    section = PAGES["docs/troubleshooting.md"].partition("## Error messages")[2]
    messages = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    sources = "".join(page.read_text() for page in (ROOT / "python" / "diva_rs").rglob("*.py"))
    assert len(messages) >= 10 and not [text for text in messages if text not in sources]


def test_the_pictures_are_drawn_in_both_themes_with_alt_texts():
    shown = re.findall(
        r"^```\{image\} pictures/(\w+)-(\w+)\.svg\n:class: only-(\w+)\n:alt: (.+)$", TEXT, re.MULTILINE
    )
    assert TEXT.count("{image}") == len(shown) and all(theme == only for _, theme, only, _ in shown)
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    drawn = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawn)
    assert {(name, theme) for name, theme, _, _ in shown} == set(product(drawn.PICTURES, drawn.THEMES))
    for name, draw in drawn.PICTURES.items():
        assert draw("black", "blue").axes
        assert all((ROOT / "docs" / "pictures" / f"{name}-{theme}.svg").is_file() for theme in drawn.THEMES)


@pytest.mark.parametrize("page", PAGES)
def test_a_long_page_has_a_contents_list(page):
    text = PAGES[page]
    first = text.partition("\n## ")[0]
    by_hand = set(re.findall(r"\]\((#[\w-]+)\)", first)) == {f"#{name}" for name in headings(text, "##")}
    listed = "```{contents}\n:local:\n:class: this-will-duplicate" in text  # or furo shows an error
    assert listed == ("{contents}" in text)
    assert listed or by_hand or text.count("\n") <= 50 or text.count("\n## ") < 3


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
            assert values.clip in ("ViT-B-32:openai", "ViT-L-14-quickgelu:openai", "tiny/clip")
            assert values.data == "photos" or values.data.startswith("cc3m/cc3m-train-{0000..")
            words = shlex.split(line)
            said = {name: value for name, value in pairwise(words) if name in ("--lr", "--steps")}
            assert all(getattr(recipe, name[2:]) == float(value) for name, value in said.items()), line


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


def headings(text, level="#+"):
    """GitHub's anchors of a page's headings."""
    words = re.findall(rf"^{level} (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in words}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[page]):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert target.suffix == ".svg" or not anchor or anchor in headings(target.read_text()), link


def test_paths_in_the_pages_exist():
    """Of files and folders of the repository, as code: `lab/benchmarks/allreduce.py`."""
    rooms = "benches|docs|lab|notebooks|python|src|tests"
    paths = set(re.findall(rf"`((?:{rooms})/[\w./-]*)`", TEXT))
    assert len(paths) > 10
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_the_wheels_have_the_version_of_the_package():
    assert set(re.findall(r"diva_rs-([\d.]+)\+torch", TEXT)) == {diva_rs.__version__}


def test_the_readme_is_short():
    assert PAGES["README.md"].count("\n") <= 110
