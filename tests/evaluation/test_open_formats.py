"""A benchmark that diva_rs does not know is added from outside: one file, found by an entry point."""

import pytest

from builders.detail import Planted, pair_rows, picture
from builders.installed import install
from builders.mmvp import preprocess
from diva_rs.errors import DataError
from diva_rs.evaluation import find_benchmarks, pairs
from diva_rs.evaluation.formats import formats

FORMAT = """
from diva_rs.evaluation.items import Benchmark, Item, Picture, pair_tasks

NAME, KIND, LOOKS_FOR = "twins", "pairs", "twins.txt"


def matches(root):
    return (root / "twins.txt").is_file()


def read(root, images):
    items = []
    for number, line in enumerate((root / "twins.txt").read_text().splitlines()):
        captions = tuple(line.split("|"))
        pictures = tuple(Picture.of_file(root / f"{2 * number + n}.png", line) for n in (0, 1))
        items.append(Item(str(number), "twins", captions, pictures, line))
    return Benchmark("Twins", tuple(pair_tasks(items).values()), str(root))
"""


@pytest.fixture
def folder(tmp_path):
    model = Planted()
    rows = pair_rows(model, ["group", "none"])
    for number in range(4):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "twins.txt").write_text("".join("|".join(row["captions"]) + "\n" for row in rows))
    return tmp_path, model


@pytest.fixture
def installed(tmp_path_factory, monkeypatch):
    """The format as a package that pip has installed."""
    install(tmp_path_factory.mktemp("site"), monkeypatch, "twins_for_diva", FORMAT, "diva_rs.benchmarks")
    formats.cache_clear()
    yield
    formats.cache_clear()


def test_a_format_of_another_package_is_scored(folder, installed):
    root, model = folder
    result = pairs(model, preprocess, model.tokenize, root)
    assert (result.name, result.right, result.asked) == ("Twins", 1, 2)
    assert [name for _, name in find_benchmarks(root)] == ["twins"]


def test_without_it_the_folder_is_unknown(folder):
    root, model = folder
    with pytest.raises(DataError, match="holds no benchmark that is known"):
        pairs(model, preprocess, model.tokenize, root)
