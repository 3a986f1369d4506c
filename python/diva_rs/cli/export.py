"""``diva-rs export``: a CLIP as other code loads it."""

import argparse
from pathlib import Path
from typing import Literal

from pydantic import Field

from diva_rs.cli.flags import Options, add_flags, given
from diva_rs.cli.models import load_clip, pick_device, tokenizer_of
from diva_rs.cli.options import CLIP
from diva_rs.clip import export
from diva_rs.errors import ConfigError

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
        own = tokenizer_of(options.clip) if _has_tokenizer(Path(options.clip)) else None
        path = export.to_transformers(clip, options.out, vision_only=options.vision_only, processor=own)
        if not options.vision_only and not _has_tokenizer(path):
            print(f"{path} has no tokenizer: diva-rs eval needs --tokenizer, or the model's own saved there")
    print(f"{path} is written; it loads with\n  {_how(options.to, path, options.clip)}")
    return 0


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer_config.json").is_file()


def _how(layout: str, path: Path, spec: str) -> str:
    """The line of Python that loads the file."""
    if layout == "openai":
        return f'clip.load("{path}")'
    if layout == "open_clip":
        folder = Path(spec).exists() or spec.startswith(("hf-hub:", "local-dir:"))
        name = "NAME" if folder else spec.split(":")[0]
        return f'open_clip.create_model_and_transforms("{name}", pretrained="{path}")'
    siglip = "siglip" in (path / "config.json").read_text(encoding="utf-8")
    return f'transformers.{"Siglip" if siglip else "CLIP"}VisionModel.from_pretrained("{path}")'
