"""``diva-rs export``: a CLIP as other code loads it."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diva_rs.cli.models import load_clip, pick_device
from diva_rs.errors import ConfigError

HELP = "write a CLIP for open_clip, for transformers (LLaVA) or for OpenAI's clip"
USAGE = "diva-rs export --clip MODEL[:WEIGHTS] --to open_clip|transformers|openai --out PATH [options]"

_LAYOUTS = ("open_clip", "transformers", "openai")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument(
        "--clip",
        metavar="MODEL",
        help="open_clip MODEL:WEIGHTS (a pretrained tag or a file such as runs/a/clip.safetensors), "
        "hf-hub:..., or a transformers or open_clip folder",
    )
    parser.add_argument("--to", metavar="LAYOUT", help=f"one of {', '.join(_LAYOUTS)}")
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="open_clip: a .safetensors or .pt file; transformers: a folder; openai: a .pt file",
    )
    parser.add_argument(
        "--vision-only", action="store_true", help="transformers: leave the text tower out, as LLaVA does"
    )
    parser.add_argument("--half", action="store_true", help="openai: matrices in float16")


def run(args: argparse.Namespace) -> int:
    """Export; returns the exit code."""
    for name in ("clip", "to", "out"):
        if getattr(args, name) is None:
            raise ConfigError(f"export needs --{name}: {USAGE}")
    if args.to not in _LAYOUTS:
        raise ConfigError(f"--to {args.to}: one of {', '.join(_LAYOUTS)} is needed")
    if args.vision_only and args.to != "transformers":
        raise ConfigError(
            "--vision-only goes with --to transformers: the other layouts always hold both towers"
        )
    if args.half and args.to != "openai":
        raise ConfigError("--half goes with --to openai")
    from diva_rs.clip import export

    clip = load_clip(args.clip, pick_device("cpu"), "fp32")
    write: dict[str, Callable[[], Path]] = {
        "open_clip": lambda: export.to_open_clip(clip, args.out),
        "transformers": lambda: export.to_transformers(clip, args.out, vision_only=args.vision_only),
        "openai": lambda: export.to_openai(clip, args.out, half=args.half),
    }
    path = write[args.to]()
    print(f"{path} is written; it loads with\n  {_how(args.to, path, args.clip, clip)}")
    return 0


def _how(layout: str, path: Path, spec: str, clip: Any) -> str:
    if layout == "openai":
        return f'clip.load("{path}")'
    if layout == "open_clip":
        name = (
            "NAME"
            if Path(spec).exists() or spec.startswith(("hf-hub:", "local-dir:"))
            else spec.split(":")[0]
        )
        return f'open_clip.create_model_and_transforms("{name}", pretrained="{path}")'
    siglip = "siglip" in (path / "config.json").read_text(encoding="utf-8")
    return f'transformers.{"Siglip" if siglip else "CLIP"}VisionModel.from_pretrained("{path}")'
