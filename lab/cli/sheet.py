"""``python -m lab sheet``: images that a world's teacher draws from captions, and what is seen in them."""

import argparse
from pathlib import Path
from typing import Any

from lab.cli.numbers import count, seed

HELP = "images that a world's teacher generates, and how many attributes are as captioned"
USAGE = "python -m lab sheet --output-dir FOLDER [--world FOLDER] [options]"

_SHOWN = 24  # images of the sheet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("--output-dir", metavar="FOLDER", required=True, help="for sheet.png and sheet.json")
    parser.add_argument("--world", metavar="FOLDER", help="checkpoints of a world [default: the package's]")
    parser.add_argument("--images", metavar="N", type=count, default=512, help="to generate [default 512]")
    parser.add_argument("--guidance", metavar="S", type=float, default=3.0, help="of the empty text [3]")
    parser.add_argument("--fitted", metavar="N", type=count, default=16384, help="images for the classifier")
    parser.add_argument("--steps", metavar="N", type=count, default=2000, help="of the classifier [2000]")
    parser.add_argument("--seed", metavar="N", type=seed, default=0, help="of noise and weights [default 0]")


def run(args: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from diva_rs._base.files import make_folder, write_json
    from diva_rs.microworld.models import fresh
    from diva_rs.microworld.pretrained import SHIPPED
    from lab.pretraining.data import Pixels
    from lab.pretraining.generated import Classifier, Decoded, generate, read, train_reader
    from lab.world import StudyWorld

    folder = make_folder(args.output_dir)
    world = StudyWorld(args.world or SHIPPED)
    images = world.data.fitted(args.fitted)
    sizes = [len(words) for words in images.values.values()]
    reader: Any = fresh(args.seed, Classifier, sizes=sizes, side=world.side)
    train_reader(
        reader, images, [Pixels(images), Pixels(Decoded(images, world.vae))], args.steps, seed=args.seed
    )
    scenes = world.data.scored("validation", args.images, per_pattern=0)
    captions = scenes.detailed_captions(range(len(scenes)))
    drawn = generate(world, captions, args.guidance, seed=args.seed)
    result = {
        "images": len(scenes),
        "guidance": args.guidance,
        "generated": read(reader, scenes, drawn),
        "decoded": read(reader, scenes, Decoded(scenes, world.vae).images(range(len(scenes)))),
        "original": read(reader, scenes, scenes.images(range(len(scenes)))),
    }
    write_json(folder / "sheet.json", result)
    _draw(folder / "sheet.png", drawn[:_SHOWN], captions[:_SHOWN])
    for name, value in result["generated"].items():
        print(f"{name:12} generated {value:5.1f} %   real {result['original'][name]:5.1f} %")
    return 0


def _draw(place: Path, images: Any, captions: list[str]) -> None:
    """A grid of images under their captions."""
    import textwrap

    from matplotlib.figure import Figure

    columns = 6
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.7 * rows), layout="constrained")
    for cell in figure.subplots(rows, columns, squeeze=False).flat:
        cell.axis("off")
    for cell, image, caption in zip(figure.axes, images, captions, strict=False):
        cell.imshow(image.permute(1, 2, 0).numpy())
        cell.set_title("\n".join(textwrap.wrap(caption, 30)), fontsize=7)
    figure.savefig(place, dpi=110)
