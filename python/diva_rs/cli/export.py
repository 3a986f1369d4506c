"""``diva-rs export``: a CLIP as other code loads it."""

import argparse
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from diva_rs._base.optional import require
from diva_rs.cli.clips import folder_of, load_clip
from diva_rs.cli.flags import Options, add_flags, given
from diva_rs.cli.models import pick_device, tokenizer_of
from diva_rs.cli.options import CLIP
from diva_rs.clip import export, facts
from diva_rs.errors import ConfigError

_LLAVA = 'note: LLaVA picks the class by the path: give one {} "siglip" in it'

HELP = "write a CLIP for open_clip, for transformers (LLaVA) or for OpenAI's clip"
USAGE = "diva-rs export --clip MODEL[:WEIGHTS] --to open_clip|transformers|openai --out PATH [options]"


class ExportOptions(Options):
    """The flags."""

    clip: str = Field(description=CLIP)
    to: Literal["open_clip", "transformers", "openai"]
    """layout"""
    out: str
    """open_clip: a .safetensors or .pt file; transformers: a folder; openai: a .pt file"""
    vision_only: bool = False
    """transformers: whether to leave the text tower out, as LLaVA does"""
    half: bool = False
    """openai: whether matrices are in float16"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    add_flags(parser, ExportOptions)


def run(args: argparse.Namespace) -> int:
    """Export; returns the exit code."""
    options = ExportOptions(**given(vars(args), ExportOptions))
    if options.vision_only and options.to != "transformers":
        raise ConfigError("--vision-only goes with --to transformers: other layouts hold both towers")
    if options.half and options.to != "openai":
        raise ConfigError("--half goes with --to openai")
    clip = load_clip(options.clip, pick_device("cpu"), "fp32")
    if options.to == "open_clip":
        path = export.to_open_clip(clip, options.out)
    elif options.to == "openai":
        path = export.to_openai(clip, options.out, half=options.half)
    else:
        folder = folder_of(options.clip)
        own = tokenizer_of(str(folder)) if _has_tokenizer(folder) else None
        path = export.to_transformers(clip, options.out, vision_only=options.vision_only, processor=own)
        if not options.vision_only and not _has_tokenizer(path):
            print(f"{path} has no tokenizer: diva-rs eval needs --tokenizer, or the model's own saved there")
    print(f"{path} is written; it loads with\n  {_how(options.to, path, options.clip, clip)}")
    return 0


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer_config.json").is_file()


def _how(layout: str, path: Path, spec: str, clip: Any) -> str:
    """The line of Python that loads the file."""
    if layout == "openai":
        return f'clip.load("{path}")'
    if layout == "open_clip":
        library = require("open_clip", extra="open-clip")
        listed = library.list_models()
        quick = "quick_gelu" in facts(clip)["vision"]["activation"]
        name = spec.partition(":")[0]
        name = name if name in listed else "NAME"
        twin = f"{name}-quickgelu"
        built = name in listed and library.get_model_config(name).get("quick_gelu")
        forced = ", force_quick_gelu=True" if quick and not built else ""
        if forced and twin in listed:
            name, forced = twin, ""
        return f'open_clip.create_model_and_transforms("{name}", pretrained="{path}"{forced})'
    family = _family(path)
    siglip, named = "Siglip" in family, "siglip" in str(path).lower()
    llava = "" if siglip == named else f"\n{_LLAVA.format('with' if siglip else 'without')}"
    return f'transformers.{family}VisionModel.from_pretrained("{path}"){llava}'


def _family(folder: Path) -> str:
    """CLIP, Siglip or MetaClip2, by the folder's configuration."""
    name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    return str(name).split("Model")[0].removesuffix("Vision")
