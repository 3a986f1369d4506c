"""The arms of the comparison of methods: published recipes, scaled to a small world by one rule.

The rule: every method keeps its published settings, except that the tower trains for 900 steps of 16 of the
same 4,096 images, at the published learning rate times `RATE`, and that what a method trains before the tower
trains for 1,800 steps at 1e-3. `RATE` is one number for all methods, chosen on the validation split.
"""

from dataclasses import replace
from typing import Any

from diva_rs.recipes.recipe import Recipe, Stage
from lab.study.arms import ANCHOR, BEST, CAPTIONED, STUDY, Arm

TOWER, BEFORE = 900, 1800  # steps
RATE = 100.0
RATES = (10.0, 30.0, 100.0, 300.0)

# KUEA's anchor, at a weight that was chosen on the validation split for all methods.
KERNEL: dict[str, Any] = {"anchor_kind": "squared+kernel", "anchor": 0.001}
WEIGHTS = (1e-4, 1e-3, 1e-2)

# In other units (batches, pixels), or part of the rule.
_REPLACED = ("stages", "steps", "batch", "image_size", "precision")


def published(preset: str, rate: float = RATE, *before: Stage, teacher: str = "unet") -> Arm:
    """A preset by the rule.

    Args:
        preset: the name of the method's recipe.
        rate: what the tower's learning rate is multiplied by.
        before: stages before those of the preset: what it takes from others, and has to be trained here.
        teacher: of `lab.world.TEACHERS`.

    >>> [stage.steps for stage in published("dcr-openai-vit-l-14-224").fields["stages"]]
    [1800, 900]
    """
    recipe = Recipe.named(preset)
    *first, last = recipe.stages or (Stage(train=("projector", "tower")),)
    lr = recipe.lr if last.lr is None else last.lr
    stages = [stage.model_copy(update={"steps": BEFORE, "lr": 1e-3}) for stage in (*before, *first)]
    stages.append(last.model_copy(update={"steps": TOWER, "lr": rate * lr}))
    fields = {name: value for name, value in recipe if name in recipe.model_fields_set}
    fields = {name: value for name, value in fields.items() if name not in (*_REPLACED, "name")}
    own = {"stages": tuple(stages), "projector_lr": None, "projector_warmup": 0, "warmup": recipe.warmup}
    return Arm({**fields, **own}, teacher=teacher)


def by_rate(rate: float) -> dict[str, Arm]:
    """The four published methods."""
    return {
        "DIVA": published("diva-openai-vit-l-14-224", rate),
        "GenHancer": published("genhancer-openai-vit-l-14-224", rate, teacher="flux"),
        # The generator of the paper was made from Stable Diffusion by others.
        "un2CLIP": published(
            "un2clip-openai-vit-l-14-224", rate, Stage(train=("denoiser",)), teacher="unclip"
        ),
        "DCR": published("dcr-openai-vit-l-14-224", rate),
    }


def anchored(arm: Arm, fields: dict[str, Any]) -> Arm:
    """The arm with an anchor while the tower trains."""
    stages = arm.fields.get("stages", ())
    own = tuple(stage.model_copy(update={"anchor": 0.0}) for stage in stages[:-1])
    return replace(arm, fields={**arm.fields, **fields, "stages": (*own, *stages[-1:])})


def mismatched(arm: Arm) -> Arm:
    """The control: every image gets the latents or the judgements of another one."""
    words = replace(arm.captions, mixed=1.0) if arm.captions else None
    return replace(arm, mismatched=words is None, captions=words)


CLASS, WORDS = "class token alone", "captions"
_BASIC = {
    **by_rate(RATE),
    CLASS: BEST,
    WORDS: replace(CAPTIONED, fields={**CAPTIONED.fields, "batch": 16, "steps": TOWER}),
}
_KERNEL = {f"{name}, kernel anchor": anchored(arm, KERNEL) for name, arm in _BASIC.items()}
# Arm -> its control, which has an anchor as the arm has: without one, scores fall whatever the latents.
CONTROL_OF = {
    name: f"{name}, another image's"
    for name in (*(f"{name}, kernel anchor" for name in by_rate(RATE)), CLASS, WORDS)
}
_MISMATCHED = {control: mismatched((_BASIC | _KERNEL)[name]) for name, control in CONTROL_OF.items()}
CONTROL_OF |= {f"{name}, kernel anchor": CONTROL_OF[name] for name in (CLASS, WORDS)}
CONTROL_OF |= {"projector first": "projector first, another image's latents"}
CONTROL_OF |= {"DIVA, anchor": CONTROL_OF["DIVA, kernel anchor"]}

METHODS: dict[str, Arm] = {
    **_BASIC,
    "DIVA, anchor": anchored(_BASIC["DIVA"], {"anchor": ANCHOR}),
    **_KERNEL,
    **_MISMATCHED,
    f"{CLASS}, untrained denoiser": STUDY["best, untrained denoiser"],
    "text alone": STUDY["anchored, text alone"],
    "anchor alone": STUDY["anchor alone"],
    "supervised on detailed captions": STUDY["supervised on detailed captions"],
}
# What `RATE` and the weight of `KERNEL` are chosen from: without an anchor GenHancer loses pairs at 30.
CHOICES: dict[str, Arm] = {
    **{f"{name}, x {rate:g}": anchored(arm, KERNEL) for rate in RATES for name, arm in by_rate(rate).items()},
    **{
        f"{name}, kernel {weight:g}": anchored(_BASIC[name], {**KERNEL, "anchor": weight})
        for weight in WEIGHTS
        for name in ("GenHancer", CLASS)
    },
}
