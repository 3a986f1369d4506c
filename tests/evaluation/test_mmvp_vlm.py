"""MMVP-VLM on a folder with a planted truth: each official scoring rule, every spelling, every result."""

import csv
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image

from builders.mmvp import (
    TYPES,
    PlantedCLIP,
    mmvp_folder,
    preprocess,
    read_questions,
    tokenize,
    write_questions,
)
from diva_rs.errors import ConfigError, DataError
from diva_rs.evaluation import PATTERNS, mmvp_vlm, wilson_interval
from diva_rs.evaluation.formats.mmvp import read_pairs

PAIRS = range(135)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return mmvp_folder(tmp_path_factory.mktemp("mmvp"))


@pytest.fixture
def own(root, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(root, tmp_path / "MMVP_VLM")


def score(root, right, **settings):
    return mmvp_vlm(
        PlantedCLIP(right, wrong=settings.pop("wrong", None)), preprocess, tokenize, root, **settings
    )


def test_a_model_that_is_right_on_known_pairs_scores_exactly_those(root):
    right = {0, 1, 7, 15, 44, 45, 60, *range(90, 105), 134}
    result = score(root, right)
    assert [pair.correct for pair in result.pairs] == [number in right for number in PAIRS]
    per_pattern = [len(right & set(range(15 * k, 15 * k + 15))) for k in range(9)]
    assert list(result.patterns) == list(PATTERNS)
    assert list(result.patterns.values()) == pytest.approx([100 * count / 15 for count in per_pattern])
    assert result.average == pytest.approx(sum(100 * count / 15 for count in per_pattern) / 9)
    assert result.average == pytest.approx(100 * len(right) / 135)
    assert result.right == len(right)
    assert result.interval == pytest.approx([100 * end for end in wilson_interval(len(right), 135)])
    assert result.intervals["Structural Characteristics"] == pytest.approx(
        [100 * end for end in wilson_interval(15, 15)]
    )


def test_both_statements_must_pick_their_image(root):
    # One image liked by both statements: one statement of each pair is right, and no pair counts.
    for wrong, picked in (("first", (1, 1)), ("second", (2, 2)), ("swapped", (2, 1))):
        result = score(root, (), wrong=wrong)
        assert {pair.picked for pair in result.pairs} == {picked}
        assert result.average == 0


def test_a_tie_picks_the_second_image(root):
    result = score(root, (), wrong="tied")
    assert {pair.scores for pair in result.pairs} == {(0.5, 0.5)}
    assert {pair.picked for pair in result.pairs} == {(2, 2)}
    assert result.average == 0


def test_consecutive_rows_are_the_pair_and_the_first_rows_image_is_the_first(root):
    pairs = score(root, PAIRS).pairs
    assert [pair.ids for pair in pairs] == [(2 * n + 1, 2 * n + 2) for n in PAIRS]
    assert all(pair.images[0].endswith(f"/{pair.ids[0]}.jpg") for pair in pairs)
    assert all(pair.expected == (1, 2) for pair in pairs)
    assert all(pair.scores[0] > 0.99 and pair.scores[1] < 0.01 for pair in pairs)


def test_the_parity_of_the_id_says_which_image_is_expected(own):
    # The official rule looks at ids, not at rows: with two rows swapped the right picks count as wrong.
    rows = read_questions(own)
    rows[2], rows[3] = rows[3], rows[2]
    write_questions(own, rows)
    result = score(own, PAIRS)
    swapped = result.pairs[1]
    assert swapped.ids == (4, 3) and swapped.expected == (2, 1) and swapped.picked == (1, 2)
    assert not swapped.correct and result.right == 134


def test_patterns_go_by_row_order_whatever_the_type_says(own):
    rows = read_questions(own)
    rows = rows[30:60] + rows[:30] + rows[60:]
    write_questions(own, rows)
    with pytest.warns(UserWarning, match=r"Questions.csv, row 2 has the type 'Presence', but by its place"):
        result = score(own, range(15))  # the pairs of type Orientation, now in the second place
    assert result.patterns[PATTERNS[0]] == 0 and result.patterns[PATTERNS[1]] == 100
    assert result.pairs[15].type == "Orientation" and result.pairs[15].pattern == PATTERNS[1]


def test_both_images_lie_under_the_first_rows_type(own):
    rows = read_questions(own)
    rows[1][1] = "Camera Perspective"
    write_questions(own, rows)
    assert score(own, PAIRS).average == 100


@pytest.mark.parametrize(
    "images", ["MLLM_VLM Images", "MLLM_VLM_Images", "MMVP_VLM_Images", "mmvp vlm images"]
)
def test_every_spelling_of_the_images_folder_is_found(tmp_path, images):
    assert len(read_pairs(mmvp_folder(tmp_path, images=images, pairs=1))) == 9


SPELLINGS = [
    dict(zip(TYPES, PATTERNS, strict=True)),
    {name: name.replace(" ", "_") for name in TYPES},
    {name: name.upper() for name in TYPES},
    {"Spatial": "Positional", "Text": "Texts", "Camera Perspective": "Viewpoint"},
    {"Structural Character": "structural", "Camera Perspective": "camera-perspective", "Color": "Colour"},
    {name: pattern.replace(" and ", " & ") for name, pattern in zip(TYPES, PATTERNS, strict=True)},
]


@pytest.mark.parametrize("where", ["folders", "types"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_the_types_is_found(tmp_path, spelling, where):
    pairs = read_pairs(mmvp_folder(tmp_path, pairs=1, **{where: spelling}))
    assert [pair.pattern for pair in pairs] == list(PATTERNS)
    assert all(picture.source.is_file() for pair in pairs for picture in pair.pictures)


def test_other_image_formats_and_a_byte_order_mark_are_read(own):
    for file in sorted(own.glob("*/Text/*.jpg")):
        file.rename(file.with_suffix(".PNG"))
    text = (own / "Questions.csv").read_text()
    (own / "Questions.csv").rename(own / "questions.CSV")
    (own / "questions.CSV").write_text("\ufeff" + text.replace("\n", "\r\n") + "\r\n\r\n", encoding="utf-8")
    assert score(own, PAIRS).average == 100


def edit(position, column, value):
    def damage(root):
        rows = read_questions(root)
        rows[position][column] = value
        write_questions(root, rows)

    return damage


def rows(change):
    return lambda root: write_questions(root, change(read_questions(root)))


def write(change):
    def damage(root):
        file = root / "Questions.csv"
        file.write_bytes(change(file.read_bytes()))

    return damage


IMAGES = "MLLM_VLM Images"
DAMAGES = [
    (lambda root: (root / IMAGES / "State/61.jpg").unlink(), r"csv, row 62: .*State/61\.jpg is missing"),
    (
        lambda root: shutil.rmtree(root / IMAGES / "Text"),
        r"csv, row 212: .*MLLM_VLM Images has no folder for the type 'Text'; it holds Camera",
    ),
    (lambda root: shutil.rmtree(root / IMAGES), "holds no folder MLLM_VLM Images or .*; it holds Questions"),
    (lambda root: (root / "Questions.csv").unlink(), r"holds no file Questions\.csv; it holds MLLM_VLM Imag"),
    (rows(lambda rows: rows[:-1]), "csv: 269 questions, an odd number: row 270 has no partner"),
    (rows(lambda rows: rows[:-2]), "csv: 134 pairs cannot be shared equally by 9 patterns"),
    (rows(lambda rows: [*rows[1:], [271, "Text", "thing, 271"]]), "csv, rows 2 and 3: question ids 2 and 3"),
    (edit(4, 1, "Smell"), "csv, row 6: unknown type 'Smell': the types are Orientation"),
    (edit(4, 1, "Quantity and Cuont"), "row 6: unknown type 'Quantity and Cuont'.*Quantity and Count"),
    (edit(0, 0, "one"), "csv, row 2: question id 'one', expected a whole"),
    (edit(0, 0, "0"), "csv, row 2: question id '0'"),
    (edit(8, 0, "1"), "csv, row 10: question id 1 is in row 2 as well"),
    (edit(9, 2, " "), "csv, row 11: the statement is empty"),
    (write(lambda text: text.replace(b'"thing, number 3"', b"thing, number 3")), "csv, row 4: 4 fields, exp"),
    (
        write(lambda text: text.replace(b"3,Orientation,", b"3;Orientation;")),
        "csv, row 4: 2 fields, expected 3 with com",
    ),
    (write(lambda text: text.replace(b'number 270"', b"number 270")), r"csv, row 27\d: malformed CSV"),
    (write(lambda text: text.split(b"\n", 1)[1]), "csv, row 1: the header Question ID,Type,Statement is mis"),
    (write(lambda text: b""), "csv, row 1: the header"),
    (write(lambda text: text.split(b"\n", 1)[0]), "csv: 0 pairs"),
    (write(lambda text: text.replace(b"number 9", b"num\xe9ro 9")), "csv is not UTF-8 text"),
    (
        lambda root: (root / IMAGES / "State/61.jpg").write_bytes(b"nothing"),
        r"State/61\.jpg \(question 61, row 62\): not an image",
    ),
    (shutil.rmtree, r"MMVP_VLM is not a folder: give the one that holds Questions\.csv"),
]


@pytest.mark.hostile
@pytest.mark.parametrize("damage,words", DAMAGES)
def test_a_damaged_folder_is_an_error_that_names_file_and_row(own, damage, words):
    damage(own)
    with pytest.raises(DataError, match=words):
        score(own, PAIRS)


def test_the_csv_has_every_decision_and_the_official_columns_first(root, tmp_path):
    result = score(root, {0, 5, 100})
    file = result.to_csv(tmp_path / "pairs.csv")
    with open(file, newline="") as opened:
        rows = list(csv.DictReader(opened))
    official = ["qid1", "qid2", "pred1", "pred2", "gt1", "gt2", "q1score", "q2score"]
    assert list(rows[0])[:8] == official and len(rows) == 135
    for row, pair in zip(rows, result.pairs, strict=True):
        assert (int(row["qid1"]), int(row["qid2"])) == pair.ids
        assert (row["pred1"], row["pred2"]) == tuple(f"img{k}" for k in pair.picked)
        assert (row["gt1"], row["gt2"]) == ("img1", "img2")
        assert (float(row["q1score"]), float(row["q2score"])) == pair.scores
        assert int(row["correct"]) == pair.correct
        assert (row["statement1"], row["statement2"]) == pair.statements


def test_the_json_holds_scores_intervals_and_pairs(root, tmp_path):
    result = score(root, {0, 5, 100})
    told = json.loads(result.to_json(tmp_path / "mmvp.json").read_text())
    assert told["average"] == pytest.approx(100 * 3 / 135)
    assert told["patterns"] == pytest.approx(result.patterns)
    assert [pair["correct"] for pair in told["pairs"]] == [pair.correct for pair in result.pairs]
    assert told == json.loads(json.dumps(result.to_dict()))


def test_the_table_shows_every_pattern_and_the_average(root):
    lines = str(score(root, {0, 5, 100})).splitlines()
    assert len(lines) == 11 and lines[0].startswith("MMVP-VLM (pooled) ")
    assert " ".join(lines[1].split()) == "Orientation and Direction 2 of 15 pairs right [ 3.7, 37.9] 13.3 %"
    assert " ".join(lines[-1].split()) == "average 3 of 135 pairs right [ 0.8, 6.3] 2.2 %"
    assert score(root, range(31)).line == "MMVP-VLM  31 of 135 pairs right  [16.7, 30.7]  23.0 %"


def test_two_models_are_compared_on_the_same_pairs(root, own):
    before, after = score(root, range(30)), score(root, range(5, 50))
    change = before.compare(after)
    assert change.lost == tuple(range(5)) and change.gained == tuple(range(30, 50))
    assert change.before == pytest.approx(before.average) and change.after == pytest.approx(after.average)
    assert change.p_value == pytest.approx(2 * sum([1, 25, 300, 2300, 12650, 53130]) / 2**25)
    assert change.interval == before.compare(after).interval
    rows = read_questions(own)
    rows[0][2] = "thing, number 001"
    write_questions(own, rows)
    with pytest.raises(DataError, match="different pairs"):
        before.compare(score(own, ()))


def test_the_model_is_scored_in_eval_mode_and_left_as_it_was_also_after_an_error(own):
    model = PlantedCLIP(PAIRS)
    model.inner = torch.nn.Dropout()
    model.train()
    model.inner.eval()
    mmvp_vlm(model, preprocess, tokenize, own)
    (own / IMAGES / "State" / "61.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError):
        mmvp_vlm(model, preprocess, tokenize, own)
    assert set(model.seen_training) == {False}
    assert model.training and not model.inner.training and torch.is_grad_enabled()


def test_wrapped_models_and_plain_objects_are_scored(root):
    model = PlantedCLIP(range(10))
    model.weight = torch.nn.Parameter(torch.zeros(1))
    plain = SimpleNamespace(encode_image=model.encode_image, encode_text=model.encode_text)
    for clip in (torch.nn.DataParallel(model), torch.compile(model), plain):
        assert mmvp_vlm(clip, preprocess, tokenize, root).right == 10


def test_embeddings_that_are_not_finite_are_an_error(root):
    model = PlantedCLIP(PAIRS)
    model.encode_image = lambda pixels: torch.full((2, 271), float("nan"))
    with pytest.raises(DataError, match=r"1\.jpg \(question 1, row 2\) is not finite"):
        mmvp_vlm(model, preprocess, tokenize, root)


def test_images_are_read_as_they_are_stored(own):
    # An EXIF orientation that other readers obey; the official code does not.
    sideways = Image.new("RGB", (8, 8), (24, 4, 128))
    exif = Image.Exif()
    exif[0x0112] = 6
    seen = []

    def record(image):
        seen.append(image.getexif().get(0x0112))
        return preprocess(image)

    sideways.save(own / "MLLM_VLM Images" / "Orientation" / "1.jpg", format="PNG", exif=exif)
    assert mmvp_vlm(PlantedCLIP(PAIRS), record, tokenize, own).average == 100
    assert seen[0] == 6


@pytest.mark.parametrize(
    "change,words",
    [
        ({"clip": None}, "clip is a NoneType"),
        ({"clip": (PlantedCLIP(()), None, None)}, "clip is a tuple, .* return it first"),
        ({"clip": torch.nn.Linear(2, 2)}, "Linear has no text tower"),
        ({"embedding": "official-openia"}, "embedding='official-openia' is not known"),
        ({"embedding": "official-openai"}, "PlantedCLIP is not a CLIP model of a known library"),
        ({"confidence": 95}, "confidence=95"),
        ({"preprocess": None}, "preprocess is a NoneType: give the model's own transform"),
        ({"preprocess": image_transform(32, is_train=True)}, "preprocess draws random numbers"),
    ],
)
def test_bad_settings_are_named(root, change, words):
    given = {"clip": PlantedCLIP(()), "preprocess": preprocess, "tokenizer": tokenize, "root": root, **change}
    with pytest.raises(ConfigError, match=words):
        mmvp_vlm(**given)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [([], "a list"), (torch.zeros(3, 8, 8, dtype=torch.uint8), r"torch\.uint8 \(3, 8, 8\)")],
)
def test_a_transform_that_gives_no_normalised_image_is_named(root, pixels, words):
    with pytest.raises(DataError, match=f"preprocess gave {words}, a floating tensor"):
        mmvp_vlm(PlantedCLIP(()), lambda image: pixels, tokenize, root)
