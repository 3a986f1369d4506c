"""The arms of the study and of the ablations: one value per treatment of a CLIP."""

from dataclasses import dataclass, field, replace
from typing import Any

from diva_rs.microworld.demo.run import RECIPE
from diva_rs.recipes.recipe import Stage
from lab.study.captions import Captions

# The defaults of all arms: the demo's settings, with random patches and no anchor.
BASE: dict[str, Any] = {
    **{name: value for name, value in RECIPE.items() if name not in ("anchor", "condition")},
    "density": 0.3,
    "steps": 900,
}


@dataclass(frozen=True)
class Arm:
    """One treatment of a CLIP.

    Attributes:
        fields: recipe fields that differ from `BASE`.
        teacher: of `lab.world.TEACHERS`; the loss of "untrained", a UNet with fresh weights, is scaled to the
            trained one's.
        share: of the training images; 0: none, so that nothing is trained.
        mismatched: whether each image gets the latents of another one.
        supervised: whether the vision tower is trained on detailed captions instead of by feedback: the
            ceiling.
        captions: what caption feedback trains on, if it takes part.
        interpolate: the weights at the end are this far on the line from the original to the trained ones.
        average: the share that is kept, at each log, of the running mean of the weights; the mean is what the
            run ends with. 0: none.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    teacher: str = "unet"
    share: float = 1.0
    mismatched: bool = False
    supervised: bool = False
    captions: Captions | None = None
    interpolate: float = 1.0
    average: float = 0.0

    def recipe(self, steps: int | None = None) -> dict[str, Any]:
        """Recipe fields: `BASE` with this arm's own.

        ``steps`` are those in which the tower trains, by default the arm's; what comes before is scaled in
        proportion.

        >>> sorted(BEST.recipe().keys() - BASE.keys()), "density" in BEST.recipe()
        (['anchor', 'condition'], False)
        """
        fields = {**BASE, **self.fields}
        if fields.get("condition", "random") != "random":
            del fields["density"]  # of the random patches
        stages: tuple[Stage, ...] = fields.get("stages", ())
        if steps is not None and stages:
            share = steps / (stages[-1].steps or steps)
            counts = [max(1, round(share * (stage.steps or steps))) for stage in stages]
            fields["stages"] = tuple(
                stage.model_copy(update={"steps": count}) for stage, count in zip(stages, counts, strict=True)
            )
        elif steps is not None:
            fields["steps"] = steps
            fields["projector_warmup"] = min(fields["projector_warmup"], steps // 2)
        if stages:
            fields["steps"] = None  # the sum of the stages'
        return fields


# Chosen on the validation split: a gain in pairs for little zero-shot loss. See docs/microworld.md.
ANCHOR = RECIPE["anchor"]

# The settings of the paper, with far fewer steps.
PAPER = Arm(
    {
        "optimizer": "sgd",
        "lr": 1e-4,
        "projector_lr": None,
        "projector_warmup": 0,
        "draws": 2,
        "density": 0.15,
        "replacement": True,
        "text": "add",
    }
)
PLAIN = Arm()
ANCHORED = Arm({"anchor": ANCHOR})
BEST = Arm({"anchor": ANCHOR, "condition": RECIPE["condition"]})

STUDY: dict[str, Arm] = {
    "paper's recipe": PAPER,
    "no anchor": PLAIN,
    "anchored": ANCHORED,
    "best: anchored, class token alone": BEST,
    "best, another image's latents": replace(BEST, mismatched=True),
    "best, untrained denoiser": replace(BEST, teacher="untrained"),
    # In these two nothing moves the tower, so fewer steps are enough.
    "anchored, text alone": Arm({"anchor": ANCHOR, "condition": "text", "steps": 300}),
    "anchor alone": Arm({**BEST.fields, "denoising": 0.0, "projector_warmup": 0, "steps": 300}),
    "supervised on detailed captions": Arm(supervised=True),
}

# Chosen on the validation split. The tower trains under a projector that no longer changes and that began at
# zero, so it learns along what the projector reads in the original embedding, which is where the words are.
_FOUR = {
    **BEST.fields,
    "class_tokens": 4,
    "batch": 48,
    "timestep_range": (400, 1000),
    "projector_start": "zero",
}
_FIRST = {
    **_FOUR,
    "projector_warmup": 0,
    "stages": (Stage(train=("projector",), steps=400, lr=1e-3), Stage(train=("tower",), steps=450)),
}
FIRST = Arm(_FIRST)
TOKENS: dict[str, Arm] = {
    "projector first": FIRST,
    "projector first, another image's latents": replace(FIRST, mismatched=True),
    "projector first, random start": Arm({**_FIRST, "projector_start": "random"}),
    "projector first, not frozen": Arm({**_FOUR, "projector_warmup": 400, "steps": 850}),
    "projector first, one token": Arm({**_FIRST, "class_tokens": 1}),
}

# Caption feedback alone: no denoiser runs.
_ALONE = {
    "denoising": 0.0,
    "condition": "class",
    "projector_warmup": 0,
    "anchor": 1.0,
    "batch": 48,
    "steps": 1800,
}
CAPTIONED = Arm(_ALONE, captions=Captions(), interpolate=0.6)

CAPTIONS: dict[str, Arm] = {
    "captions": CAPTIONED,
    "captions, true: the ceiling": replace(CAPTIONED, captions=Captions("true")),
    "captions, another image's": replace(CAPTIONED, captions=Captions(mixed=1.0)),
    "captions, CLIP's own guesses": replace(CAPTIONED, captions=Captions("guessed")),
    "captions, written": replace(CAPTIONED, captions=Captions(written=True, context=0.5)),
    "captions and feedback": replace(CAPTIONED, fields={**_ALONE, "denoising": 1.0}),
}


def _each(name: str, values: tuple[Any, ...], around: Arm = BEST) -> dict[str, Arm]:
    return {f"{name} {value:g}": Arm({**around.fields, name: value}) for value in values}


ABLATIONS: dict[str, dict[str, Arm]] = {
    "condition": {
        "text": Arm({"anchor": ANCHOR, "condition": "text"}),
        "class": BEST,
        "dense recap": ANCHORED,
        "all": Arm({"anchor": ANCHOR, "condition": "all"}),
    },
    "density": _each("density", (0.0, 0.15, 0.3, 0.5, 0.75, 1.0), ANCHORED),
    "data": {f"{100 * share:g} %": replace(BEST, share=share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)},
    "denoiser": {
        "unet": BEST,
        "dit": replace(BEST, teacher="dit"),
        "untrained": replace(BEST, teacher="untrained"),
    },
    "draws": _each("draws", (1, 2, 4, 8)),
    "anchor": _each("anchor", (0.0, 0.1, 0.3, 0.5, 1.0)),
    "lr": _each("lr", (3e-5, 1e-4, 3e-4, 1e-3)),
    "projector_warmup": _each("projector_warmup", (0, 60, 120)),
}


def _captioned(fields: dict[str, Any] | None = None, share: float = 1.0, **captions: Any) -> Arm:
    """Caption feedback in a third of the steps."""
    fields = {**_ALONE, "steps": 600, **(fields or {})}
    return replace(CAPTIONED, fields=fields, share=share, captions=Captions(**captions))


CAPTION_CHOICES: dict[str, Arm] = {
    "captions, 600 steps": _captioned(),
    "no anchor": _captioned({"anchor": 0.0}),
    "anchor 3": _captioned({"anchor": 3.0}),
    "squared anchor": _captioned({"anchor_kind": "squared"}),
    "kernel anchor": _captioned({"anchor_kind": "kernel"}),
    "answers not kept": _captioned(keep=0.0),
    "rank 4": _captioned({"low_rank": 4}),
    "rank 16": _captioned({"low_rank": 16}),
    "rank 16, lr 3e-3": _captioned({"low_rank": 16, "lr": 3e-3}),
    "256 images": _captioned(share=1 / 16),
    "1,024 images": _captioned(share=1 / 4),
    "one set": _captioned(sets=1),
    "three sets": _captioned(sets=3),
    "10 % mixed up": _captioned(mixed=0.1),
    "30 % mixed up": _captioned(mixed=0.3),
    "with feedback": _captioned({"denoising": 1.0}),
}
