"""The documentation site: the pages of this folder, and a reference that is made from the package."""

import argparse
import importlib
import re
from pathlib import Path

import diva_rs
from diva_rs._base.toml import read_toml
from diva_rs.cli import _COMMANDS
from diva_rs.recipes.presets import presets

HERE = Path(__file__).parent

project, author, copyright = "diva-rs", "the diva-rs developers", "the diva-rs developers"
version = release = diva_rs.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]

html_theme, html_title = "furo", f"diva-rs {version}"
html_theme_options = {"navigation_with_keys": True}
html_copy_source = html_show_sourcelink = False
pygments_style, pygments_dark_style = "tango", "monokai"
copybutton_prompt_text, copybutton_prompt_is_regexp = r">>> |\.\.\. |\$ ", True

myst_enable_extensions = ["deflist", "substitution"]
myst_heading_anchors = 4

default_role, smartquotes = "py:obj", False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False


_FIRST = "post_train PostTrainResult Recipe Stage Teacher Trainer FeedbackLoss"  # of the main names


def _fields() -> str:
    rows = (re.fullmatch(r"(.*) \[(.*)\]", text, re.DOTALL) for text in diva_rs.Recipe.fields_help().values())
    found = zip(diva_rs.Recipe.model_fields, rows, strict=True)
    lines = (f"| `{name}` | {row[1]} | {row[2]} |" for name, row in found if row)
    return "\n".join(["| field | what it is | what it takes |", "|---|---|---|", *lines])


def _presets() -> str:
    parts = []
    for name, preset in presets().items():
        rows = (f"| `{field}` | `{value!r}` | {source} |" for field, (value, source) in preset.values.items())
        about = [f"### {name}", preset.summary, *(f"* {line.strip()}" for line in preset.describe()[1:])]
        parts.append("\n".join([*about, "", "| field | value | source |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _zoo() -> str:
    rows = (f"| `{n}` | {p.summary} | {p.expected} | {p.measured} |" for n, p in presets().items())
    return "\n".join(["| recipe | model | its authors, % | here, % |", "|---|---|---|---|", *rows])


def _results() -> str:
    """The results of users, in ``zoo.toml``."""
    fields = ("recipe", "recipe_sha256", "data", "seeds", "before", "after", "retention", "weights")
    rows = read_toml(str(HERE / "zoo.toml"), "zoo")["result"]
    lines = ("| " + " | ".join(str(row[name]) for name in fields) + " |" for row in rows)
    head = [f"| {' | '.join(name.replace('_', ' ') for name in fields)} |", "|---" * len(fields) + "|"]
    return "\n".join([*head, *lines]) if rows else "Nobody has contributed a result yet."


def _commands() -> str:
    parts = []
    for name, command in _COMMANDS.items():
        parser = argparse.ArgumentParser(add_help=False)
        command.add_arguments(parser)
        rows = []
        for action in parser._actions:
            value = f" {action.metavar}" if action.metavar and action.nargs != 0 else ""
            flags = ", ".join(f"`{flag}{value}`" for flag in action.option_strings) or f"`{action.metavar}`"
            text = re.sub(r"([*<])", r"\\\1", (action.help or "").replace("%%", "%"))
            rows.append(f"{flags}\n: {text}")
        about = [f"## diva-rs {name}", command.HELP[0].upper() + command.HELP[1:] + "."]
        parts.append("\n\n".join([*about, f"```text\n{command.USAGE}\n```", *rows]))
    return "\n\n".join(parts)


def _members(module: str) -> str:
    """Directives for what a module lists in ``__all__``, or defines where it has no list; each name once:
    the main names under ``diva_rs``, the exceptions under ``diva_rs.errors``.
    """
    place = importlib.import_module(module)
    own = [name for name, value in vars(place).items() if getattr(value, "__module__", "") == place.__name__]
    names = getattr(place, "__all__", None) or [name for name in own if not name.startswith("_")]
    lines, shown = [], []
    for name in sorted(names, key=lambda name: (name not in _FIRST, _FIRST.find(name))):
        value = getattr(place, name)
        fault = isinstance(value, type) and issubclass(value, Exception)
        if name in diva_rs.__all__ and module != ("diva_rs.errors" if fault else "diva_rs"):
            continue
        kind = "class" if isinstance(value, type) else "function" if callable(value) else "data"
        shown.append(f":py:obj:`{name} <{module}.{name}>`")
        lines.append(f".. auto{'exception' if fault else kind}:: {module}.{name}")
        lines += ["   :no-value:", ""] if kind == "data" and "<function" in repr(value) else []
        if kind == "class" and not fault:  # the members of bases without an entry are those of the class
            others = [
                base.__name__
                for base in value.__mro__[1:]
                if base.__name__ in names or not base.__module__.startswith("diva_rs.")
            ]
            lines += [f"   :inherited-members: {', '.join(others)}", ""]
    about = [f".. automodule:: {module}", "   :no-members:", "", " · ".join(shown), ""]
    return "\n".join(["```{eval-rst}", *about, *lines, "```"])


_DOCUMENTED = (
    *("diva_rs", "diva_rs.errors", "diva_rs.callbacks", "diva_rs.step.terms", "diva_rs.checkpoint"),
    *("diva_rs.report", "diva_rs.export", "diva_rs.captions", "diva_rs.data", "diva_rs.diffusion"),
    *("diva_rs.evaluation", "diva_rs.microworld"),
)
myst_substitutions = {
    "recipe_fields": _fields(),
    "presets": _presets(),
    "commands": _commands(),
    "zoo": _zoo(),
    "results": _results(),
    **{module.removeprefix("diva_rs.").replace(".", "_"): _members(module) for module in _DOCUMENTED},
}


def _linked(app, page, source):
    """Include the repository's own pages; links to files beside this folder become downloads."""

    def target(found):
        text, path, anchor = found.groups()
        place = (HERE / path).resolve()
        page = HERE / f"{place.stem.lower()}.md"
        if place.suffix == ".md" and page.exists():
            return f"[{text}]({page.name}{anchor or ''})"
        return text if place.is_dir() else f"{{download}}`{text} <{path}>`"

    included = re.fullmatch(r"```\{include\} (\S+)\n```\n", source[0])
    if included:  # paths from the repository's root become paths from here
        text = (HERE / included[1]).read_text()
        source[0] = re.sub(r"(\[[^\]]*\])\((?!\w+:|#)([^)]*)\)", r"\1(../\2)", text)
    # GitHub's way to show a picture in one theme becomes furo's.
    themed = r"!\[([^\]]*)\]\((\S+)-(light|dark)\.svg#gh-\w+-mode-only\)"
    directive = r"```{image} \2-\3.svg\n:class: only-\3\n:alt: \1\n```"
    source[0] = re.sub(themed, directive, source[0])
    source[0] = re.sub(r"(?<!!)\[([^\]]*)\]\((\.\./[^)#]*)(#[^)]*)?\)", target, source[0])


_NAMED = re.compile(r"(?P<names>`{0,2}\w[\w./-]*`{0,2}(?:, `{0,2}\w+`{0,2})*) {2,}(?P<text>\S.*)")


def _listed(app, what, name, item, options, lines):
    """Aligned lines of a docstring, ``name  meaning``, become a definition list."""
    if what == "data" and (type(item).__doc__ or "").splitlines()[:1] == lines[:1]:
        lines.clear()  # that of its type
    found, inside = [], False
    for line in lines:
        match = _NAMED.fullmatch(line)
        if match:
            names = match["names"] if "`" in match["names"] else f"``{match['names']}``"
            found += [] if inside else [""]
            found += [names, f"   {match['text']}", ""]
        elif inside and line.startswith("    "):
            found[-1:] = [f"   {line.strip()}", ""]
        else:
            found.append(line)
        inside = bool(match) or (inside and line.startswith("    "))
    lines[:] = found


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", _linked)
    app.connect("autodoc-process-docstring", _listed)
