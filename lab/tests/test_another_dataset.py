"""A folder of images with a table of attributes takes the microworld's place, from the table to the study."""

import csv
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from builders.cli import message
from diva_rs import ConfigError, DataError, Teacher
from diva_rs.captions import Vocabulary
from diva_rs.microworld import new_clip, zero_shot_objects
from diva_rs.microworld.models import fresh, new_scheduler, new_text_encoder, new_unet, new_vae
from lab.cli import main
from lab.pretraining.clip import train_classifier, train_clip, train_text
from lab.pretraining.data import Pixels, words_of
from lab.pretraining.denoiser import encode, train_dit, train_unet
from lab.pretraining.generated import Classifier, read, train_reader
from lab.pretraining.loop import Keep
from lab.pretraining.margins import margins
from lab.pretraining.vae import train_vae
from lab.study import Arm, Measure, TrainingImages, run_arm
from lab.study.outcomes import intervals
from lab.study.probes import Kept, Probes
from lab.study.runs import read_rows
from lab.world import StudyWorld, new_dit
from lab.worlds import Data, Table
from lab.worlds.drawn import STYLES, VALUES, draw_world, picture
from lab.worlds.pairs import nearest_pairs
from lab.worlds.table import part_of

ASKED = 256
# Five standard errors above a guess between two values: what separates a trained model from an untrained one
# on any processor: 66 of 100.
GUESS = 100 * (0.5 + 5 * (0.25 / ASKED) ** 0.5)
SIZES = {"train": 128, "feedback": 32, "validation": ASKED, "others": 16}
WORDS = """
templates = ["the picture of {}"]
subjects = ["square", "disc"]

[attributes.shade]
words = ["dark", "light"]

[attributes.side]
words = ["left", "right"]
phrase = "on the {} side"

[attributes.corner]
words = ["round", "sharp"]
phrase = "with {} corners"
"""


def write(folder, rows, words=None):
    folder.mkdir(exist_ok=True)
    with open(folder / "table.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    if words:
        (folder / "words.toml").write_text(words)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Squares and discs of 32 pixels, dark or light, left or right; corners are a square's alone."""
    place, chance = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    rows = []
    for split, size in SIZES.items():
        for number in range(size):
            square, light, right, sharp = chance.integers(0, 2, 4)
            image = Image.fromarray(chance.integers(0, 25, (32, 32, 3), np.uint8))
            shape, box = ImageDraw.Draw(image), [(2 + 15 * right, 9), (14 + 15 * right, 21)]
            fill = (90 + 150 * light,) * 3
            if not square:
                shape.ellipse(box, fill=fill)
            else:
                shape.rounded_rectangle(box, 0 if sharp else 3, fill=fill)
            values = {"shade": ("dark", "light")[light], "side": ("left", "right")[right]}
            values["corner"] = ("round", "sharp")[sharp] if square else ""
            name = f"{split}-{number}.png"
            image.save(place / name)
            subject = "square" if square else "disc"
            rows.append({"file": name, "subject": subject, **values, "split": split, "source": "drawn"})
    return write(place, rows, WORDS)


@pytest.fixture(scope="module")
def table(folder):
    return Table(folder, side=32)


@pytest.fixture(scope="module")
def clip(table):
    """Pretrained on the shapes for a few steps, with 16 patches of 8 pixels."""
    images = table.pretraining(1000, 0)
    clip, pixels = new_clip(0, table.tokenizer, 32, 8), Pixels(images)
    train_text(clip, images, len(images), 30, batch=32)
    train_classifier(clip.visual, images, pixels, 60, batch=32)
    train_clip(clip, images, pixels, 30, share=0.5, batch=32)
    return clip


def test_a_table_has_words_captions_and_splits(table):
    data: Data = table
    assert table.values["corner"] == ("", "round", "sharp")  # the empty word: it does not apply
    images = data.pretraining(1000, 0)
    assert len(images) == 128 and len(data.pretraining(5, 0)) == 5
    assert [len(data.scored(split, 1000, 0)) for split in SIZES] == list(SIZES.values())
    for caption, values in zip(images.detailed_captions(range(128)), words_of(images), strict=True):
        said = dict(values)
        assert caption.startswith(f"the picture of a {said.pop('shade')} {said.pop('subject')} ")
        assert all(word in caption for word in said.values())
        assert ("corners" in caption) == bool(values["corner"])
    short = images.captions(range(128), 0.0)
    assert set(short) == {"the picture of a square", "the picture of a disc"}
    shades = dict.fromkeys(table.values, 0.0) | {"shade": 1.0}
    for caption, values in zip(images.captions(range(128), shades), words_of(images), strict=True):
        assert caption == f"the picture of a {values['shade']} {values['subject']}"
    assert images.detailed_captions(range(128), 1) != images.detailed_captions(range(128), 0)
    ids = images.tokenizer([*short, *images.detailed_captions(range(128))])
    assert ids.max() == table.tokenizer.vocab_size - 1
    # Every image has its own key, whatever it is used for.
    parts = [images, data.feedback(1000), data.scored("validation", 1000, 0)]
    keys = [range(part.first, part.first + len(part)) for part in parts]
    assert not any(set(one) & set(two) for one, two in itertools.combinations(keys, 2))


def test_without_words_and_splits_a_table_is_read_all_the_same(tmp_path):
    values = itertools.product(["cat", "ox"], ["red", "orange"], ["big", ""], ["a", "b"])
    rows = [
        {"file": f"{n}.png", "subject": subject, "colour": colour, "size": size, "source": source}
        for n, (subject, colour, size, source) in enumerate(values)
    ]
    table = Table(write(tmp_path, rows))
    assert table.template("ox") == "a photo of an ox" and table.values["size"] == ("", "big")
    splits = {}
    for row in table.rows:
        assert row["split"] == splits.setdefault((row["subject"], row["colour"], row["size"]), row["split"])
    assert {part_of(("cat", str(n))) for n in range(99)} == {"train", "validation", "test"}
    longest = table.vocabulary.caption({"subject": "ox", "colour": "orange", "size": "big"})
    assert table.tokenizer(longest).shape == (1, table.tokenizer.context_length)
    with pytest.raises(DataError, match=r"0\.png cannot be read"):
        table.pictures([0])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("file,colour\na.png,red\n", "no column 'subject', only file, colour"),
        ("file,subject,colour\n", "has no rows"),
        ("file,subject,colour\na.png,cat\n", "row 1: 3 cells are needed"),
        ("file,subject,colour\na.png,,red\n", "row 1: subject is empty"),
        (
            "file,subject,colour\na.png,cat,red\nb.png,cat,red\n",
            "attribute 'colour': words=.'red'.: two or more",
        ),
    ],
)
def test_a_bad_table_is_named(tmp_path, text, match):
    with pytest.raises(DataError, match=r"table\.csv is missing"):
        Table(tmp_path / "table.csv")
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(DataError, match=match):
        Table(tmp_path)


def test_words_and_table_must_agree(tmp_path):
    row = {"file": "a.png", "subject": "square", "shade": "pale", "side": "left", "corner": ""}
    with pytest.raises(DataError, match=r"shade has 'pale', which .* does not list"):
        Table(write(tmp_path, [row], WORDS))
    del row["corner"]
    with pytest.raises(DataError, match=r"has the attributes shade, side, corner, .* shade, side"):
        Table(write(tmp_path, [row], WORDS))


def test_pairs_differ_in_one_attribute_or_in_as_little_else_as_possible(table):
    pairs = table.pairs("validation", 20)
    assert len(pairs) == 60
    for pair in pairs:
        one, two = (table.rows[number] for number in pair.scenes)
        differing = {name for name in table.values if one[name] != two[name]}
        assert differing == {pair.attribute} and one[pair.attribute] and two[pair.attribute]
        values = {"subject": one["subject"], pair.attribute: one[pair.attribute]}
        assert pair.statements[0] == table.vocabulary.caption(values)
    used = [number for pair in pairs if pair.attribute == "side" for number in pair.scenes]
    assert len(set(used)) == 40
    # Subject, attribute, another: the pair that agrees in the last column comes first.
    codes = np.array([[0, 0, 0], [0, 1, 1], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    assert sorted(nearest_pairs(codes, 1, 9)) == [(0, 2), (1, 3)]
    assert len(nearest_pairs(codes, 1, 1)) == 1 and nearest_pairs(codes, 1, 9, empty=[0]) == []
    with pytest.raises(ConfigError, match=r"split=.tests.: .* has "):
        table.pairs("tests", 1)


def test_clip_learns_the_subject_of_another_dataset(clip, table):
    asked = table.scored("validation", ASKED, 0)
    named = zero_shot_objects(clip, asked, template=table.template)
    sides = zero_shot_objects(clip, asked, "side", template="the picture of a square on the {} side")
    assert named.accuracy > GUESS and sides.outcomes != named.outcomes
    with pytest.raises(ConfigError, match="does not fit the dataset's captions, such as 'the picture of a"):
        zero_shot_objects(clip, asked)


def test_scores_and_their_intervals_are_those_of_the_world(clip, table):
    measure = Measure("validation", ASKED, 128, 20, table)
    before, after = measure(new_clip(1, table.tokenizer, 32, 8)), measure(clip)
    found = intervals(before, after)
    own = {"shade", "side", "corner"}
    assert {name.split("/")[1] for name in after if "/" in name} == own and found.keys() == after.keys()
    for name, (low, high) in found.items():
        assert low <= after[name] - before[name] + 1e-9 and after[name] - before[name] - 1e-9 <= high, name
    assert after["probe_patches/side"] > GUESS
    # Corners are a square's alone: discs are not asked about.
    probes = Probes(Kept(table.fitted(128)), measure.asked)(clip)["probe_class"]
    squares = [values["subject"] == "square" for values in words_of(measure.asked)]
    assert (~np.isnan(probes.right[:, probes.names.index("corner")])).tolist() == squares


TRAININGS = ("text", "objects", "clip", "vae", "unet", "dit")


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_that_was_interrupted_ends_in_the_same_bits(name, table, tmp_path):
    """And a dataset smaller than the batch is trained on."""
    images = table.pretraining(24, 0)
    pixels, latents = Pixels(images), torch.randn(24, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    tokens = table.tokenizer

    def train(keep):
        if name in ("text", "objects", "clip"):
            model = new_clip(0, tokens, 32, 8)
            if name == "text":
                train_text(model, images, len(images), 6, keep=keep)
            elif name == "objects":
                train_classifier(model.visual, images, pixels, 6, keep=keep)
            else:
                train_clip(model, images, pixels, 6, 0.5, keep=keep)
        elif name == "vae":
            train_vae(model := new_vae(0, 32), pixels, 6, keep=keep)
        elif name == "unet":
            train_unet(model := new_unet(0, 32), new_text_encoder(0, tokens), images, latents, 6, keep=keep)
        else:
            train_dit(model := new_dit(0, 2, 32), images, latents, 6, keep=keep)
        return model.state_dict()

    def interrupt(done):
        if done == 5:
            raise KeyboardInterrupt

    whole, file = train(Keep()), tmp_path / "training.state"
    with pytest.raises(KeyboardInterrupt):
        train(Keep(file, every=2, callback=interrupt))
    seen = []
    resumed = train(Keep(file, every=2, callback=seen.append))
    assert seen == [5, 6]  # from the checkpoint of step 4
    finished = train(Keep(file))
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]) and torch.equal(value, finished[key]), key
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match="is no checkpoint of this training"):
        train(Keep(file))


def test_denoisers_learn_and_feed_back(table, clip):
    images, tokens = table.pretraining(1000, 0), table.tokenizer
    vae, unet, encoder = new_vae(0, 32), new_unet(0, 32), new_text_encoder(0, tokens)
    latents = encode(vae, Pixels(images))
    fresh = [model.state_dict() for model in (new_unet(0, 32), new_text_encoder(0, tokens))]
    train_unet(unet, encoder, images, latents, 4, batch=16)
    for model, start in zip((unet, encoder), fresh, strict=True):
        assert any(not torch.equal(value, start[key]) for key, value in model.state_dict().items())
    found = margins(unet, encoder, images, latents, draws=1)
    assert found.keys() == {"loss", "empty", "shuffled", *table.values}
    with torch.no_grad():
        text = encoder(tokens([""])).last_hidden_state
    teacher = Teacher(unet, vae=vae, scheduler=new_scheduler(), text_condition=text)
    world = SimpleNamespace(teacher=lambda kind, seed: teacher)
    pictures = TrainingImages(vae, table.feedback(1000))
    before = clip.visual.conv1.weight.clone()
    losses = run_arm(Arm({"batch": 8}), clip, world, pictures, seed=0, steps=4)
    assert losses["loss_first"] > 0 and not torch.equal(before, clip.visual.conv1.weight)
    supervised = run_arm(Arm({"batch": 8}, supervised=True), clip, world, pictures, seed=0, steps=2)
    assert supervised["loss_first"] > 0


def test_a_classifier_learns_and_its_score_counts_what_applies(table):
    images = table.fitted(64)
    pictures, truths = images.images(range(64)), images.labels(range(64))
    sizes = [len(words) for words in images.values.values()]
    classifier = fresh(0, Classifier, sizes=sizes, side=32)
    train_reader(classifier, images, [Pixels(images)], 100, batch=32)
    assert read(classifier, images, pictures)["shade"] > GUESS

    def every_second(part):
        said = (truths[: len(part)] + torch.arange(len(part))[:, None] % 2) % torch.tensor(sizes)
        return [torch.eye(size)[of] for size, of in zip(sizes, said.T, strict=True)]

    scores, squares = read(every_second, images, pictures), [bool(of["corner"]) for of in words_of(images)]
    assert scores["shade"] == 50 and scores.keys() == images.values.keys()
    assert scores["corner"] == pytest.approx(100 * sum(squares[::2]) / sum(squares))


def test_the_commands_run_on_a_table(folder, tmp_path, capsys):
    models, out = tmp_path / "models", tmp_path / "out"
    argv = ["pretrain", "--output-dir", str(models), "--world", str(folder), "--side", "32", "--patch", "8"]
    assert main([*argv, "--quick", "--steps", "dit=0"]) == 0
    manifest = json.loads((models / "manifest.json").read_text())
    assert set(manifest["made"]) == {"clip", "vae", "unet"} and manifest["data"]["side"] == 32
    assert not list(models.glob("*.state"))
    world = StudyWorld(models)
    assert world.clip().visual.conv1.kernel_size == (8, 8) and world.teacher().latent_shape == (16, 4, 4)
    argv = ["ablate", "captions", "--world", str(models), "--output-dir", str(out), "--seeds", "1"]
    assert main([*argv, "--steps", "2", "--split", "validation", "others"]) == 0
    row = read_rows(out / "runs.jsonl")[0]
    assert {"mini_mmvp/corner", "others mini_mmvp/corner", "others zero_shot"} <= row["after"].keys()
    assert "# captions, others split" in (out / "summary.md").read_text()
    assert set(json.loads((out / "judged.json").read_text())["accuracy"]) == {"shade", "side", "corner"}
    few = ["--images", "8", "--fitted", "64", "--steps", "2"]
    assert main(["sheet", "--world", str(models), "--output-dir", str(out), *few]) == 0
    sheet = json.loads((out / "sheet.json").read_text())
    assert sheet["generated"].keys() == sheet["original"].keys() == {"subject", "shade", "side", "corner"}
    assert Image.open(out / "sheet.png").width > 500
    capsys.readouterr()
    assert "--steps words=3: PART=N" in message(
        capsys, [*argv[:0], "pretrain", *argv[4:6], "--steps", "words=3"], main
    )
    text = (folder / "table.csv").read_text()
    try:
        (folder / "table.csv").write_text(text.replace("dark", "light", 1))
        with pytest.raises(DataError, match="has changed since the checkpoints were trained"):
            StudyWorld(models)
        (folder / "table.csv").unlink()
        with pytest.raises(DataError, match=r"table\.csv is missing"):
            StudyWorld(models)
    finally:
        (folder / "table.csv").write_text(text)


def test_the_drawn_world_is_the_same_again_and_splits_combinations(tmp_path):
    copies = {"train": 1, "feedback": 1, "validation": 1, "test": 1, "sources": 1}
    table = Table(draw_world(tmp_path, copies, ("lamp", "crown")))
    seen = {}
    for row in table.rows:
        seen.setdefault(row["split"], set()).add(tuple(row[name] for name in table.values))
        assert (row["source"] in list(STYLES)[2:]) == (row["split"] == "sources")
        assert (row["pattern"] == "") == (row["subject"] == "lamp")
    assert seen["test"] == seen["sources"] and seen["train"] == seen["feedback"]
    for one, two in itertools.combinations(("train", "validation", "test"), 2):
        assert not seen[one] & seen[two]
    first = table.rows[0]
    drawn = picture(first["subject"], first, first["source"], 0)
    assert np.array_equal(drawn, (table.pictures([0])[0].permute(1, 2, 0) * 255).round().byte().numpy())
    assert Vocabulary.read(tmp_path / "words.toml").names()[1:] == tuple(VALUES)
    assert len(table.pairs("test", 5)) == 30


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="side=48: a multiple of patch=7"):
        new_clip(0, patch=7)
    with pytest.raises(ConfigError, match="side=40: a multiple of 16"):
        new_unet(0, 40)
