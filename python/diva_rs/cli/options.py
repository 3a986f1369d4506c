"""Settings of a command: from its flags, a TOML file, a preset and the defaults, in this order of precedence.

The file's ``[recipe]`` table holds recipe fields (and ``preset``, the name of the recipe to start from);
everything else stands at its top level under the flag's name::

    clip = "ViT-L-14-quickgelu:openai"
    output_dir = "runs/a"

    [recipe]
    preset = "diva-openai-vit-l-14-224"
    lr = 1e-5
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from diva_rs._base.files import read_text
from diva_rs._base.settings import Kind, choice, flag, hint, integer, optional, string
from diva_rs.errors import ConfigError, shown
from diva_rs.recipes.recipe import Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Option:
    """A setting of a command that is no recipe field."""

    kind: Kind
    default: Any
    help: str


# Far more than a configuration has. tomllib needs memory with the square of the parts of a dotted key.
_MOST_BYTES, _MOST_DOTS = 1 << 16, 1000

_TEXT = optional(string(least=1))

OPTIONS: dict[str, Option] = {
    "recipe": Option(_TEXT, None, "preset to start from (diva-rs info --recipes lists them)"),
    "clip": Option(
        _TEXT,
        None,
        "open_clip MODEL[:PRETRAINED tag or file], hf-hub:..., or a transformers or open_clip folder",
    ),
    "teacher": Option(_TEXT, None, "diffusers folder (or repository) of the frozen diffusion model"),
    "data": Option(_TEXT, None, "image folder, or webdataset shards such as 'cc3m/{00000..00331}.tar'"),
    "output_dir": Option(
        _TEXT, None, "folder of the run: log, recipe, checkpoints and weights; one that is there goes on"
    ),
    "out": Option(_TEXT, None, "folder for the latents"),
    "latents": Option(
        _TEXT, None, "latent cache made by diva-rs cache; images are then seen in the views that it holds"
    ),
    "device": Option(_TEXT, None, "cpu, cuda, cuda:1, ...; none: CUDA where there is one"),
    "loader_batch": Option(optional(integer(1)), None, "images per batch of the loader; none: up to 16"),
    "workers": Option(integer(0), 2, "processes that read images"),
    "prefetch": Option(optional(integer(1)), None, "batches that each of the workers reads ahead; none: two"),
    "on_bad_image": Option(choice("raise", "skip"), "raise", "what to do about an image that cannot be read"),
    "overwrite": Option(flag(), False, "whether to begin anew in a folder that holds something already"),
    "resume": Option(
        choice("auto", "force"),
        "auto",
        "whether a run goes on only under its own settings, or under others too",
    ),
    "crops": Option(
        integer(0, 1000),
        0,
        "random crops of each image, drawn once, that are cached; 0: the centre crop alone",
    ),
    "flip": Option(flag(), False, "whether to cache the mirror image of each crop too"),
    "dtype": Option(choice("float32", "float16"), "float32", "how latents are stored"),
    "eval_every": Option(optional(integer(1)), None, "measure every so many steps; none: at begin and end"),
    "mmvp": Option(_TEXT, None, "measure MMVP-VLM: the folder with Questions.csv"),
    "zero_shot": Option(_TEXT, None, "measure zero-shot accuracy: an image folder with a folder per class"),
    "drift": Option(
        optional(integer(1)), None, "measure drift: mean cosine to the original on so many training images"
    ),
    "best": Option(
        _TEXT, None, "score whose best weights are kept in OUTPUT_DIR/best: mmvp, zero_shot, drift"
    ),
    "guard": Option(
        _TEXT, None, "stop where a score falls below: drift=0.95, or zero_shot=drop:1 (below the start's)"
    ),
    "tensorboard": Option(_TEXT, None, "folder for TensorBoard's files"),
    "wandb": Option(_TEXT, None, "project of Weights & Biases to log to"),
    "progress": Option(flag(), True, "whether to show a progress bar"),
}

_FIELDS = {field.name: field for field in dataclasses.fields(Recipe)}


def add_options(parser: argparse.ArgumentParser, names: Iterable[str], fields: Iterable[str]) -> None:
    """Give a parser the flags of these options and recipe fields, and ``--config``."""
    parser.add_argument(
        "--config", metavar="FILE", help="TOML file with the same settings; a flag goes before it"
    )
    for name in names:
        option = OPTIONS[name]
        default = "" if option.default is None else f" [default {option.default}]"
        _add_flag(parser, name, option.kind, option.help + default)
    group = parser.add_argument_group("recipe fields")
    texts = Recipe.fields_help()
    for name in fields:
        _add_flag(group, name, _FIELDS[name].metadata["kind"], texts[name])


def settings(args: argparse.Namespace, names: Iterable[str]) -> tuple[dict[str, Any], Recipe]:
    """The options ``names`` and the recipe.

    Raises:
        ConfigError: a value that is not valid, naming its flag or its place in the file; an unknown key, with
            near ones.
    """
    top, table = read_config(args.config) if args.config else ({}, {})
    given = vars(args)
    values: dict[str, Any] = {}
    for name in names:
        option = OPTIONS[name]
        values[name] = option.default
        if name in top:
            values[name] = _from_file(option.kind, top[name], f"{args.config}: {name}")
        if name in given:
            values[name] = _from_flag(option.kind, given[name], name)
    preset = given.get("recipe", top.get("recipe", table.pop("preset", None)))
    recipe = Recipe() if preset is None else Recipe.named(preset)
    from_file = {
        name: _from_file(_FIELDS[name].metadata["kind"], value, f"{args.config}: [recipe] {name}")
        for name, value in table.items()
    }
    from_flags = {
        name: _from_flag(field.metadata["kind"], given[name], name)
        for name, field in _FIELDS.items()
        if name in given
    }
    return values, recipe.replace(**from_file).replace(**from_flags)


def read_config(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A TOML file's top level and its ``[recipe]`` table.

    Raises:
        ConfigError: the file cannot be read, is no TOML, or has a key that means nothing.

    >>> import tempfile
    >>> import pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.toml"
    >>> _ = path.write_text('workers = 4\\n[recipe]\\nlr = 1e-5\\n')
    >>> read_config(str(path))
    ({'workers': 4}, {'lr': 1e-05})
    """
    try:
        text = read_text(path, _MOST_BYTES)
        if text.count(".") > _MOST_DOTS:
            raise ConfigError(f"config {path} has more than {_MOST_DOTS} dots: it is no configuration")
        content = tomllib.loads(text)
    except OSError as err:
        raise ConfigError(f"config {path} cannot be read: {err.strerror or err}") from err
    except ConfigError:
        raise
    except (ValueError, RecursionError) as err:  # not all of them are TOMLDecodeError
        raise ConfigError(f"config {path} is not valid TOML: {err}") from err
    table = content.pop("recipe", {})
    top = {name.replace("-", "_"): value for name, value in content.items()}
    if isinstance(table, str):
        top["recipe"], table = table, {}
    if not isinstance(table, dict):
        raise ConfigError(
            f"config {path}: recipe={shown(table)}: a preset's name or a table of fields is needed"
        )
    _check_keys(path, top, OPTIONS, "the top level")
    table = {name.replace("-", "_"): value for name, value in table.items()}
    _check_keys(path, table, {**_FIELDS, "preset": None}, "[recipe]")
    return top, table


def needed(values: Mapping[str, Any], command: str, *names: str) -> None:
    """Raise ConfigError for an option that the command cannot do without."""
    for name in names:
        if values[name] is None:
            raise ConfigError(f"{command} needs {_flag(name)}: {OPTIONS[name].help}")


def _add_flag(parser: Any, name: str, kind: Kind, text: str) -> None:
    text = text.replace("%", "%%")
    if kind.words == flag().words:
        parser.add_argument(
            _flag(name), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
        )
    else:
        parser.add_argument(_flag(name), default=argparse.SUPPRESS, metavar=kind.metavar, help=text)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _from_flag(kind: Kind, value: Any, name: str) -> Any:
    """Flags arrive as text (booleans as booleans); converted here, their errors read like those of a file."""
    try:
        parsed = kind.parse(value) if isinstance(value, str) else value
    except ValueError as err:
        raise ConfigError(f"{_flag(name)} {value}: {kind.words} is needed") from err
    return _converted(kind, parsed, f"{_flag(name)} {value}")


def _from_file(kind: Kind, value: Any, where: str) -> Any:
    # TOML has no None: "none" stands for it, as on the command line.
    empty = isinstance(value, str) and value.lower() == "none" and kind.words.endswith(", or None")
    return _converted(kind, None if empty else value, f"{where} = {shown(value)}")


def _converted(kind: Kind, value: Any, where: str) -> Any:
    try:
        return kind.convert(value)
    except ValueError as err:
        raise ConfigError(f"{where}: {err}") from err


def _check_keys(path: str, given: Iterable[str], known: Mapping[str, Any], where: str) -> None:
    for name in given:
        if name not in known:
            near = hint(name, known) or f": known are {', '.join(known)}"
            # A recipe field at the top level is the likeliest slip.
            near = "; it belongs into the table [recipe]" if name in _FIELDS else near
            raise ConfigError(f"config {path}: unknown key {shown(name)} at {where}{near}")
