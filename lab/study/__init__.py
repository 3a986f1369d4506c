"""Studies on the microworld: arms, scores, resumable runs and their summary."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diva_rs._base.files import make_folder, write_json, write_text
from diva_rs._base.optional import require
from diva_rs._base.settings import hint
from diva_rs.errors import ConfigError
from diva_rs.evaluation.statistics import Change, change
from diva_rs.microworld.pretrained import SHIPPED
from lab.study.arms import ABLATIONS, CAPTION_CHOICES, CAPTIONS, STUDY, TOKENS, Arm
from lab.study.captions import accuracy, calibration, judge_images
from lab.study.cost import judging
from lab.study.curves import CURVES
from lab.study.data import TrainingImages
from lab.study.diagram import diagram
from lab.study.measure import Measure, measure_all
from lab.study.methods import CHOICES, CONTROL_OF, METHODS
from lab.study.runs import keep_settings, run_all, run_arm
from lab.study.summary import Summary
from lab.world import StudyWorld

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


_EVERY = {
    **ABLATIONS,
    **CURVES,
    "captions": CAPTIONS,
    "caption-choices": CAPTION_CHOICES,
    "study": STUDY,
    "tokens": TOKENS,
    "methods": METHODS,
    "method-choices": CHOICES,
}


def ablate(
    name: str,
    output_dir: str | Path,
    seeds: int | Sequence[int] = 5,
    split: str | Sequence[str] = "validation",
    world: str | Path = SHIPPED,
    steps: int | None = None,
    images: int = 4096,
    asked: int = 4096,
) -> Summary:
    """Run every arm of an ablation over several seeds; runs that ``output_dir`` already has are kept.

    Seed n post-trains CLIP n of ``world`` (modulo the number of CLIPs) with draws and an order of its number.
    Writes ``runs.jsonl``, ``summary.csv``, ``summary.md`` and ``summary.png``.

    Args:
        name: an ablation or curve; "study" or "methods": recipes and their controls; "method-choices": what
            their common settings are chosen from. Where captions take part, ``judged.json`` and
            ``judged.png`` say how often the judgements are right.
        output_dir: for the results. Runs under other settings there are a ConfigError.
        seeds: number of seeds, from 0, or the seeds themselves.
        split: "validation" while settings are chosen, "test" once they are fixed; or several splits of the
            world, of which the first has the headline scores.
        world: a folder of `python -m lab pretrain`; by default the package's checkpoints.
        steps: in which the tower trains; None: those of each arm.
        images: number of training images.
        asked: number of scenes for zero-shot, for fitting and for scoring the probes. A twentieth of it is
            the number of pairs of each pattern.
    """
    if name not in _EVERY:
        raise ConfigError(f"name={name!r} is unknown{hint(name, _EVERY) or ': one of ' + ', '.join(_EVERY)}")
    arms, models, folder = _EVERY[name], StudyWorld(world), make_folder(output_dir)
    splits = [split] if isinstance(split, str) else list(split)
    settings = {"name": name, "split": " ".join(splits), "steps": steps, "images": images, "asked": asked}
    keep_settings(folder, {**settings, "world": models.manifest["made"]})
    pictures = TrainingImages(models.vae, models.data.feedback(images))
    judged = None
    if any(arm.captions is not None for arm in arms.values()):
        judged = judge_images(models, pictures, folder / "judged")
        right: dict[str, Any] = {
            "accuracy": accuracy(judged, pictures),
            "calibration": calibration(judged, pictures),
            "gflops": judging(judged, models.teacher(), pictures),
        }
        write_json(folder / "judged.json", right)
        _save(diagram(right["accuracy"], right["calibration"]), folder / "judged.png")
    rows = run_all(
        arms,
        range(seeds) if isinstance(seeds, int) else seeds,
        folder,
        lambda seed: models.clip(seed % models.clips),
        models,
        measure_all(splits, asked, asked, max(1, asked // 20), models.data),
        pictures,
        steps,
        judged,
    )
    summary = Summary(rows, list(arms))
    summary.to_csv(folder / "summary.csv")
    write_text(folder / "summary.md", summary.page(name, splits, CONTROL_OF))
    _save(summary.plot(), folder / "summary.png")
    return summary


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=120)
    require("matplotlib.pyplot", extra="plot").close(figure)  # or a notebook would draw it a second time
