"""The examples of the reference run in a fresh namespace, after what their page says to paste first."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {page.stem: page.read_text() for page in sorted((DOCS / "reference").glob("*.md"))}
FIRST = {name: re.search(r"```python\n(.*?)```", text, re.DOTALL) for name, text in PAGES.items()}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def names(page):
    """What the page documents: its placeholders are modules, as in docs/conf.py, with their public names."""
    found = re.findall(r"\{\{ (\w+) \}\}", PAGES[page])
    modules = [name for name in found if name not in ("recipe_fields", "presets", "commands")]
    for module in (f"diva_rs.{name.replace('_', '.', 1)}".removesuffix(".diva.rs") for name in modules):
        place = importlib.import_module(module)
        own = (name for name, value in vars(place).items() if getattr(value, "__module__", "") == module)
        for name in getattr(place, "__all__", own):
            yield f"{module}.{name}", getattr(place, name)


def examples(page):
    """Those of what the page documents and of its bases in the package, each once."""
    finder, found = doctest.DocTestFinder(exclude_empty=True), {}
    for name, value in names(page):
        bases = [base for base in getattr(value, "__mro__", ()) if base.__module__.startswith("diva_rs.")]
        for part in bases or [value] * inspect.isroutine(value):
            for test in finder.find(part, name, module=False, globs={}):
                found.setdefault(test.docstring, test)
    return [test for test in found.values() if test.examples]


EXAMPLES = [
    pytest.param(page, test, id=test.name.removeprefix("diva_rs."))
    for page in PAGES
    if FIRST[page]
    for test in examples(page)
]


@pytest.mark.parametrize(("page", "test"), EXAMPLES)
def test_an_example_runs_as_pasted(page, test, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(FIRST[page][1], test.globs)
    told = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=told.append)
    assert result.attempted and not result.failed, "".join(told)


def test_what_users_read_first_has_examples():
    shown = {each.values[1].name.removeprefix("diva_rs.") for each in EXAMPLES}
    assert {"post_train", "Trainer", "FeedbackLoss", "Teacher", "Recipe", "draw"} <= shown
    assert {f"captions.{name}" for name in ("Judge", "CaptionTerm", "Vocabulary")} <= shown
    assert len(shown) > 100
