"""Zero-shot and retrieval through clip-benchmark, run for real on small data sets in its own formats."""

import csv
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.utils.data import DataLoader

import diva_rs
from builders import texts
from builders.benchmarks import (
    COLOURS,
    TEMPLATES,
    ColourCLIP,
    captions_folder,
    image,
    photos_folder,
    preprocess,
    shapes_folder,
    tags_folder,
    tokenize,
)
from builders.clips import clip_variants
from builders.small import SIDE, images, small_clip, small_teacher
from diva_rs.errors import ConfigError, DataError, DependencyError
from diva_rs.evaluation import SUITES, retrieval, wilson_interval, zero_shot, zero_shot_folder

QUIET = {"progress": False, "workers": 0}
clip_pixels = image_transform_v2(PreprocessCfg(size=SIDE), is_train=False)


def test_a_planted_model_scores_what_it_knows(tmp_path):
    root = shapes_folder(tmp_path, labels=[0, 1, 2, 3, 3, 3, 2, 0])
    clip = ColourCLIP(confused={"grey": "red"}).train()
    result = zero_shot(clip, preprocess, tokenize, root, "wds/shapes", **QUIET)
    score = result["wds/shapes"]
    assert score.value == score.metrics["acc1"] == pytest.approx(100 * 5 / 8)
    assert score.metrics["mean_per_class_recall"] == pytest.approx(100 * 3 / 4)
    assert score.interval == pytest.approx([100 * end for end in wilson_interval(5, 8)])
    assert score.items == 8
    assert score.outcomes == (True, True, True, False, False, False, True, True)
    assert result.missing == {} and result.average == score.value and clip.training


@pytest.mark.parametrize("workers", [0, 4])
def test_the_numbers_are_clip_benchmarks_own(tmp_path, monkeypatch, workers):
    from clip_benchmark.datasets.builder import build_dataset
    from clip_benchmark.metrics import zeroshot_classification

    def top_1(output, target, topk):
        return [float((output.argmax(1) == target).float().mean())]

    # clip-benchmark 1.6.2 calls float() on an array of one element there, which NumPy 2.4 refuses.
    monkeypatch.setattr(zeroshot_classification, "accuracy", top_1)

    root = shapes_folder(tmp_path, labels=np.random.default_rng(0).integers(0, 4, 23).tolist(), shards=3)
    clip = small_clip().eval()
    ours = zero_shot(
        clip, clip_pixels, texts.tokenize, root, "wds/shapes", batch=5, workers=workers, progress=False
    )["wds/shapes"]
    dataset = build_dataset("wds/shapes", str(root / "shapes"), clip_pixels, "test")
    loader = DataLoader(dataset.batched(23), batch_size=None)
    loader.dataset.classes = dataset.classes
    theirs = zeroshot_classification.evaluate(
        clip, loader, texts.tokenize, dataset.classes, dataset.templates, "cpu", amp=False
    )
    assert dataset.classes == list(COLOURS) and dataset.templates == list(TEMPLATES)
    assert ours.items == 23
    assert ours.metrics["acc1"] == pytest.approx(100 * theirs["acc1"])
    assert ours.metrics["mean_per_class_recall"] == pytest.approx(100 * theirs["mean_per_class_recall"])


def test_a_multi_label_set_is_scored_by_mean_average_precision(tmp_path):
    rows = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]
    score = zero_shot(ColourCLIP(), preprocess, tokenize, tags_folder(tmp_path, rows), "wds/tags", **QUIET)[
        "wds/tags"
    ]
    assert score.metric == "mean_average_precision" and score.interval is None and score.items == 4
    # Three classes come first wholly; grey ranks its own image first and the other somewhere in the tie.
    assert 100 * (3 + (1 + 2 / 4) / 2) / 4 <= score.value <= 100


def test_clip_benchmarks_own_converter_writes_what_is_read(tmp_path):
    from clip_benchmark.webdataset_builder import PIL_to_bytes, convert_dataset

    class Colours(list):
        classes, templates = list(COLOURS), list(TEMPLATES)

    pairs = Colours((image(name), k) for k, name in enumerate(COLOURS))
    convert_dataset(pairs, "test", str(tmp_path / "colours"), transform=PIL_to_bytes("webp"), verbose=False)
    result = zero_shot(ColourCLIP(), preprocess, tokenize, tmp_path, "wds/colours", **QUIET)
    assert result["wds/colours"].value == 100 and result["wds/colours"].items == 4


def test_a_data_set_that_clip_benchmark_knows_as_a_folder(tmp_path, caplog):
    # fer2013: an image folder of seven classes under root/test, with clip-benchmark's names for them.
    for number, name in enumerate(["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"]):
        folder = tmp_path / "fer2013" / "test" / name
        folder.mkdir(parents=True)
        Image.new("L", (48, 48), 30 * number + 20).save(folder / "0.png")
    clip = small_clip().eval()
    score = zero_shot(clip, clip_pixels, texts.tokenize, tmp_path, "fer2013", **QUIET)["fer2013"]
    assert score.items == 7 and set(score.metrics) == {"acc1", "acc5", "mean_per_class_recall"}
    assert score.metrics["acc5"] >= score.metrics["acc1"] == pytest.approx(score.value)
    # What torchvision leaves out is said, also endings that diva_rs's own readers take.
    for name in ("1.HEIC", "2.avif"):
        shutil.copy(folder / "0.png", folder / name)
    with caplog.at_level("INFO"):
        zero_shot(clip, clip_pixels, texts.tokenize, tmp_path, "fer2013", **QUIET)
    assert (
        "zero-shot on fer2013: 7 images used, 2 left out: 1 with the ending .heic (surprise/1.HEIC), "
        "1 with the ending .avif (surprise/2.avif)"
    ) in caplog.text
    shutil.rmtree(tmp_path / "fer2013" / "test" / "fear")
    with pytest.raises(DataError, match="fer2013/test has 6 class folders, but the data set has 7 classes"):
        zero_shot(clip, clip_pixels, texts.tokenize, tmp_path, "fer2013", **QUIET)


def test_a_shard_that_would_not_be_read_is_an_error(tmp_path):
    root = shapes_folder(tmp_path, shards=3)
    (root / "shapes" / "test" / "nshards.txt").write_text("2")
    with pytest.raises(DataError, match=r"nshards\.txt says 2 shards, and 3 are there"):
        zero_shot(ColourCLIP(), preprocess, tokenize, root, "wds/shapes", **QUIET)


def test_retrieval_finds_what_a_planted_model_knows(tmp_path):
    root = captions_folder(tmp_path)
    known = retrieval(ColourCLIP(), preprocess, tokenize, root, "wds/captions", recall=(1, 2), **QUIET)
    assert known["wds/captions"].metrics == dict.fromkeys(
        [f"{side}_retrieval_recall@{k}" for side in ("image", "text") for k in (1, 2)], 100.0
    )
    assert known["wds/captions"].value == 100 and known["wds/captions"].items == 4
    # Grey images look red: two of eight captions miss their image for sure, two more may lose the tie.
    lost = ColourCLIP(confused={"grey": "red"})
    score = retrieval(lost, preprocess, tokenize, root, "wds/captions", recall=(1,), **QUIET)["wds/captions"]
    assert score.metric == "mean_recall@1" and score.metrics["image_retrieval_recall@1"] <= 75
    assert score.value == pytest.approx(sum(score.metrics.values()) / 2)


def test_retrieval_numbers_are_clip_benchmarks_own(tmp_path):
    from clip_benchmark.datasets.builder import build_dataset, get_dataset_collate_fn
    from clip_benchmark.metrics import zeroshot_retrieval

    root = tmp_path / "flickr8k"
    root.mkdir()
    lines = ["image,caption"]
    for number, colour in enumerate([*COLOURS, *COLOURS]):
        image(colour, shade=5 * number).save(root / f"{number}.jpg")
        lines += [f"{number}.jpg,a {colour} square, seen from above", f"{number}.jpg,something {colour}"]
    (root / "flickr8k_test_karpathy.txt").write_text("\n".join(lines))
    clip = small_clip().eval()
    ours = retrieval(clip, clip_pixels, texts.tokenize, tmp_path, "flickr8k", recall=(1, 5), **QUIET)
    dataset = build_dataset("flickr8k", str(root), clip_pixels, "test", task="zeroshot_retrieval")
    loader = DataLoader(dataset, 8, collate_fn=get_dataset_collate_fn("flickr8k"))
    theirs = zeroshot_retrieval.evaluate(clip, loader, texts.tokenize, "cpu", amp=False, recall_k_list=[1, 5])
    assert ours["flickr8k"].metrics == pytest.approx({name: 100 * value for name, value in theirs.items()})


@pytest.mark.parametrize("name", ["transformers-clip", "transformers-siglip", "openai"])
def test_other_libraries_run_through_clip_benchmark(tmp_path, name):
    clip = clip_variants()[name]()
    shapes_folder(tmp_path)
    captions_folder(tmp_path)
    shapes = zero_shot(clip, clip_pixels, texts.tokenize, tmp_path, "wds/shapes", **QUIET)["wds/shapes"]
    assert shapes.items == 8 and 0 <= shapes.value <= 100
    # The same decisions as from the embeddings themselves.
    folder = tmp_path / "classes"
    for i, k in enumerate([0, 1, 2, 3, 3, 2, 1, 0]):
        colour = list(COLOURS)[k]
        (folder / colour).mkdir(parents=True, exist_ok=True)
        image(colour, shade=i).save(folder / colour / f"{i}.png")
    by_folder = zero_shot_folder(
        clip, clip_pixels, texts.tokenize, folder, {name: name for name in COLOURS}, TEMPLATES
    )
    assert by_folder.accuracy == pytest.approx(shapes.value)
    found = retrieval(clip, clip_pixels, texts.tokenize, tmp_path, "wds/captions", recall=(1,), **QUIET)
    assert found["wds/captions"].items == 4 and clip.training


def test_before_and_after_a_short_post_training(tmp_path):
    labels = np.random.default_rng(1).integers(0, 4, 24).tolist()
    root = shapes_folder(tmp_path, labels=labels)
    clip = small_clip()
    before = zero_shot(clip, clip_pixels, texts.tokenize, root, "wds/shapes", **QUIET)
    again = zero_shot(clip, clip_pixels, texts.tokenize, root, "wds/shapes", **QUIET)
    assert again == before
    loader = [{"images": images(4, seed=n), "ids": list(range(4 * n, 4 * n + 4))} for n in range(3)]
    diva_rs.post_train(
        clip, small_teacher(), loader, steps=12, optimizer="adamw", lr=0.05, choose=4, progress=False
    )
    after = zero_shot(clip, clip_pixels, texts.tokenize, root, "wds/shapes", **QUIET)
    assert after["wds/shapes"].outcomes != before["wds/shapes"].outcomes
    change = before.compare(after)["wds/shapes"]
    assert change.before == pytest.approx(before.average) and change.after == pytest.approx(after.average)
    assert len(change.gained) + len(change.lost) > 0


def test_a_data_set_is_never_looked_for_in_a_folder_of_another_name(tmp_path):
    # As an image folder the root would pass for any ImageNet variant: its sub-folders look like classes.
    photos_folder(tmp_path)
    with pytest.raises(DataError, match=f"imagenet-a: there is no folder {tmp_path}/imagenet-a"):
        zero_shot(ColourCLIP(), preprocess, tokenize, tmp_path, "imagenet-a", **QUIET)
    shapes_folder(tmp_path)
    own = zero_shot(ColourCLIP(), preprocess, tokenize, tmp_path / "shapes", "wds/shapes", **QUIET)
    assert own["wds/shapes"].items == 8


def test_a_shard_that_ends_between_two_images_is_not_scored(tmp_path):
    shapes_folder(tmp_path)
    shard = tmp_path / "shapes" / "test" / "0.tar"
    with tarfile.open(shard) as tar:
        last = tar.getmembers()[-2].offset
    os.truncate(shard, last)
    with pytest.raises(DataError, match=r"0\.tar is no whole tar: its end mark is missing"):
        zero_shot(ColourCLIP(), preprocess, tokenize, tmp_path, "wds/shapes", **QUIET)


def test_what_cannot_be_had_is_listed_with_its_reason(tmp_path):
    shapes_folder(tmp_path)
    captions_folder(tmp_path)
    (tmp_path / "broken" / "test").mkdir(parents=True)
    (tmp_path / "broken" / "test" / "nshards.txt").write_text("1\n")
    (tmp_path / "broken" / "test" / "0.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "flickr30k").mkdir()
    names = [f"wds/{name}" for name in ("shapes", "captions", "broken", "none")]
    names += ["cifar10", "imagenet-a", "birdsnap", "cifar11"]
    result = zero_shot(ColourCLIP(), preprocess, tokenize, tmp_path / "{dataset}", names, **QUIET)
    assert [score.dataset for score in result.scores] == ["wds/shapes"]
    assert list(result.missing) == names[1:]
    for name, words in {
        "wds/captions": "AssertionError: Classes not specified for wds/captions",
        "wds/none": f"there is no folder {tmp_path}/none",
        "cifar10": "RuntimeError: Dataset not found or corrupted",
        "imagenet-a": f"there is no folder {tmp_path}/imagenet-a",
        "birdsnap": "clip-benchmark does not have it",
        "cifar11": f"there is no folder {tmp_path}/cifar11",
    }.items():
        assert result.missing[name].startswith(words), result.missing[name]
    assert result.missing["wds/broken"]
    told = str(result)
    assert all(name in told for name in names) and told.count("missing: ") == len(names) - 1
    with pytest.raises(DataError, match="no score for 'birdsnap': clip-benchmark does not have it"):
        result["birdsnap"]
    with pytest.raises(DataError, match=r"flickr30k_test_karpathy\.txt is missing"):
        retrieval(ColourCLIP(), preprocess, tokenize, tmp_path, "flickr30k", **QUIET)
    with pytest.raises(DataError, match="recall@10 of 4 images: give a smaller recall"):
        retrieval(ColourCLIP(), preprocess, tokenize, tmp_path, "wds/captions", **QUIET)
    with pytest.raises(DataError, match="it is a classification set"):
        retrieval(ColourCLIP(), preprocess, tokenize, tmp_path, "wds/shapes", **QUIET)


def test_the_suite_of_the_paper_names_every_set_and_hides_none(tmp_path):
    from clip_benchmark.datasets.builder import dataset_collection

    names = SUITES["diva"]["zero-shot"]
    assert len(names) == len(set(names)) == 27 and len(SUITES["diva"]["retrieval"]) == 2
    known = {name for group in dataset_collection.values() for name in group}
    known |= {name.removeprefix("vtab/") for name in known} | {"food101"}
    assert set(names) - known == {"birdsnap"} and set(SUITES["diva"]["retrieval"]) <= known
    shapes_folder(tmp_path)
    result = zero_shot(
        ColourCLIP(), preprocess, tokenize, tmp_path / "{dataset}", "wds/shapes", suite="diva", **QUIET
    )
    assert list(result.missing) == list(names) and all(result.missing.values())
    webdatasets = zero_shot(
        ColourCLIP(),
        preprocess,
        tokenize,
        tmp_path / "{dataset}",
        "wds/shapes",
        "diva",
        webdataset=True,
        **QUIET,
    )
    assert list(webdatasets.missing) == [f"wds/{name}" for name in names]


def test_results_are_written_whole(tmp_path):
    result = zero_shot(
        ColourCLIP(), preprocess, tokenize, shapes_folder(tmp_path), ["wds/shapes", "birdsnap"], **QUIET
    )
    told = json.loads(result.to_json(tmp_path / "scores.json").read_text())
    assert told["scores"][0]["value"] == 100 and list(told["missing"]) == ["birdsnap"]
    with open(result.to_csv(tmp_path / "scores.csv"), newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert rows[0]["dataset"] == "wds/shapes" and float(rows[0]["value"]) == 100 and rows[0]["items"] == "8"
    assert rows[1]["missing"].startswith("clip-benchmark does not have it")


def test_an_interrupted_suite_has_given_its_finished_data_sets(tmp_path):
    captions_folder(shapes_folder(tmp_path))
    names, kept = ["wds/shapes", "birdsnap", "wds/captions"], []

    def done(result):
        kept.append(result)
        if len(kept) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zero_shot(ColourCLIP(), preprocess, tokenize, tmp_path, names, done=done, **QUIET)
    assert [score.dataset for score in kept[-1].scores] == ["wds/shapes"] and list(kept[-1].missing) == [
        "birdsnap"
    ]
    assert kept[0].missing == {} and kept[-1].average == 100


@pytest.mark.parametrize(
    "given,words",
    [
        ({}, "no data set is named"),
        ({"suite": "div"}, "suite='div' is not known"),
        ({"datasets": "cifar10", "confidence": 2}, "confidence=2"),
        ({"datasets": "cifar10", "root": "{name}"}, r"only {dataset} and {dataset_cleaned} are filled in"),
    ],
)
def test_bad_settings_are_named(tmp_path, given, words):
    with pytest.raises(ConfigError, match=words):
        zero_shot(ColourCLIP(), preprocess, tokenize, **{"root": tmp_path, **given})


def test_without_clip_benchmark_the_pip_command_is_named(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "clip_benchmark", None)
    with pytest.raises(DependencyError, match=r"pip install 'diva-rs\[eval\]'"):
        zero_shot(ColourCLIP(), preprocess, tokenize, tmp_path, "cifar10")


@pytest.fixture
def photos(tmp_path):
    return photos_folder(tmp_path, per_class=3)


NAMED = {"cat": "red", "wild_dog": "blue"}


def encoded_as(path):
    path.parent.mkdir()
    image("red").save(path, "PNG")


def test_pictures_left_out_of_a_class_are_logged(photos, caplog):
    image("red").save(photos / "cat" / "9.HEIC", "PNG")
    (photos / "notes").mkdir()
    result = zero_shot_folder(ColourCLIP(), preprocess, tokenize, photos, NAMED)
    line = "6 images used, 1 left out: 1 with the ending .heic (cat/9.HEIC)"
    assert line in caplog.text and str(result).endswith(line) and result.to_dict()["accounting"]["used"] == 6


def test_a_folder_is_scored_by_class(photos):
    clip = ColourCLIP(confused={"blue": "green"})
    result = zero_shot_folder(clip, preprocess, tokenize, photos, {**NAMED, "bird": "green"}, batch=4)
    assert result.accuracy == 50 and result.per_class == {"red": 100, "blue": 0}
    assert result.counts == {"red": (3, 3), "blue": (0, 3)}
    assert result.interval == pytest.approx([100 * end for end in wilson_interval(3, 6)])
    assert result.predictions[0] == ("cat/0.png", "red", "red")
    assert result.predictions[-1] == ("wild_dog/2.png", "blue", "green")
    change = result.compare(zero_shot_folder(ColourCLIP(), preprocess, tokenize, photos, NAMED))
    assert change.gained == (3, 4, 5) and change.lost == () and change.p_value == 0.25


def test_the_folders_name_is_the_class_by_default(photos):
    seen = []

    def record(texts):
        seen.extend(texts)
        return torch.zeros(len(texts), 1, dtype=torch.int64)

    result = zero_shot_folder(ColourCLIP(), preprocess, record, photos)
    assert seen == ["a photo of a cat.", "a photo of a wild dog."]
    assert result.per_class == {"cat": 100, "wild dog": 0}  # all alike: the first class of equal ones


def test_a_folders_templates_are_averaged_after_normalisation(photos):
    from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier

    from diva_rs.evaluation.embedder import Embedder
    from diva_rs.evaluation.zero_shot_folder import _class_vector

    clip = small_clip().eval()
    embedder = Embedder(clip, clip_pixels, texts.tokenize)
    with torch.no_grad():
        theirs = zero_shot_classifier(clip, texts.tokenize, ["cat", "dog"], list(TEMPLATES), "cpu", amp=False)
        ours = torch.stack([_class_vector(embedder, name, TEMPLATES) for name in ("cat", "dog")])
    torch.testing.assert_close(ours, theirs.T)


@pytest.mark.parametrize(
    "damage,settings,error,words",
    [
        (
            lambda root: image("red").save(root / "loose.png"),
            {},
            DataError,
            r"loose\.png is in no class folder",
        ),
        (lambda root: (root / "cat" / "0.png").write_bytes(b"x"), {}, DataError, r"cat/0\.png: not an image"),
        (
            lambda root: encoded_as(root / "fox" / "0.HEIC"),
            {"classes": None},
            DataError,
            r"fox holds no image: .*1 left out: 1 with the ending \.heic \(0\.HEIC\)",
        ),
        (lambda root: (root / "fox").mkdir(), {"classes": {**NAMED, "fox": "x"}}, DataError, "fox holds no"),
        (
            lambda root: (root / "kitten").symlink_to(root / "cat"),
            {"classes": None},
            DataError,
            "class folder .*kitten is a link to a folder that is read already",
        ),
        (
            lambda root: (root / "kitten").symlink_to(root / "gone"),
            {"classes": None},
            DataError,
            "kitten does not exist",
        ),
        (None, {"classes": {"cat": "red"}}, DataError, "wild_dog: classes does not name this folder"),
        (None, {"templates": ["a photo"]}, ConfigError, "template 'a photo' has no {} for the class name"),
        (None, {"templates": "a {}"}, ConfigError, "a list of one or more texts is needed"),
    ],
)
def test_a_bad_folder_or_setting_is_named(photos, damage, settings, error, words):
    if damage is not None:
        damage(photos)
    with pytest.raises(error, match=words):
        zero_shot_folder(ColourCLIP(), preprocess, tokenize, photos, **{"classes": {**NAMED}, **settings})
