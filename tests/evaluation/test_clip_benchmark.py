"""Zero-shot and retrieval through clip-benchmark, run for real on small data sets in its own formats."""

import csv
import json
import os
import shutil
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.utils.data import DataLoader

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
from builders.evaluations import retrieval as recalls
from builders.small import SIDE, small_clip
from diva_rs.errors import ConfigError, DataError, DependencyError
from diva_rs.evaluation import SUITES, Embedder, retrieval, wilson_interval, zero_shot, zero_shot_folder
from diva_rs.evaluation.zero_shot_folder import _class_vector

QUIET = {"progress": False, "workers": 0}
GREY_IS_RED = ColourCLIP(confused={"grey": "red"})
clip_pixels = image_transform_v2(PreprocessCfg(size=SIDE), is_train=False)


def planted(root, datasets, *suite, clip=None, run=zero_shot, **settings):
    """The scores of a model with planted answers, by default one that knows all colours."""
    return run(clip or ColourCLIP(), preprocess, tokenize, root, datasets, *suite, **{**QUIET, **settings})


def of_model(root, dataset, clip=None, run=zero_shot, **settings):
    """The score of a real model."""
    clip = small_clip().eval() if clip is None else clip
    return run(clip, clip_pixels, texts.tokenize, root, dataset, **{**QUIET, **settings})[dataset]


def test_a_planted_model_scores_what_was_planted(tmp_path):
    root = shapes_folder(tmp_path, labels=[0, 1, 2, 3, 3, 3, 2, 0])
    clip = ColourCLIP(confused={"grey": "red"}).train()
    result = planted(root, "wds/shapes", clip=clip)
    score = result["wds/shapes"]
    assert score.value == score.metrics["acc1"] == pytest.approx(100 * 5 / 8)
    assert score.metrics["mean_per_class_recall"] == pytest.approx(100 * 3 / 4)
    assert score.interval == pytest.approx([100 * end for end in wilson_interval(5, 8)])
    assert score.items == 8
    assert score.outcomes == (True, True, True, False, False, False, True, True)
    assert result.missing == {} and result.average == score.value and clip.training
    # Compared with a model that knows all.
    change = result.compare(planted(root, "wds/shapes"))["wds/shapes"]
    assert (change.gained, change.lost, change.before, change.after) == ((3, 4, 5), (), result.average, 100)
    assert planted(root, "wds/shapes", clip=clip) == result


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
    ours = of_model(root, "wds/shapes", clip, batch=5, workers=workers)
    dataset = build_dataset("wds/shapes", str(root / "shapes"), clip_pixels, "test")
    loader = DataLoader(dataset.batched(23), batch_size=None)
    loader.dataset.classes = dataset.classes
    theirs = zeroshot_classification.evaluate(
        clip, loader, texts.tokenize, dataset.classes, dataset.templates, "cpu", amp=False
    )
    assert dataset.classes == list(COLOURS) and dataset.templates == list(TEMPLATES)
    assert ours.items == 23
    for name in ("acc1", "mean_per_class_recall"):
        assert ours.metrics[name] == pytest.approx(100 * theirs[name])


def test_a_multi_label_set_is_scored_by_mean_average_precision(tmp_path):
    rows = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]
    score = planted(tags_folder(tmp_path, rows), "wds/tags")["wds/tags"]
    assert score.metric == "mean_average_precision" and score.interval is None and score.items == 4
    # Three classes come first wholly; grey ranks its own image first and the other somewhere in the tie.
    assert 100 * (3 + (1 + 2 / 4) / 2) / 4 <= score.value <= 100


def test_clip_benchmarks_own_converter_writes_what_is_read(tmp_path):
    from clip_benchmark.webdataset_builder import PIL_to_bytes, convert_dataset

    class Colours(list):
        classes, templates = list(COLOURS), list(TEMPLATES)

    pairs = Colours((image(name), k) for k, name in enumerate(COLOURS))
    convert_dataset(pairs, "test", str(tmp_path / "colours"), transform=PIL_to_bytes("webp"), verbose=False)
    score = planted(tmp_path, "wds/colours")["wds/colours"]
    assert (score.value, score.items) == (100, 4)


def test_a_data_set_that_clip_benchmark_reads_as_a_folder(tmp_path, caplog):
    # fer2013: an image folder of seven classes under root/test, with clip-benchmark's names for them.
    for number, name in enumerate(["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"]):
        folder = tmp_path / "fer2013" / "test" / name
        folder.mkdir(parents=True)
        Image.new("L", (48, 48), 30 * number + 20).save(folder / "0.png")
    score = of_model(tmp_path, "fer2013")
    assert score.items == 7 and set(score.metrics) == {"acc1", "acc5", "mean_per_class_recall"}
    assert score.metrics["acc5"] >= score.metrics["acc1"] == pytest.approx(score.value)
    # What torchvision leaves out is said, also endings that diva_rs's own readers take.
    for name in ("1.HEIC", "2.avif"):
        shutil.copy(folder / "0.png", folder / name)
    with caplog.at_level("INFO"):
        of_model(tmp_path, "fer2013")
    assert (
        "zero-shot on fer2013: 7 images used, 2 left out: 1 with the ending .heic (surprise/1.HEIC), "
        "1 with the ending .avif (surprise/2.avif)"
    ) in caplog.text
    shutil.rmtree(tmp_path / "fer2013" / "test" / "fear")
    with pytest.raises(DataError, match="fer2013/test has 6 class folders, but the data set has 7 classes"):
        of_model(tmp_path, "fer2013")


def test_a_shard_that_would_not_be_read_is_an_error(tmp_path):
    shapes_folder(tmp_path, shards=3)
    folder = tmp_path / "shapes" / "test"
    (folder / "nshards.txt").write_text("2")
    with pytest.raises(DataError, match=r"nshards\.txt says 2 shards, and 3 are there"):
        planted(tmp_path, "wds/shapes")
    (folder / "nshards.txt").write_text("3")
    with tarfile.open(folder / "0.tar") as tar:
        between = tar.getmembers()[-2].offset
    os.truncate(folder / "0.tar", between)
    with pytest.raises(DataError, match=r"0\.tar is not a complete tar: its end mark is missing"):
        planted(tmp_path, "wds/shapes")


def test_retrieval_finds_what_was_planted(tmp_path):
    root = captions_folder(tmp_path)
    known = planted(root, "wds/captions", run=retrieval, recall=(1, 2))["wds/captions"]
    names = [f"{side}_retrieval_recall@{k}" for side in ("image", "text") for k in (1, 2)]
    assert known.metrics == dict.fromkeys(names, 100.0) and known.value == 100 and known.items == 4
    # Grey images look red: two of eight captions miss their image for sure, two more may lose the tie.
    score = planted(root, "wds/captions", clip=GREY_IS_RED, run=retrieval, recall=(1,))["wds/captions"]
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
    ours = of_model(tmp_path, "flickr8k", clip, retrieval, recall=(1, 5))
    dataset = build_dataset("flickr8k", str(root), clip_pixels, "test", task="zeroshot_retrieval")
    loader = DataLoader(dataset, 8, collate_fn=get_dataset_collate_fn("flickr8k"))
    theirs = zeroshot_retrieval.evaluate(clip, loader, texts.tokenize, "cpu", amp=False, recall_k_list=[1, 5])
    assert ours.metrics == pytest.approx({name: 100 * value for name, value in theirs.items()})


@pytest.mark.parametrize("name", ["transformers-clip", "transformers-siglip", "openai"])
def test_other_libraries_run_through_clip_benchmark(tmp_path, name):
    clip = clip_variants()[name]()
    captions_folder(shapes_folder(tmp_path))
    shapes = of_model(tmp_path, "wds/shapes", clip)
    assert shapes.items == 8 and 0 <= shapes.value <= 100
    # The same decisions as from the embeddings themselves.
    folder = tmp_path / "classes"
    for i, k in enumerate([0, 1, 2, 3, 3, 2, 1, 0]):
        colour = list(COLOURS)[k]
        (folder / colour).mkdir(parents=True, exist_ok=True)
        image(colour, shade=i).save(folder / colour / f"{i}.png")
    named = {name: name for name in COLOURS}
    by_folder = zero_shot_folder(clip, clip_pixels, texts.tokenize, folder, named, TEMPLATES)
    assert by_folder.accuracy == pytest.approx(shapes.value)
    assert of_model(tmp_path, "wds/captions", clip, retrieval, recall=(1,)).items == 4 and clip.training


def test_a_data_set_is_never_looked_for_in_a_folder_of_another_name(tmp_path):
    # As an image folder the root would pass for any ImageNet variant: its sub-folders look like classes.
    photos_folder(tmp_path)
    with pytest.raises(DataError, match=f"imagenet-a: there is no folder {tmp_path}/imagenet-a"):
        planted(tmp_path, "imagenet-a")
    shapes_folder(tmp_path)
    assert planted(tmp_path / "shapes", "wds/shapes")["wds/shapes"].items == 8


def test_what_cannot_be_had_is_listed_with_its_reason(tmp_path):
    captions_folder(shapes_folder(tmp_path))
    for name in ("broken/test", "cifar10", "flickr30k"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "broken" / "test" / "nshards.txt").write_text("1\n")
    (tmp_path / "broken" / "test" / "0.tar").write_bytes(b"no tar at all" * 100)
    names = [f"wds/{name}" for name in ("shapes", "captions", "broken", "none")]
    names += ["cifar10", "imagenet-a", "birdsnap", "cifar11"]
    result = planted(tmp_path / "{dataset}", names)
    assert [score.dataset for score in result.scores] == ["wds/shapes"]
    assert list(result.missing) == names[1:]
    for name, words in {
        "wds/captions": "AssertionError: Classes not specified for wds/captions",
        "wds/broken": "",
        "wds/none": f"there is no folder {tmp_path}/none",
        "cifar10": "RuntimeError: Dataset not found or corrupted",
        "birdsnap": "clip-benchmark does not have it",
        "cifar11": f"there is no folder {tmp_path}/cifar11",
    }.items():
        assert result.missing[name].startswith(words) and result.missing[name]
    told = str(result)
    assert all(name in told for name in names) and told.count("missing: ") == len(names) - 1
    with pytest.raises(DataError, match="no score for 'birdsnap': clip-benchmark does not have it"):
        result["birdsnap"]
    for name, words in {
        "flickr30k": r"flickr30k_test_karpathy\.txt is missing",
        "wds/captions": "recall@10 of 4 images: give a smaller recall",
        "wds/shapes": "it is a classification set",
    }.items():
        with pytest.raises(DataError, match=words):
            planted(tmp_path, name, run=retrieval)


def test_the_suite_of_the_paper_names_every_set_and_hides_none(tmp_path):
    from clip_benchmark.datasets.builder import dataset_collection

    names = SUITES["diva"]["zero-shot"]
    assert len(names) == len(set(names)) == 27 and len(SUITES["diva"]["retrieval"]) == 2
    known = {name for group in dataset_collection.values() for name in group}
    known |= {name.removeprefix("vtab/") for name in known} | {"food101"}
    assert set(names) - known == {"birdsnap"} and set(SUITES["diva"]["retrieval"]) <= known
    root = shapes_folder(tmp_path) / "{dataset}"
    for prefix in ("", "wds/"):
        result = planted(root, "wds/shapes", "diva", webdataset=bool(prefix))
        assert list(result.missing) == [prefix + name for name in names] and all(result.missing.values())


def test_results_are_written_whole(tmp_path):
    result = planted(shapes_folder(tmp_path), ["wds/shapes", "birdsnap"])
    told = json.loads(result.to_json(tmp_path / "scores.json").read_text())
    assert told["scores"][0]["value"] == 100 and list(told["missing"]) == ["birdsnap"]
    assert told["scores"][0]["outcomes"] == "1" * 8 and told["average"] == 100
    with open(result.to_csv(tmp_path / "scores.csv"), newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert rows[0]["dataset"] == "wds/shapes" and float(rows[0]["value"]) == 100 and rows[0]["items"] == "8"
    assert rows[1]["missing"].startswith("clip-benchmark does not have it")


def test_an_interrupted_suite_has_given_its_finished_data_sets(tmp_path):
    captions_folder(shapes_folder(tmp_path))
    kept = []

    def done(result):
        kept.append(result)
        if len(kept) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        planted(tmp_path, ["wds/shapes", "birdsnap", "wds/captions"], done=done)
    assert [score.dataset for score in kept[-1].scores] == ["wds/shapes"]
    assert list(kept[-1].missing) == ["birdsnap"] and kept[0].missing == {} and kept[-1].average == 100


@pytest.mark.parametrize(
    "given,words",
    [
        ({"datasets": ()}, "no data set is named"),
        ({"datasets": (), "suite": "div"}, "suite='div' is not known"),
        ({"confidence": 2}, "confidence=2"),
        ({"root": "{name}"}, r"only {dataset} and {dataset_cleaned} are filled in"),
    ],
)
def test_bad_settings_are_named(tmp_path, given, words):
    with pytest.raises(ConfigError, match=words):
        zero_shot(ColourCLIP(), preprocess, tokenize, **{"root": tmp_path, "datasets": "cifar10", **given})


def test_without_clip_benchmark_the_pip_command_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "clip_benchmark", None)
    with pytest.raises(DependencyError, match=r"pip install 'diva-rs\[eval\]'"):
        planted(tmp_path, "cifar10")


def test_another_measure_is_not_compared():
    first = recalls(80.0)
    score = replace(first.scores[0], metric="mean_recall@5")
    assert first.compare(recalls(79.5)) == {"flickr30k": -0.5}
    with pytest.raises(DataError, match="flickr30k: image_retrieval_recall@5 before and mean_recall@5 after"):
        first.compare(replace(first, scores=(score,)))


NAMED = {"cat": "red", "wild_dog": "blue"}


@pytest.fixture
def photos(tmp_path):
    return photos_folder(tmp_path, per_class=3)


def of_folder(root, classes=NAMED, clip=None, tokenizer=tokenize, **settings):
    return zero_shot_folder(clip or ColourCLIP(), preprocess, tokenizer, root, classes, **settings)


def test_pictures_left_out_of_a_class_are_logged(photos, caplog):
    image("red").save(photos / "cat" / "9.HEIC", "PNG")
    (photos / "notes").mkdir()
    result = of_folder(photos)
    line = "6 images used, 1 left out: 1 with the ending .heic (cat/9.HEIC)"
    assert line in caplog.text and str(result).endswith(line) and result.to_dict()["accounting"]["used"] == 6


def test_a_folder_is_scored_by_class(photos):
    clip = ColourCLIP(confused={"blue": "green"})
    result = of_folder(photos, {**NAMED, "bird": "green"}, clip, batch=4)
    assert result.accuracy == 50 and result.per_class == {"red": 100, "blue": 0}
    assert result.counts == {"red": (3, 3), "blue": (0, 3)}
    assert result.interval == pytest.approx([100 * end for end in wilson_interval(3, 6)])
    assert result.predictions[0] == ("cat/0.png", "red", "red")
    assert result.predictions[-1] == ("wild_dog/2.png", "blue", "green")
    change = result.compare(of_folder(photos))
    assert change.gained == (3, 4, 5) and change.lost == () and change.p_value == 0.25


def test_the_folders_name_is_the_class_by_default(photos):
    seen = []

    def record(texts):
        seen.extend(texts)
        return torch.zeros(len(texts), 1, dtype=torch.int64)

    result = of_folder(photos, None, tokenizer=record)
    assert seen == ["a photo of a cat.", "a photo of a wild dog."]
    assert result.per_class == {"cat": 100, "wild dog": 0}  # all alike: the first class of equal ones


def test_a_folders_templates_are_averaged_after_normalisation():
    from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier

    clip = small_clip().eval()
    embedder = Embedder(clip, clip_pixels, texts.tokenize)
    with torch.no_grad():
        theirs = zero_shot_classifier(clip, texts.tokenize, ["cat", "dog"], list(TEMPLATES), "cpu", amp=False)
        ours = torch.stack([_class_vector(embedder, name, TEMPLATES) for name in ("cat", "dog")])
    torch.testing.assert_close(ours, theirs.T)


@pytest.mark.parametrize("part", ["encode_image", "encode_text"])
def test_embeddings_that_are_not_finite_are_no_score(photos, tmp_path, monkeypatch, part):
    shapes_folder(tmp_path)
    monkeypatch.setattr(ColourCLIP, part, lambda clip, given: torch.full((len(given), 3), torch.nan))
    with pytest.raises(DataError, match="is not finite"):
        of_folder(photos)
    with pytest.raises(DataError, match=r"wds/shapes: .* is not finite"):
        zero_shot(ColourCLIP(), preprocess, tokenize, tmp_path, "wds/shapes", progress=False)


def test_classes_that_are_one_to_the_model_are_warned_of(photos):
    with pytest.warns(UserWarning, match="the classes 'cat' and 'wild dog' have the same tokens"):
        of_folder(photos, None, tokenizer=lambda texts: torch.zeros(len(texts), 1, dtype=torch.int64))


def renamed(*names):
    return lambda root: [(root / old).rename(root / new) for old, new in zip(NAMED, names, strict=True)]


def heic_alone(root):
    (root / "fox").mkdir()
    image("red").save(root / "fox" / "0.HEIC", "PNG")


@pytest.mark.parametrize(
    "damage,classes,words",
    [
        (lambda root: image("red").save(root / "loose.png"), NAMED, r"loose\.png is in no class folder"),
        (lambda root: (root / "cat" / "0.png").write_bytes(b"x"), NAMED, r"cat/0\.png: not an image"),
        (heic_alone, None, r"fox holds no image: .*1 left out: 1 with the ending \.heic \(0\.HEIC\)"),
        (lambda root: (root / "fox").mkdir(), {**NAMED, "fox": "x"}, "fox holds no"),
        (lambda root: (root / "kitten").symlink_to(root / "cat"), None, "kitten is a link to a folder that"),
        (lambda root: (root / "kitten").symlink_to(root / "gone"), None, "kitten cannot be listed: No such"),
        (lambda root: None, {"cat": "red"}, "wild_dog: classes does not name this folder"),
        (lambda root: None, {"cat": "red", "wild_dog": "red"}, "has one class alone, 'red'"),
        (lambda root: shutil.rmtree(root / "cat"), None, "has one class alone, 'wild dog'"),
        (renamed("train", "val"), None, r"holds splits \(train, val\), not classes"),
        (renamed("n01440764", "n01443537"), None, "n01440764 is named by an id of WordNet"),
    ],
)
def test_a_bad_folder_is_named(photos, damage, classes, words):
    damage(photos)
    with pytest.raises(DataError, match=words):
        of_folder(photos, classes)


@pytest.mark.parametrize("templates,words", [(["a photo"], "'a photo' has no {} for"), ("a {}", "a list of")])
def test_bad_templates_are_named(photos, templates, words):
    with pytest.raises(ConfigError, match=words):
        of_folder(photos, templates=templates)
