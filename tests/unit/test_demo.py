"""The demo: the same table twice, a report with its pictures, and what it says on the way."""

import pytest

from diva_rs import demo
from diva_rs.demo import photographs


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """Two short runs in folders of their own."""
    return [
        demo.run(tmp_path_factory.mktemp("demo"), steps=4, progress=False, per_pattern=4, images=96)
        for _ in range(2)
    ]


def test_the_table_is_the_same_twice_and_has_a_row_for_everything(twice):
    assert twice[0].table == twice[1].table
    for row in ("mini-MMVP", "Color and Appearance", "zero-shot objects", "probes of the class token", "border"):
        assert row in twice[0].table
    assert twice[0].before.mmvp.average == twice[1].before.mmvp.average


def test_the_report_shows_the_reconstructions(twice):
    page = (twice[0].folder / "report.html").read_text()
    assert 'class="picture"' in page and "data:image/png;base64," in page
    assert (twice[0].folder / "reconstructions.png").stat().st_size > 10_000
    assert "with the noise of timestep 600" in (twice[0].folder / "report.md").read_text()


def test_the_photographs_still_run(tmp_path, capsys):
    result = photographs.run(tmp_path / "run", steps=1, progress=False)
    assert result.report["steps"] == 1
    assert "the same embeddings" in capsys.readouterr().out
