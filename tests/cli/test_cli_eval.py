"""``diva-rs eval``: what it loads, prints and writes, and how mistakes are reported."""

import csv
import json
import subprocess
import sys

import open_clip
import pytest
import torch
import transformers

from builders import detail
from builders.benchmarks import captions_folder, photos_folder, shapes_folder
from builders.cli import MODEL, SCORED, SCORED_CONFIG, message
from builders.clips import IMAGE, clip_variants
from builders.evaluations import post_trained
from builders.mmvp import mmvp_folder
from builders.texts import word_tokenizer
from diva_rs import evaluation
from diva_rs._base.checkpoint import save_weights
from diva_rs.cli import main
from diva_rs.cli.models import load_other, load_scored
from diva_rs.errors import ConfigError, WeightsError
from diva_rs.evaluation import benchmark, mmvp_vlm
from diva_rs.report import write

CPU = torch.device("cpu")


def run(capsys, *argv):
    code = main(["eval", *map(str, argv), "--no-progress", "--device", "cpu"])
    output = capsys.readouterr()
    assert code == 0, output.err
    return output.out


@pytest.mark.parametrize("spelled", ["after", "after/clip.safetensors", "model"])
def test_mmvp_of_two_models(capsys, tmp_path, weights, clip, spelled):
    root = mmvp_folder(tmp_path, pairs=1)
    other = f"{SCORED}:{weights}/after/clip.safetensors" if spelled == "model" else weights / spelled
    told = run(capsys, "mmvp", "--clip", clip, "--data", root, "--compare", other, "--out", tmp_path / "out")
    before, after = (
        mmvp_vlm(*load_scored(f"{SCORED}:{weights}/{place}/clip.safetensors", CPU), root)
        for place in ("before", "after")
    )
    assert str(before) in told and str(after) in told and str(before.compare(after)) in told
    stored = json.loads((tmp_path / "out" / "mmvp.json").read_text())
    assert stored["before"]["average"] == before.average and stored["after"]["average"] == after.average
    assert stored["changes"]["mmvp"]["p_value"] == before.compare(after).p_value
    for place, result in (("before", before), ("after", after)):
        with open(tmp_path / "out" / f"mmvp-{place}.csv", newline="") as opened:
            rows = list(csv.DictReader(opened))
        assert [int(row["correct"]) for row in rows] == [pair.correct for pair in result.pairs]


def test_mmvp_under_a_published_embedding(capsys, tmp_path, clip):
    root = mmvp_folder(tmp_path, pairs=1)
    argv = ["mmvp", "--clip", clip, "--data", root, "--embedding", "official-openai", "--seed", "3"]
    told = run(capsys, *argv, "--out", tmp_path / "out")
    expected = mmvp_vlm(*load_scored(clip, CPU), root, "official-openai", 3)
    assert str(expected) in told
    stored = json.loads((tmp_path / "out" / "mmvp.json").read_text())
    assert stored["scores"]["seed"] == 3 and stored["scores"]["embedding"] == "official-openai"
    assert stored["scores"]["pairs"] == json.loads(json.dumps(expected.to_dict()))["pairs"]


@pytest.mark.parametrize("task", ["pairs", "captions"])
def test_detail_of_two_models_with_retention_beside_it(capsys, tmp_path, weights, clip, task):
    detail.pairs_jsonl(tmp_path / "pairs", ["group", "none", "text"])
    detail.sugarcrepe(tmp_path / "captions", {"swap_obj": [True] * 3, "add_att": [True] * 2})
    argv = [task, "--clip", clip, "--data", tmp_path / task, "--compare", weights / "after"]
    photos = photos_folder(tmp_path)
    told = run(capsys, *argv, "--retention", photos, "--out", tmp_path / "out")
    before, after = (
        getattr(evaluation, task)(
            *load_scored(f"{SCORED}:{weights}/{place}/clip.safetensors", CPU), tmp_path / task
        )
        for place in ("before", "after")
    )
    lines = told.splitlines()
    assert sum(line.startswith("retention: zero-shot  2 of 4 images right") for line in lines) == 2
    assert str(before.compare(after)) in lines and "needed: the smallest difference" in told
    rules = [line.split("  ")[0] for line in lines if line.endswith("McNemar p  needed")]
    assert rules == [before[rule].title for rule in before.rules]
    stored = json.loads((tmp_path / "out" / f"{task}.json").read_text())
    assert stored["after"]["scores"][before.rule]["right"] == after.right
    assert stored["retention"]["change"]["items"] == 4
    with open(tmp_path / "out" / f"{task}-after.csv", newline="") as opened:
        assert len(list(csv.DictReader(opened))) == sum(map(len, after.rules.values()))
    assert "retention not measured (--retention FOLDER)" in run(capsys, *argv)
    # The page and the comparison read what was written.
    file = str(tmp_path / "out" / f"{task}.json")
    assert main(["compare", file, file]) == 0
    assert f"{before.title}  " in capsys.readouterr().out
    page = write(post_trained(), tmp_path / "page", before=file, after=file).read_text()
    assert f"{before.right} → {after.right} of {before.asked}" in page and "Retention, image folder" in page


def test_zero_shot_on_an_image_folder(capsys, tmp_path, weights, clip):
    photos = photos_folder(tmp_path)
    argv = ["zero-shot", "--clip", clip, "--data", photos, "--template", "a {}", "--template", "one {c}"]
    told = run(capsys, *argv, "--compare", weights / "after", "--out", tmp_path / "out")
    assert "wild dog" in told and "exact McNemar" in told
    with open(tmp_path / "out" / "zero-shot-after.csv", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["file"] for row in rows] == ["cat/0.png", "cat/1.png", "wild_dog/0.png", "wild_dog/1.png"]


def test_zero_shot_and_retrieval_on_data_sets(capsys, tmp_path, weights, clip):
    shapes_folder(tmp_path)
    captions_folder(tmp_path)
    common = ["--clip", clip, "--data", tmp_path, "--compare", weights / "after", "--workers", 0]
    told = run(capsys, "zero-shot", *common, "--datasets", "wds/shapes, birdsnap", "--out", tmp_path / "out")
    assert "birdsnap    missing: clip-benchmark does not have it" in told
    assert "wds/shapes: " in told and "of 8, exact McNemar p" in told
    stored = json.loads((tmp_path / "out" / "zero-shot.json").read_text())
    assert stored["before"]["scores"][0]["items"] == 8 and list(stored["after"]["missing"]) == ["birdsnap"]
    told = run(capsys, "retrieval", *common, "--datasets", "wds/captions", "--recall", "1,2")
    assert "mean_recall@1" in told and told.rstrip().endswith(" points")


def test_an_interrupted_suite_has_written_its_finished_data_sets(capsys, tmp_path, monkeypatch, clip):
    captions_folder(shapes_folder(tmp_path))
    find = benchmark.open_dataset

    def interrupted(name, *rest):
        if name == "wds/captions":
            raise KeyboardInterrupt
        return find(name, *rest)

    monkeypatch.setattr(benchmark, "open_dataset", interrupted)
    argv = ["eval", "zero-shot", "--clip", clip, "--data", str(tmp_path), "--workers", "0", "--no-progress"]
    out = tmp_path / "out"
    assert main([*argv, "--datasets", "wds/shapes,birdsnap,wds/captions", "--out", str(out)]) != 0
    stored = json.loads((out / "zero-shot.json").read_text())["scores"]
    assert stored["scores"][0]["items"] == 8 and list(stored["missing"]) == ["birdsnap"]
    assert "wds/shapes" in (out / "zero-shot.csv").read_text()


RETRIEVAL = ("retrieval", "--clip", SCORED, "--data", ".")
MMVP = ("mmvp", "--clip", SCORED, "--data", ".")
MISTAKES = [
    (("mmpv",), "did you mean 'mmvp'"),
    (("mmvp",), "--clip is needed: "),
    (("mmvp", "--clip", SCORED), "--data is needed: "),
    (("mmvp", "--clip", SCORED, "--data", "no/such"), "--data no/such: there is no such folder"),
    ((*MMVP, "--embedding", "official-openia"), "did you mean 'official-openai'"),
    ((*MMVP, "--seed", "x"), "--seed=x: it must be an integer of at least 0"),
    ((*RETRIEVAL, "--recall", "a"), "--recall=a: it must be one or more values, each an integer"),
    (MMVP, "holds no file Questions.csv"),
    ((*MMVP, "--half", "test"), "--half has no meaning for eval mmvp: it goes with pairs, captions, suite"),
    ((*RETRIEVAL, "--retention", "."), "--retention has no meaning for eval retrieval: it goes with mmvp"),
    ((*MMVP, "--retention", "no/such"), "--retention no/such: there is no such folder"),
    (("pairs", *MMVP[1:], "--benchmark", "winogruond"), "did you mean 'winoground'"),
    (RETRIEVAL, "no data set is named"),
    ((*MMVP, "--embeding"), "unknown argument '--embeding'; did you mean '--embedding'"),
]


@pytest.mark.parametrize(("argv", "words"), MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, argv, words):
    assert words in message(capsys, ["eval", *argv])


def test_the_module_runs_as_a_program(tmp_path):
    task = ["mmvp", "--clip", "ViT-B-32", "--data", tmp_path / "none"]
    argv = [sys.executable, "-m", "diva_rs.cli", "eval", *task]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"diva-rs: error: --data {tmp_path}/none: there is no such folder or file\n"


def test_an_open_clip_folder_brings_its_own_pixels(tmp_path, weights, clip):
    config = {"model_cfg": SCORED_CONFIG, "preprocess_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_weights(tmp_path / "open_clip_model.safetensors", open_clip.create_model(SCORED).state_dict())
    own, transform, tokenizer = load_scored(str(tmp_path), CPU)
    assert own.visual.image_mean == (0.1,) * 3 or list(own.visual.image_mean) == [0.1] * 3
    assert list(transform.transforms[-1].mean) == [0.1] * 3 and not own.training
    assert tokenizer(["a photo"]).shape == (1, 77)


def test_weights_of_another_model_are_refused(tmp_path, weights, clip):
    save_weights(tmp_path / "clip.safetensors", {"visual.proj": torch.zeros(3, 3)})
    with pytest.raises(WeightsError, match=r"is in the model, but not in "):
        load_other(str(tmp_path), load_scored(clip, CPU), CPU, clip)


def test_an_exported_folder_is_scored_like_its_model(capsys, tmp_path, weights, clip):
    root, folder = mmvp_folder(tmp_path / "data", pairs=1), tmp_path / "exported"
    assert main(["export", "--clip", clip, "--to", "transformers", "--out", str(folder)]) == 0
    assert "tokenizer" not in capsys.readouterr().out
    told = run(capsys, "mmvp", "--clip", folder, "--data", root, "--compare", clip)
    assert told.count("average") == 2 and "0 gained, 0 lost of 9" in told
    # Again from the folder: its tokenizer goes with it.
    assert main(["export", "--clip", str(folder), "--to", "transformers", "--out", f"{folder}-2"]) == 0
    assert "tokenizer" not in capsys.readouterr().out
    assert (tmp_path / "exported-2" / "tokenizer_config.json").is_file()


def test_an_export_without_a_tokenizer_says_which_flag_brings_one(capsys, tmp_path, clip):
    folder, root = tmp_path / "exported", mmvp_folder(tmp_path / "data", pairs=1)
    assert main(["export", "--clip", MODEL, "--to", "transformers", "--out", str(folder)]) == 0
    assert "has no tokenizer: diva-rs eval needs --tokenizer" in capsys.readouterr().out
    argv = ["eval", "mmvp", "--clip", str(folder), "--data", str(root)]
    assert "or give --tokenizer" in message(capsys, argv)
    assert "did you mean" in message(capsys, [*argv, "--tokenizer", "diva-scored-tini"])
    assert main(["export", "--clip", clip, "--to", "transformers", "--out", str(folder)]) == 0
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / file).unlink()
    assert "9" in run(capsys, *argv[1:], "--tokenizer", SCORED)


@pytest.mark.parametrize("name", ["transformers-clip", "transformers-siglip"])
def test_a_transformers_folder_brings_its_processor(capsys, tmp_path, name):
    folder = tmp_path / "model"
    model = clip_variants()[name]()
    model.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"holds no preprocessor_config\.json or processor_config"):
        load_scored(str(folder), CPU)
    family = transformers.SiglipImageProcessor if "siglip" in name else transformers.CLIPImageProcessor
    square = {"height": IMAGE, "width": IMAGE}
    family(size=square, crop_size=square).save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"holds no tokenizer\.json or vocab"):
        load_scored(str(folder), CPU)
    word_tokenizer(64, 2 if "siglip" in name else model.config.text_config.eos_token_id).save_pretrained(
        folder
    )
    root = mmvp_folder(tmp_path, pairs=1)
    save_weights(tmp_path / "run.safetensors", model.state_dict())
    told = run(capsys, "mmvp", "--clip", folder, "--data", root, "--compare", tmp_path / "run.safetensors")
    assert told.count("average") == 2 and "0 gained, 0 lost of 9" in told
