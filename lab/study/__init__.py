"""The study: arms, what is measured of them, their runs, and what they add up to."""

from pathlib import Path

from diva_rs._base.arguments import takes
from diva_rs._base.files import make_folder, write_text
from diva_rs._base.optional import require
from diva_rs._base.settings import choice, integer, optional
from diva_rs.evaluation.statistics import Change, change
from diva_rs.microworld.dataset import SPLITS
from diva_rs.microworld.pretrained import SHIPPED, Microworld
from lab.study.arms import ABLATIONS, STUDY, Arm
from lab.study.data import TrainingImages, unseen
from lab.study.measure import Measure
from lab.study.runs import keep_settings, run_all, run_arm
from lab.study.summary import Summary

__all__ = [
    "ABLATIONS",
    "STUDY",
    "Arm",
    "Change",
    "Measure",
    "Summary",
    "TrainingImages",
    "ablate",
    "change",
    "run_all",
    "run_arm",
]


_EVERY = {**ABLATIONS, "study": STUDY}


@takes(
    name=choice(*_EVERY),
    seeds=integer(1, 4096),
    split=choice(*SPLITS),
    steps=optional(integer(1)),
    images=integer(1),
    asked=integer(20),
)
def ablate(
    name: str,
    output_dir: str | Path,
    seeds: int = 5,
    split: str = "validation",
    world: str | Path = SHIPPED,
    steps: int | None = None,
    images: int = 4096,
    asked: int = 4096,
) -> Summary:
    """Run every arm of an ablation over several seeds; what ``output_dir`` holds already is not run again.

    Seed n post-trains CLIP n of ``world`` (as far as it has so many; then they repeat with other draws and
    another order of the images). Writes ``runs.jsonl``, ``summary.csv``, ``summary.md`` and ``summary.png``.

    Args:
        name: "condition", "density", "data", "denoiser", "draws", "anchor", "lr", "projector_warmup", or
            "study": the recipes and their controls.
        output_dir: where to.
        seeds: how many, from 0.
        split: "validation" while settings are chosen, "test" once they are fixed.
        world: a folder of checkpoints; by default those of the package.
        steps: of the optimizer; None: the arms' own.
        images: training images.
        asked: scenes for zero-shot, as many to fit and to ask the probes, and a twentieth as many pairs of
            each pattern.

    Raises:
        ConfigError: an argument is out of range, or ``output_dir`` holds runs under other settings.
        DataError: ``world`` holds no checkpoints, or a file of ``output_dir`` is damaged.
    """
    arms, models, folder = _EVERY[name], Microworld(world), make_folder(output_dir)
    settings = {"name": name, "split": split, "steps": steps, "images": images, "asked": asked}
    keep_settings(folder, {**settings, "world": models.manifest["made"]})
    rows = run_all(
        arms,
        range(seeds),
        folder,
        lambda seed: models.clip(seed % models.clips),
        models,
        Measure(split, asked, asked, max(1, asked // 20)),
        TrainingImages(models.vae, unseen(images)),
        steps,
    )
    summary = Summary(rows, list(arms))
    summary.to_csv(folder / "summary.csv")
    text = f"# {name}, {split} split\n\n{summary.table()}\n\n{summary.paragraph()}\n"
    write_text(folder / "summary.md", text)
    figure = summary.plot()
    figure.savefig(folder / "summary.png", dpi=120)
    require("matplotlib.pyplot", extra="plot").close(figure)  # or a notebook would draw it a second time
    return summary
