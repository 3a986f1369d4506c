"""What a forge reads: addresses, workflows, issue forms, the table of results."""

import json
import re
from pathlib import Path

import pytest
import yaml

import diva_rs
from diva_rs import cli
from diva_rs._base.toml import read_toml

ROOT = Path(__file__).parents[2]
ADDRESS = read_toml(ROOT / "pyproject.toml", "project")["project"]["urls"]["Repository"]
WORKFLOWS = {
    path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")
}
RESULT = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/result.yml").read_text())


def test_every_address_of_the_repository_is_that_of_pyproject():
    owner = ADDRESS.removeprefix("https://github.com/").removesuffix("/diva-rs")
    places = (
        "*.md",
        "*.toml",
        "*.cff",
        ".github/*/*",
        "docs/*.*",
        "docs/reference/*",
        "notebooks/*.ipynb",
        "python/**/*.py",
    )
    texts = {path.name: path.read_text() for place in places for path in ROOT.glob(place)}
    written = re.compile(r"(?:github\.com/|--repo )([\w-]+)/diva-rs\b")
    found = {name: owners for name, text in texts.items() if (owners := set(written.findall(text)))}
    assert {"SECURITY.md", "CITATION.cff", "config.yml", "pyproject.toml", "quickstart.ipynb"} <= found.keys()
    assert set().union(*found.values()) == {owner}, found


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_uses_fixed_actions_and_ends(name):
    for job in WORKFLOWS[name]["jobs"].values():
        assert job["timeout-minutes"] <= 120
        for step in job["steps"]:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step.get("uses", "a/b@" + "0" * 40)), step
            assert "${{" not in step.get("run", ""), step  # values go in by the environment


def test_the_form_for_results_asks_for_what_runs_and_scores_write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    diva_rs.microworld.write_models("tiny")
    diva_rs.microworld.write_photos("photos", images=8)
    diva_rs.microworld.write_mmvp("benchmarks/MMVP_VLM", per_pattern=1)
    train = (
        "train --clip tiny/clip --teacher tiny/diffusion --data photos --output-dir run --steps 1 --batch 4"
    )
    suite = "eval suite --clip tiny/clip:run/clip.safetensors --data benchmarks --retention photos --out ."
    for line in (f"{train} --workers 0", suite):
        assert cli.main([*line.split(), "--no-progress"]) == 0
    files = {
        name: json.loads(Path(place, name).read_text())
        for place, name in (("run", "run.json"), ("run", "report.json"), (".", "suite.json"))
    }
    files["run.json"] |= files["run.json"]["recipe"]
    (scores,) = files["suite.json"]["models"].values()
    files["suite.json"] = {
        key: value for row in scores for score in row["scores"].values() for key, value in score.items()
    }
    asked = {field["id"]: field["attributes"]["description"] for field in RESULT["body"] if "id" in field}
    named = [
        (key, file)
        for text in asked.values()
        for key, file in re.findall(r"`(\w+)`[^.]*? in (\w+\.json)", text)
    ]
    assert len(named) >= 5 and all(key in files[file] for key, file in named), named
    page = (ROOT / "docs" / "model-zoo.md").read_text()
    example = re.findall(r"^(\w+) = ", page, re.MULTILINE)
    assert [*example, "files"] == list(asked)


def test_the_form_for_errors_asks_for_info(capsys):
    form = (ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text()
    assert "`diva-rs info`" in form and cli.main(["info"]) == 0
    told = capsys.readouterr().out
    assert diva_rs.__version__ in told and "report.json" in told and "`backend` in report.json" in form
