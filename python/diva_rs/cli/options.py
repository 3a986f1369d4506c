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
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from diva_rs._base.files import read_text
from diva_rs.errors import ConfigError, shown
from diva_rs.recipes.recipe import Recipe
from diva_rs.recipes.settings import Count, Settings, Whole, fields_help, kind, schemas

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Far more than a configuration has. tomllib needs memory with the square of the parts of a dotted key.
_MOST_BYTES, _MOST_DOTS = 1 << 16, 1000

Text = Annotated[str, Field(min_length=1)]


class Options(Settings):
    """The settings of all commands that are no recipe fields."""

    noun: ClassVar[str] = "the top level"

    recipe: Text | None = Field(
        default=None, description="preset to start from (diva-rs info --recipes lists them)"
    )
    clip: Text | None = Field(
        default=None,
        description="open_clip MODEL[:PRETRAINED tag or file], hf-hub:..., or a transformers or open_clip "
        "folder",
    )
    teacher: Text | None = Field(
        default=None, description="diffusers folder (or repository) of the frozen diffusion model"
    )
    data: Text | None = Field(
        default=None, description="image folder, or webdataset shards such as 'cc3m/{00000..00331}.tar'"
    )
    output_dir: Text | None = Field(
        default=None,
        description="folder of the run: log, recipe, checkpoints and weights; a run in it is resumed",
    )
    out: Text | None = Field(default=None, description="folder for the latents")
    latents: Text | None = Field(
        default=None,
        description="latent cache made by diva-rs cache; the images' views are then those that it holds",
    )
    device: Text | None = Field(
        default=None, description="cpu, cuda, cuda:1, ...; none: CUDA where there is one"
    )
    loader_batch: Count | None = Field(
        default=None, description="images per batch of the loader; none: up to 16"
    )
    workers: Whole = Field(default=2, description="processes that read images")
    prefetch: Count | None = Field(
        default=None, description="batches that each of the workers reads ahead; none: two"
    )
    on_bad_image: Literal["raise", "skip"] = Field(
        default="raise", description="what to do about an image that cannot be read"
    )
    overwrite: bool = Field(default=False, description="whether to replace what the folder holds already")
    resume: Literal["auto", "force"] = Field(
        default="auto", description="whether a run resumes only under its own settings, or under others too"
    )
    crops: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=0,
        description="random crops of each image, drawn once, that are cached; 0: the centre crop alone",
    )
    flip: bool = Field(default=False, description="whether to cache the mirror image of each crop too")
    dtype: Literal["float32", "float16"] = Field(default="float32", description="how latents are stored")
    eval_every: Count | None = Field(
        default=None, description="steps between two evaluations; none: before and after"
    )
    mmvp: Text | None = Field(default=None, description="measure MMVP-VLM: the folder with Questions.csv")
    zero_shot: Text | None = Field(
        default=None, description="measure zero-shot accuracy: an image folder with a folder per class"
    )
    drift: Count | None = Field(
        default=None, description="measure drift: mean cosine to the original on so many training images"
    )
    best: Text | None = Field(
        default=None,
        description="score whose best weights are kept in OUTPUT_DIR/best: mmvp, zero_shot, drift",
    )
    guard: Text | None = Field(
        default=None,
        description="stop where a score falls below: drift=0.95, or zero_shot=drop:1 (below the start's)",
    )
    tensorboard: Text | None = Field(default=None, description="folder for TensorBoard's files")
    wandb: Text | None = Field(default=None, description="project of Weights & Biases to log to")
    progress: bool = Field(default=True, description="whether to show a progress bar")


def add_options(parser: argparse.ArgumentParser, names: Iterable[str], fields: Iterable[str]) -> None:
    """Give a parser the flags of these options and recipe fields, and ``--config``."""
    parser.add_argument(
        "--config", metavar="FILE", help="TOML file with the same settings; a flag goes before it"
    )
    _add_flags(parser, Options, names)
    _add_flags(parser.add_argument_group("recipe fields"), Recipe, fields)


def settings(args: argparse.Namespace, names: Iterable[str]) -> tuple[dict[str, Any], Recipe]:
    """The options ``names`` and the recipe.

    Raises:
        ConfigError: a value that is not valid, or an unknown key of the file, with near ones.
    """
    top, table = read_config(args.config) if args.config else ({}, {})
    preset = top.get("recipe") or table.pop("preset", None)
    preset = vars(args).get("recipe", preset)
    recipe = Recipe() if preset is None else Recipe.named(preset)
    try:
        values = Options(**top)
        recipe = recipe.replace(**table)
    except ConfigError as err:
        raise ConfigError(f"config {args.config}: {err}") from None
    options = Options(**{**dict(values), **_given(args, Options)})
    return {name: getattr(options, name) for name in names}, recipe.replace(**_given(args, Recipe))


def read_config(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A TOML file's top level and its ``[recipe]`` table.

    Raises:
        ConfigError: the file cannot be read, is no TOML, or has an unknown key.

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
    if isinstance(table, str):
        content["recipe"], table = table, {}
    if not isinstance(table, dict):
        raise ConfigError(
            f"config {path}: recipe={shown(table)}: a preset's name or a table of fields is needed"
        )
    for name in content:
        if name in Recipe.model_fields:
            raise ConfigError(f"config {path}: {name} is a recipe field: move it into the table [recipe]")
    return _from_file(content, Options), _from_file(table, Recipe)


def needed(values: Mapping[str, Any], command: str, *names: str) -> None:
    """Raise ConfigError for an option that the command cannot do without."""
    for name in names:
        if values[name] is None:
            raise ConfigError(f"{command} needs {_flag(name)}: {Options.model_fields[name].description}")


def _add_flags(parser: Any, cls: type[Settings], names: Iterable[str]) -> None:
    texts = fields_help(cls)
    for name in names:
        schema, _ = kind(schemas(cls)[name])
        form: dict[str, Any] = {"metavar": _metavar(schema)}
        if schema.get("type") == "boolean":
            form = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(
            _flag(name), default=argparse.SUPPRESS, help=texts[name].replace("%", "%%"), **form
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _metavar(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "{" + ",".join(schema["enum"]) + "}"
    if "prefixItems" in schema:
        return ",".join(map(_metavar, schema["prefixItems"]))
    if schema.get("type") == "array":
        return "JSON" if "$ref" in schema["items"] else f"{_metavar(schema['items'])},..."
    return {"integer": "N", "number": "X"}.get(schema.get("type", ""), "TEXT")


def _given(args: argparse.Namespace, cls: type[Settings]) -> dict[str, Any]:
    """The fields that have a flag on this command line. Flags are text, except those of booleans."""
    given = {name: value for name, value in vars(args).items() if name in cls.model_fields}
    return {
        name: _parsed(value, schemas(cls)[name]) if isinstance(value, str) else value
        for name, value in given.items()
    }


def _parsed(text: str, schema: Mapping[str, Any]) -> Any:
    """The value that a flag's text means, or the text itself: the field refuses it then.

    >>> _parsed("5,1", {"type": "array", "items": {"type": "number"}}), _parsed("x", {"type": "number"})
    ((5.0, 1.0), 'x')
    """
    one, optional = kind(schema)
    if optional and text.lower() == "none":
        return None
    try:
        if one.get("type") == "array":
            item = one["items"] if "items" in one else one["prefixItems"][0]
            if "$ref" in item:
                return json.loads(text)
            parts = [_parsed(part, item) for part in text.split(",")]
            return text if any(isinstance(part, str) for part in parts) else tuple(parts)
        return {"integer": int, "number": float}.get(one.get("type", ""), str)(text)
    except ValueError:
        return text


def _from_file(content: Mapping[str, Any], cls: type[Settings]) -> dict[str, Any]:
    """TOML has no None: "none" stands for it, as on the command line."""
    values = {name.replace("-", "_"): value for name, value in content.items()}
    for name, value in values.items():
        if isinstance(value, str) and value.lower() == "none" and kind(schemas(cls).get(name, {}))[1]:
            values[name] = None
    return values
