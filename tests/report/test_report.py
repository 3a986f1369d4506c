"""The report of a run: its sections, its figures and its charts."""

import base64
import dataclasses
import json
import math
import re
from itertools import pairwise

import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from scipy.stats import binomtest

import diva_rs
from builders.benchmarks import photos_folder
from builders.detail import naturalbench
from builders.evaluations import drift, folder, jpeg_of, mmvp, post_trained, probes, retrieval, zero_shot
from builders.mmvp import mmvp_folder
from builders.pages import parsed
from builders.small import images, small_clip, small_teacher
from builders.texts import tokenize
from diva_rs import Recipe, Stage, post_train
from diva_rs.errors import DependencyError
from diva_rs.evaluation import PATTERNS, Drift, DriftResult, mmvp_vlm, pairs, report, zero_shot_folder
from diva_rs.report import charts, facts
from diva_rs.report.charts import COLOURS
from diva_rs.report.run import read_run

ANCHORS = [
    *("trained", "recipe", "training", "mmvp", "flips", "retention", "probes", "drift"),
    *("throughput", "environment"),
]
BEFORE, AFTER = range(27), [*range(25), *range(60, 70)]  # ten gained, two lost


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The page of a run with every evaluation."""
    root = tmp_path_factory.mktemp("mmvp")
    before = [mmvp(BEFORE, root), zero_shot(150), retrieval(80.0), folder(30), probes(20)]

    after = [mmvp(AFTER, root), zero_shot(120), retrieval(79.5), folder(30), probes(36), drift()]
    note = "What *this* run was for."
    file = report.write(post_trained(), root / "report", before=before, after=after, note=note)
    return parsed(file.read_text())


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The page of a run without any evaluation."""
    return parsed(report.write(post_trained(), tmp_path_factory.mktemp("report")).read_text())


def cells(page, caption):
    """The rows of the table whose caption begins so."""
    found = [table for table in page.all("table") if table.one("caption").text.startswith(caption)]
    assert len(found) == 1, caption
    return [[cell.text for cell in row.all("th", "td")] for row in found[0].all("tr")]


def wilson(right, total=135):
    """Wilson's interval in per cent, by scipy."""
    low, high = binomtest(right, total).proportion_ci(method="wilson")
    return f"{100 * low:.1f} to {100 * high:.1f}"


# The page


def test_the_sections_and_the_links_to_them(full, bare):
    for page in (full, bare):
        anchors = [section.attributes["id"] for section in page.all("section")]
        assert anchors == [*ANCHORS, "defaults"]
        assert [link.attributes["href"] for link in page.one("nav").all("a")] == [f"#{a}" for a in anchors]
        named = [element.attributes["id"] for element in page.all() if "id" in element.attributes]
        assert len(named) == len(set(named))
        assert all(section.attributes["aria-labelledby"] in named for section in page.all("section"))


def test_it_loads_nothing_and_runs_nothing(full):
    assert not full.all("script", "link", "iframe", "object", "base", "form")
    for element in full.all():
        assert not [name for name in element.attributes if name.startswith("on")], element.name
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            value = element.attributes.get(name, "")
            assert value == "" or value.startswith(("#", "data:image/")), (element.name, name, value)
        assert re.findall(r"url\((?!#)", " ".join(element.attributes.values())) == []
    style = full.one("style").text
    assert "url(" not in style and "@import" not in style
    policy = next(m.attributes["content"] for m in full.all("meta") if "http-equiv" in m.attributes)
    assert "default-src 'none'" in policy and "script" not in policy


def test_it_can_be_read_without_seeing_it(full):
    assert full.one("html").attributes["lang"] == "en" and len(full.all("h1")) == 1
    for table in full.all("table"):
        assert table.one("caption").text
        heads, *rows = table.all("tr")
        assert all(head.attributes["scope"] == "col" for head in heads.all("th"))
        assert rows and all(row.all("th")[0].attributes["scope"] == "row" for row in rows)
        assert {len(row.all("th", "td")) for row in table.all("tr")} == {len(heads.all("th"))}
    charts = [div for div in full.all("div") if div.all("svg") and div.attributes.get("role") == "img"]
    assert len(charts) == len(full.all("svg")) >= 8
    assert all(len(chart.attributes["aria-label"]) > 20 for chart in charts)
    assert full.all("img") and all(len(image.attributes["alt"]) > 5 for image in full.all("img"))
    levels = [int(head.name[1]) for head in full.all("h1", "h2", "h3", "h4")]
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_contrast_of_text_in_both_schemes(full):
    # WCAG 2.1, 1.4.3: at least 4.5 between text and what is behind it.
    style = full.one("style").text
    schemes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    assert len(schemes) == 3  # light, dark, print
    assert COLOURS.items() <= schemes[0].items()
    drawn = " ".join(value for svg in full.all("svg") for e in svg.all() for value in e.attributes.values())
    assert not re.findall(r"#[0-9a-f]{6}\b", drawn)  # every colour of a chart follows the scheme

    def luminance(colour):
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for scheme in schemes:
        for name in ("ink", "soft", "before", "after", "better", "worse"):
            for behind in ("paper", "raised"):
                pair = sorted((luminance(scheme[name]), luminance(scheme[behind])))
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (name, behind, scheme[name])


# Figures


def test_the_planted_flips_are_found(full):
    table = {row[0]: row[1:] for row in cells(full, "MMVP-VLM")}
    assert list(table) == ["Pattern", *PATTERNS, "Average"]
    # 27 and 35 of 135; the exact test of ten against two flips is 79 / 2048.
    before, after, difference, reading = table["Average"]
    assert (before, after) == (f"27 of 135: 20.0 ({wilson(27)})", f"35 of 135: 25.9 ({wilson(35)})")
    assert difference.startswith("+5.9 (") and reading == "higher after"
    assert "exact McNemar p = 0.039" in full.one("section", id="mmvp").text
    assert "10 pairs became right, 2 became wrong, 123 stayed" in full.one("section", id="mmvp").text
    assert table["Orientation and Direction"][2:] == ["0.0 (0.0 to 0.0)", "no difference shown"]
    headings = [head.text for head in full.one("section", id="flips").all("h3")]
    assert headings == ["10 pairs became right", "2 pairs became wrong"]
    numbers = [int(re.search(r"questions (\d+)", head.text)[1]) for head in full.all("h4")]
    assert numbers == [2 * n + 1 for n in (*range(60, 70), 25, 26)]


def test_a_flipped_pair_shows_its_images_and_decisions(full):
    card = full.one("section", id="flips").all("li")[0]
    colours = [jpeg_of(image.attributes["src"]).getpixel((10, 10)) for image in card.all("img")]
    for number, (red, green, _) in zip((121, 122), colours, strict=True):
        assert abs(red - number) < 6 and abs(green - (255 - number)) < 6
    assert [line.text for line in card.all("p")] == [
        "Statement 1: wrong (25.0 %) before, right (75.0 %) after.",
        "Statement 2: right (75.0 %) before, right (75.0 %) after.",
    ]
    assert [caption.text for caption in card.all("figcaption")] == ["thing 121 121.png", "thing 122 122.png"]


def test_retention(full):
    rows = cells(full, "Zero-shot scores")[1:]
    accuracy = ["150 of 200: 75.0 (68.6 to 80.5)", "120 of 200: 60.0 (53.1 to 66.5)"]
    assert rows[0] == ["cifar10 (acc1)", *accuracy, rows[0][3], "lower after"]
    assert rows[1][0] == "Image folder" and rows[1][3:] == ["0.0 (0.0 to 0.0)", "no difference shown"]
    assert cells(full, "Retrieval scores")[1] == [
        "flickr30k (image_retrieval_recall@5)",
        *("80.0", "79.5", "\N{MINUS SIGN}0.5", "not tested"),
    ]
    assert "birdsnap could not be scored: clip-benchmark has no such set" in full.text
    keys = {key.one("dt").text: [part.text for part in key.all("dd")] for key in full.one("dl").all("div")}
    assert keys["MMVP-VLM average"][0] == "27 → 35 of 135"
    assert keys["MMVP-VLM average"][1].startswith("20.0 → 25.9 %, +5.9 points")
    assert keys["Retention, image folder"][0] == "30 → 30 of 50"
    assert keys["Retention, zero-shot"][0] == "75.0 → 60.0 %"
    accuracy = cells(full, "Accuracy on the test images")[1]
    assert accuracy[:1] + accuracy[-1:] == ["patches", "higher after"] and accuracy[3].startswith("+40.0 (")
    assert cells(full, "Images of each probe")[2] == ["patches", "after", "80", "20", "40", "0.1"]
    assert cells(full, "Embeddings after")[2] == ["Mean cosine to the original embedding", "0.9805"]


@pytest.mark.parametrize(
    ("after", "reading"),
    [
        (range(27), "no difference shown"),  # nothing flipped
        (range(31), "no difference shown"),  # four gained, none lost: p = 0.125, the interval excludes zero
        ([*range(20), *range(60, 70)], "no difference shown"),  # ten against seven
        (range(20), "lower after"),  # none against seven: p = 1 / 64
    ],
)
def test_a_difference_is_called_shown_only_where_interval_and_exact_test_agree(tmp_path, after, reading):
    file = report.write(post_trained(), tmp_path, before=mmvp(BEFORE), after=mmvp(after))
    page = parsed(file.read_text())
    assert cells(page, "MMVP-VLM")[-1][-1] == reading
    key, retention = page.one("dl").all("div")[-2:]
    assert key.attributes["class"] == {"lower after": "worse"}.get(reading, "plain")
    assert key.all("dd")[1].text.endswith(reading)
    assert retention.all("dd")[0].text == "not measured"


def test_scores_of_different_embeddings_carry_a_warning(tmp_path):
    after = dataclasses.replace(mmvp(AFTER), embedding="official-openai")
    page = parsed(report.write(post_trained(), tmp_path, before=mmvp(BEFORE), after=after).read_text())
    warning = "Caution: before was scored with the image embedding pooled, after with official-openai."
    assert warning in page.one("section", id="mmvp").text


def test_what_was_not_measured_is_said_with_the_code_that_measures_it(bare):
    missing = [div for div in bare.all("div") if div.attributes.get("class") == "missing"]
    assert len(missing) == 5  # the patterns, zero-shot, retrieval, probes, drift
    for block in missing:
        compile(block.one("pre").text, "report", "exec")
        assert "This page has no result of " in block.text and "while training" not in block.text
    lists = re.findall(r"from diva_rs.evaluation import (.*)", "".join(block.text for block in missing))
    names = {name for names in lists for name in names.split(", ")}
    assert names == {"mmvp_vlm", "zero_shot", "retrieval", "linear_probe", "drift", "report"}
    assert all(hasattr(diva_rs.evaluation, name) for name in names)
    assert "is known once MMVP-VLM is measured" in bare.text
    assert "no difference shown" not in bare.text and "higher" not in bare.text


@pytest.mark.parametrize("side", ["before", "after"])
def test_one_side_alone_is_shown_and_not_compared(tmp_path, side):
    other = "after" if side == "before" else "before"
    given = {side: [mmvp(BEFORE), zero_shot(150), folder(20)]}
    page = parsed(report.write(post_trained(), tmp_path, **given).read_text())
    assert cells(page, f"MMVP-VLM {side}")[-1] == ["Average", "27 of 135", "20.0", wilson(27)]
    assert f"no result of MMVP-VLM {other} post-training" in page.one("section", id="mmvp").text
    rows = cells(page, "Zero-shot scores")
    assert [row[-1] for row in rows[1:]] == ["not compared", "not compared"]
    assert rows[1][1 if other == "before" else 2] == "not measured"


# The run


def test_a_preset_is_shown_with_the_source_of_each_value(tmp_path):
    recipe = Recipe.named("diva-openai-vit-l-14-224").replace(lr=1e-5, steps=100)
    page = parsed(report.write(post_trained(recipe), tmp_path).read_text())
    decided = {row[0]: row[1:] for row in cells(page, "Fields that the recipe's source")}
    assert decided["density"] == ["0.15", "paper: about 15 % of the local tokens at 224"]
    assert decided["lr"] == ["1e-05", "set for this run; the preset has 0.0001"]
    others = {row[0] for row in cells(page, "Fields at their defaults")}
    fields = Recipe.model_fields.keys() - {"name"}
    assert fields == (others | decided.keys()) - {"Field"} and not others & decided.keys() - {"Field"}
    assert "MMVP-VLM average as published, before -> after: 19.3 -> 25.9 %" in page.text
    assert "Measured with diva-rs by its authors: not yet run" in page.text
    assert recipe.digest() in page.text


def curve(page, colour):
    """The points of the line of that colour in the chart of the losses; a list for each stretch."""
    paths = page.one("section", id="training").all("svg")[0].all("path")
    lines = [path.attributes["d"] for path in paths if f"stroke: var(--{colour})" in path.attributes["style"]]
    stretches = [re.findall(r"[ML] ([\d.]+) ([\d.]+)", stretch) for stretch in re.split(r"(?=M)", lines[0])]
    return [[(float(x), float(y)) for x, y in points] for points in stretches if points]


def test_the_loss_curve_holds_every_log(tmp_path):
    result = post_trained()
    for n, row in enumerate(result.history):
        row["loss"] = row["denoising"] = 0.5 - 0.001 * n - 0.01 * (n % 2)
    page = parsed(report.write(result, tmp_path).read_text())
    points = curve(page, "before")[0]
    assert len(points) == 40
    xs, ys = zip(*points, strict=True)
    steps = [b - a for a, b in pairwise(xs)]
    assert max(steps) - min(steps) < 0.2  # evenly spaced logs
    assert list(ys[::2]) == sorted(ys[::2])  # a falling loss: down the page
    assert all(b - a > 5 for a, b in zip(ys[::2], ys[1::2], strict=True))
    text = page.one("section", id="training").text
    assert "Average of the first 8 of 40 losses logged: 0.4915; of the last 8: 0.4595." in text
    assert cells(page, "The numbers of 40 logs")[1] == ["loss", "0.5000", "0.4510", "0.4510", "0.5000"]


def test_losses_that_are_not_finite_are_gaps_and_are_counted(tmp_path):
    result = post_trained()
    for n, row in enumerate(result.history):
        row["loss"] = math.nan if n in (3, 20) else 0.5 + 0.01 * (n % 2)
    page = parsed(report.write(result, tmp_path).read_text())
    training = page.one("section", id="training")
    assert "2 of 40 logs are not finite." in training.text and "nan" not in training.text.lower()
    assert [len(stretch) for stretch in curve(page, "before")] == [3, 16, 19]
    for row in result.history:
        row["loss"] = math.inf
    assert "no finite loss" in report.write(result, tmp_path).read_text()
    result.history.clear()
    assert "no finite loss" in report.write(result, tmp_path).read_text()


def test_losses_come_by_name_and_stages_are_marked(tmp_path):
    result = post_trained(Recipe(steps=400, projector_warmup=100))
    for n, row in enumerate(result.history):
        row.update(anchor=0.001 * n, mine=1.0 + n, never=0.0)
    training = parsed(report.write(result, tmp_path).read_text()).one("section", id="training")
    logged = [row[0] for row in cells(training, "The numbers of 40 logs")]
    assert logged == ["Logged", "loss", "denoising", "anchor", "mine", "lr", "grad_norm"]
    drawn = [svg.text for svg in training.all("svg")]
    assert "Loss (denoising + anchor + mine)" in drawn[0] and "stage 2: projector, tower" in drawn[0]
    for name, text in zip(
        ("Denoising loss", "Anchor penalty", "mine", "Learning rate"), drawn[1:], strict=False
    ):
        assert name in text


def test_without_matplotlib_the_page_has_the_charts_in_words(tmp_path, monkeypatch):
    def missing(module, extra):
        raise DependencyError(f"{module} is needed here and not installed: pip install 'diva-rs[{extra}]'")

    monkeypatch.setattr(charts, "require", missing)
    page = parsed(report.write(post_trained(), tmp_path, after=drift()).read_text())
    assert not page.all("svg")
    assert "Install matplotlib for a chart: pip install 'diva-rs[plot]'" in page.text
    assert "Learning rate over the steps: 0.0001000 at the first log" in page.text


def test_a_long_run_stays_small(tmp_path):
    result = post_trained(logs=20_000)
    for n, row in enumerate(result.history):
        row["loss"] = row["denoising"] = 0.5 + 0.1 * math.sin(n * n)  # as good as noise
    assert report.write(result, tmp_path).stat().st_size < 250_000


def test_throughput_and_environment(bare, tmp_path):
    interrupted = parsed(report.write(post_trained(interrupted=True), tmp_path).read_text())
    for part in (interrupted.one("dl"), interrupted.one("section", id="trained")):
        assert "interrupted by Ctrl-C" in part.text
    speed = dict(cells(bare, "Speed"))
    assert speed["Duration"] == "13 min 20 s" and speed["Images per second"] == "8.000"
    assert speed["Peak memory, of the whole process"] == "not recorded"
    assert dict(cells(bare, "Versions and machine"))["PyTorch"] == "2.13.0"
    trained = dict(cells(bare, "Models, images"))
    assert (
        trained["Teacher, vae"] == "AutoencoderKL"
        and trained["Images"] == "ImageFolder('photos', 320 images)"
    )


def test_a_real_run_and_its_folder_give_the_same_report(tmp_path):
    loader = [images(4, seed=n) for n in range(3)]
    result = diva_rs.post_train(
        small_clip(), small_teacher(), loader, output_dir=tmp_path / "run", progress=False, log_every=1
    )
    of_folder = report.write(tmp_path / "run")
    of_result = report.write(result, tmp_path / "other")
    assert of_folder == tmp_path / "run" / "report.html"
    assert {file.name for file in (tmp_path / "other").iterdir()} == {"report.html"}
    ours, theirs = parsed(of_folder.read_text()), parsed(of_result.read_text())
    for anchor in ANCHORS[1:]:
        assert ours.one("section", id=anchor).text == theirs.one("section", id=anchor).text
    more = cells(ours, "Models, images")[len(cells(theirs, "Models, images")) :]
    assert [row[0] for row in more] == ["Fingerprint of CLIP before", "Fingerprint of the teacher"]
    assert cells(ours, "Models, images")[: -len(more)] == cells(theirs, "Models, images")
    facts = dict(cells(ours, "Versions and machine"))
    assert facts["PyTorch"] == torch.__version__ and facts["diva-rs"] == diva_rs.__version__
    trained = dict(cells(ours, "Models, images"))
    assert trained["Images"] == "a list of 3 batches"
    visual = sum(parameter.numel() for parameter in result.clip.visual.parameters())
    assert trained["Trained parameters, clip"] == f"{visual:,}"


def test_a_run_that_was_watched_shows_what_it_measured(tmp_path):
    """Its own results, in place of words that nothing was measured; those that are given go first."""
    root, transform = mmvp_folder(tmp_path / "MMVP", pairs=1), image_transform(32, is_train=False)
    naturalbench(tmp_path / "natural", ["group", "text", "none"])
    (tmp_path / "of").mkdir()
    photos = photos_folder(tmp_path / "of")
    result = diva_rs.post_train(
        small_clip(),
        small_teacher(),
        [images(2)],
        output_dir=tmp_path / "run",
        # A number of a result is enough.
        evaluate={
            "mmvp": lambda clip: mmvp_vlm(clip, transform, tokenize, root).average,
            "natural": lambda clip: pairs(clip, transform, tokenize, tmp_path / "natural"),
            "folder": lambda clip: zero_shot_folder(clip, transform, tokenize, photos),
            "mine": lambda clip: 1.0,
            "broken": lambda clip: DriftResult(math.nan, math.nan, math.nan, (math.nan,)),
            "drift": Drift(small_clip(), torch.randn(2, 3, 32, 32)),
        },
        best="mmvp",
        best_on_test=True,
        progress=False,
    )
    pages = [parsed(report.write(run, tmp_path / "a").read_text()) for run in (result, tmp_path / "run")]
    for page in pages:
        missing = [div.text for div in page.all("div") if div.attributes.get("class") == "missing"]
        assert len(missing) == 2 and all(
            "while training: mmvp, natural, folder, " in text for text in missing
        )
        assert cells(page, "MMVP-VLM")[-1][-1] == "no difference shown"
        assert "Image folder" in page.one("section", id="retention").text
        assert "chosen by their score on MMVP-VLM, a test set" in page.one("header").text
        assert "not measured" not in page.one("dl").text
        rows = cells(page, "NaturalBench")[1:]
        assert [row[0] for row in rows] == [
            f"NaturalBench-Retrieval ({n})" for n in ("group", "text", "image")
        ]
        assert rows[0][1].startswith("0 of 3: 0.0 (")
    for anchor in ANCHORS[2:]:
        assert pages[0].one("section", id=anchor).text == pages[1].one("section", id=anchor).text
    given = parsed(report.write(result, tmp_path / "a", before=mmvp(BEFORE), after=mmvp(AFTER)).read_text())
    assert cells(given, "MMVP-VLM")[-1][1].startswith("27 of 135: 20.0")


def test_a_resumed_run_says_where_it_was_interrupted(tmp_path):
    post_trained().save(tmp_path)
    starts = [{"step": 0}, {"step": 40}, {"step": 1200}]
    (tmp_path / "run.json").write_text(
        json.dumps({"starts": starts, "clip_start": "abc", "teacher_weights": None})
    )
    trained = dict(cells(parsed(report.write(tmp_path).read_text()), "Models, images"))
    assert trained["Interrupted, and resumed at step"] == "40, 1,200"
    assert trained["Fingerprint of CLIP before"] == "abc" and "Fingerprint of the teacher" not in trained
    (tmp_path / "run.json").write_text(json.dumps({"starts": [3, [], {"stop": 1}, None]}))
    trained = dict(cells(parsed(report.write(tmp_path).read_text()), "Models, images"))
    assert "Interrupted, and resumed at step" not in trained


def test_pictures_are_shown_as_they_are(tmp_path):
    file = tmp_path / "grid.png"
    Image.new("RGB", (6, 4), "red").save(file)
    page = report.write(post_trained(), tmp_path / "report", pictures={"A <red> grid": file})
    shown = parsed(page.read_text()).one("section", id="pictures")
    assert shown.one("h2").text == "Pictures" and shown.one("figcaption").text.strip() == "A <red> grid"
    image = shown.one("img").attributes
    assert image["alt"] == "A <red> grid"
    assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == file.read_bytes()


def test_pictures_that_cannot_be_shown(tmp_path):
    Image.new("RGB", (90, 90), "red").save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:100])
    Image.new("RGB", (6, 4), "red").save(tmp_path / "a.bmp")
    for path, words in {
        "nowhere.png": "nowhere.png cannot be read: No such file",
        __file__: "test_report.py: not an image that Pillow can read",
        "/dev/zero": "/dev/zero cannot be read: it is a .*device",
        tmp_path / "cut.png": "cut.png: ",
        tmp_path / "a.bmp": "a.bmp is a BMP image: give a PNG",
    }.items():
        with pytest.raises(diva_rs.DataError, match=words):
            report.write(post_trained(), tmp_path / "report", pictures={"a": path})
    assert not (tmp_path / "report").exists()


def test_the_losses_of_stages_are_not_compared():
    stages = (Stage(train=("projector",), steps=1, contrast=0.0), Stage(train=("tower",), denoising=0.0))
    recipe = Recipe(contrast=1.0, stages=stages, steps=3, log_every=1)
    batches = [images(2, seed=n) for n in range(3)]
    result = post_train(small_clip(), small_teacher(), batches, recipe, progress=False)
    text = facts.course(read_run(result))
    assert "These are the 2 logs of the last objective, contrast." in text
    assert "not finite" not in text
