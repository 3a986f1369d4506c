"""The model card of a result and its upload: a dry run, and a folder in the place of the Hub."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from builders.evaluations import drift, folder, mmvp, post_trained, retrieval, zero_shot
from builders.runs import train
from builders.small import small_clip
from diva_rs import ConfigError, DataError, Recipe


def entry(result):
    """As a run keeps it."""
    facts = {name: getattr(result, name) for name in ("name", "kind", "is_test_set")}
    return [{**facts, "result": json.loads(json.dumps(result.to_dict()))}]


@pytest.fixture
def measured():
    """A result with MMVP-VLM, retention, drift and a number of the caller's, before and after."""
    result = post_trained(Recipe.named("diva-openai-vit-l-14-224"))
    result.clip = small_clip()
    result.report["data"] = f"ImageFolder('{Path.home()}/photos', 320 images)"
    old = {"mmvp": mmvp(range(26)), "kept": zero_shot(150), "classes": folder(40), "moved": drift()}
    new = {"mmvp": mmvp(range(35)), "kept": zero_shot(148), "classes": folder(30, 40), "moved": drift()}
    new |= {"found": retrieval(50.0)}
    result.evaluations = {
        moment: {name: entry(one) for name, one in results.items()}
        for moment, results in (("before", old), ("after", new))
    }
    rows = {"before": {"step": 0, "mine": 1.0, "mmvp": 19.3}, "after": {"step": 9, "mine": 2.0, "mmvp": 25.9}}
    result.report["evaluation"] = {
        **rows,
        "of": {"mmvp": [{"kind": "detail", "name": "MMVP-VLM"}]},
        "chosen_on_test": "MMVP-VLM",
    }
    return result


def test_a_dry_run_writes_the_files_and_a_card_that_the_hub_reads(measured, tmp_path):
    found = measured.push_to_hub(
        "me/sees", dry_run=tmp_path / "out", base_model="openai/clip", license="mit", datasets=["cc3m"]
    )
    assert found == str(tmp_path / "out")
    assert {"README.md", "clip.safetensors", "recipe.json"} <= {file.name for file in Path(found).iterdir()}
    card = ModelCard.load(Path(found) / "README.md")
    data = card.data
    assert (data.base_model, data.license, data.datasets) == ("openai/clip", "mit", ["cc3m"])
    assert {"clip", "diva-rs", "diva-openai-vit-l-14-224"} == set(data.tags)
    values = {one.dataset_name: one.metric_value for one in data.eval_results}
    assert values == {"MMVP-VLM": 25.93, "zero-shot": 75.0}
    detail, retention = card.text.split("## Detail")[1].split("## Retention")
    retention, others = retention.split("## Other scores of the run")
    assert "MMVP-VLM: 26 -> 35 of 135 right (+9)" in detail and "95% interval" in detail
    assert "cifar10: 150 -> 148 of 200 right (-2)" in retention
    assert "30 of 40 images right" in retention  # of other images than before: no comparison
    assert "flickr30k" in retention and "not measured" not in retention
    assert "mine: 1 before, 2 after" in others and "mmvp: " not in others
    assert "chosen by scores of test sets: MMVP-VLM" in others
    assert measured.recipe.describe().splitlines()[-1] in card.text
    assert "ImageFolder('~/photos', 320 images)" in card.text
    assert "as published for this recipe: 19.3 -> 25.9 %" in card.text


def test_the_card_says_what_was_not_measured(teacher, three, tmp_path):
    result = train(teacher, three, steps=1)
    text = (Path(result.push_to_hub("sees", dry_run=tmp_path)) / "README.md").read_text()
    assert "Detail was not measured in this run." in text
    assert "Retention was not measured in this run" in text and "Base model: not recorded" in text
    later = result.push_to_hub("sees", dry_run=tmp_path, before=[folder(40)], after=[folder(30)])
    text = (Path(later) / "README.md").read_text()
    assert "zero-shot: 40 -> 30 of 50 right (-10)" in text and "Retention was not" not in text


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder in the place of the Hub, with a repository in each of its folders."""
    place = tmp_path / "hub"

    class Local:
        def __init__(self, **about):
            assert about["library_name"] == "diva-rs"

        def create_repo(self, repo_id, private, exist_ok):
            assert exist_ok
            (place / repo_id).mkdir(parents=True, exist_ok=True)
            (place / repo_id / "private").write_text(str(private))
            return f"https://hub/{repo_id}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, place / repo_id, dirs_exist_ok=True)

    monkeypatch.setattr(huggingface_hub, "HfApi", Local)
    return place


def test_everything_is_uploaded_and_loads_as_the_card_says(measured, hub):
    assert measured.push_to_hub("me/sees", private=True) == "https://hub/me/sees"
    assert (hub / "me/sees/private").read_text() == "True"
    model = small_clip(seed=9)
    model.load_state_dict(load_file(hub / "me/sees/clip.safetensors"))
    assert all(value.equal(measured.clip.state_dict()[name]) for name, value in model.state_dict().items())


def test_errors_name_the_repository_and_the_reason(measured, hub, monkeypatch):
    with pytest.raises(ConfigError, match="repo_id 'me/a/b': a name as owner/model is needed"):
        measured.push_to_hub("me/a/b", dry_run=True)

    def refused(self, *args, **given):
        raise OSError("401 Client Error")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refused)
    with pytest.raises(DataError, match="me/sees could not be written: OSError: 401 Client Error"):
        measured.push_to_hub("me/sees")
