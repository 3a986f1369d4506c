"""Recipe: every setting of a run in one frozen, validated value."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import model_validator
from typing_extensions import Self, Unpack

from diva_rs._base.settings import hint
from diva_rs.errors import ConfigError, a_type, shown
from diva_rs.recipes.fields import Fields, RecipeFields
from diva_rs.recipes.presets import presets
from diva_rs.recipes.stage import WEIGHTS, Group, PlannedStage, Stage, plan

__all__ = ["Group", "Recipe", "Stage"]

_DENSITY = 0.3  # share of the patches where a recipe gives neither `choose` nor `density`
_OF_CONDITION = {
    "class": ("class_tokens",),
    "random": ("choose", "density", "replacement", "bernoulli"),
    "window": ("window",),
}


class Recipe(Fields):
    """All settings of a post-training run; `Recipe.fields_help` says what each one means and takes.

    ``choose`` and ``density`` exclude each other; with neither, 0.3 of the patches are drawn. A value that is
    out of range, or contradicts another one, is a ConfigError.

    >>> Recipe(draws=4, lr=1e-5).draws
    4
    >>> Recipe(density=1.5)
    Traceback (most recent call last):
    diva_rs.errors.ConfigError: density=1.5: it must be a number of at least 0 and at most 1, or None
    """

    @classmethod
    def named(cls, name: str) -> Self:
        """The preset of that name; ConfigError, with near names, for an unknown one.

        >>> Recipe.named("diva-openai-vit-l-14-224").density
        0.15
        """
        known = presets()
        if not isinstance(name, str) or name not in known:
            near = hint(name, known) or f": one of {', '.join(known)}"
            raise ConfigError(f"there is no recipe {shown(name)}{near}")
        return cls(name=name, **known[name].fields())

    @classmethod
    def names(cls) -> list[str]:
        """The presets' names.

        >>> "diva-openai-vit-l-14-224" in Recipe.names()
        True
        """
        return list(presets())

    def replace(self, **fields: Unpack[RecipeFields]) -> Self:
        """A copy with other values: ``choose`` replaces ``density`` and the other way round, and a new
        ``condition`` drops the settings of the old one.

        >>> Recipe().replace(densty=0.5)
        Traceback (most recent call last):
        diva_rs.errors.ConfigError: Recipe has no field 'densty'; did you mean 'density'?
        """
        implied: dict[str, Any] = {}
        if fields.get("choose") is not None:
            implied = {"density": None, "bernoulli": False}
        if fields.get("density") is not None:
            implied["choose"] = None
        if "condition" in fields:
            others = [names for condition, names in _OF_CONDITION.items() if condition != fields["condition"]]
            implied |= {name: _DEFAULTS[name] for names in others for name in names}
        if "stages" in fields and self.stages and self.stages[-1].steps is not None:
            implied["steps"] = None  # they were the sum of the stages' steps
        return type(self)(**{**dict(self), **implied, **dict(fields)})

    def to_dict(self) -> dict[str, Any]:
        """Every field, with lists for tuples, as JSON holds them.

        >>> Recipe.from_dict(Recipe(betas=(0.9, 0.95)).to_dict()).betas
        (0.9, 0.95)
        """
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The recipe of `to_dict`; a field that is missing has its default.

        >>> Recipe.from_dict({"draws": 3, "betas": [0.9, 0.95]}).draws
        3
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"a recipe is made from a mapping of fields, not {a_type(values)}")
        return cls(**values)

    def plan(self, steps: int | None = None) -> tuple[PlannedStage, ...]:
        """The stages of a run with every setting filled in.

        ``steps`` is by default the recipe's; where that is None too, the last stage has no end.

        >>> [(stage.first, stage.steps) for stage in Recipe(steps=9, projector_warmup=3).plan()]
        [(0, 3), (3, 6)]
        """
        steps = self.steps if steps is None else steps
        stages = self.stages or (Stage(train=("projector", "tower")),)
        warmup = self.projector_warmup if steps is None else min(self.projector_warmup, steps)
        if warmup:
            rest = (Stage(train=("projector", "tower"), continues=True),) if warmup != steps else ()
            stages = (Stage(train=("projector",), steps=warmup), *rest)
        return tuple(plan(stages, dict(self), steps))

    @property
    def predicts(self) -> bool:
        """Whether the loss of some stage needs the predictions of a diffusion model.

        >>> Recipe(denoising=0, anchor=1).predicts
        False
        """
        return any(stage.weights[name] for stage in self.plan() for name in ("denoising", "contrast"))

    def chosen(self, patches: int) -> int:
        """How many rows of the condition come from the tower's ``patches``, the class token's not counted.

        With ``bernoulli`` it is all of them: the dropped ones are empty slots. Raises ConfigError when more
        are to be chosen than there are.

        >>> Recipe(density=0.15).chosen(256), Recipe(condition="window", window=6).chosen(256)
        (38, 42)
        """
        if self.condition in ("class", "text"):
            return 0
        if self.window is not None:
            if self.window > patches:
                raise ConfigError(
                    f"window={self.window} is wider than the tower's {patches} patches: give a smaller window"
                )
            return patches // self.window
        if self.condition == "all" or self.bernoulli:
            return patches
        if self.choose is None:
            density = _DENSITY if self.density is None else self.density
            return max(round(density * patches), 1) if density > 0 else 0
        if self.choose > patches and not self.replacement:
            raise ConfigError(
                f"choose={self.choose} is more than the tower's {patches} patches: choose at most {patches}, "
                "or draw with replacement=True"
            )
        return self.choose

    def weights(self) -> tuple[float, ...]:
        """The weight of each draw's loss, one per draw.

        >>> Recipe(draws=2).weights(), Recipe(draws=2, draw_weights=(5, 1)).weights()
        ((0.5, 0.5), (5.0, 1.0))
        """
        return (1.0 / self.draws,) * self.draws if self.draw_weights is None else self.draw_weights

    def digest(self) -> str:
        """SHA-256, in hex, of the canonical JSON of all fields but the operational ones (``log_every``,
        ``max_skipped``, ``checkpoint_every``, ``keep``), and later ones (``denoising``, ``low_rank``, ...)
        that have their default.

        >>> Recipe().digest() == Recipe(lr=1e-4, keep=5).digest() != Recipe(lr=1e-5).digest()
        True
        """
        later = {name for name in _LATER if getattr(self, name) == _DEFAULTS[name]}
        values = self.model_dump(mode="json", exclude=_OPERATIONAL | later)
        values["stages"] = [
            {name: value for name, value in stage.items() if value is not None or name not in WEIGHTS}
            for stage in values["stages"]
        ]
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def differences(self, other: "Recipe") -> dict[str, tuple[Any, Any]]:
        """The fields that differ, but for operational ones: name -> (this one's value, the other's).

        >>> Recipe(lr=1e-4).differences(Recipe(lr=1e-5, log_every=1))
        {'lr': (0.0001, 1e-05)}
        """
        pairs = {name: (value, getattr(other, name)) for name, value in self if name not in _OPERATIONAL}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def describe(self) -> str:
        """One line per field: ``*`` where it differs from the default, its value, and in a preset its source.

        >>> print(*(line for line in Recipe(lr=1e-5).describe().splitlines() if line.startswith("*")))
        * lr 1e-05
        """
        preset = presets().get(self.name)
        about = preset.describe() if preset else []
        lines = [f"recipe {self.name}", *about, "  (* differs from the default)"]
        published = {**_DEFAULTS, **(preset.fields() if preset else dict(self))}
        for name, value in list(self)[1:]:  # the first one is the name
            mark = "*" if value != _DEFAULTS[name] else " "
            note = preset.source_of(name) if preset else ""
            if value != published[name]:
                note = f"changed: the preset has {published[name]!r}"
            lines.append(f"{mark} {name:<20} {value!r:<24} {note}".rstrip())
        return "\n".join(lines)

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        for condition, names in _OF_CONDITION.items():
            given = [name for name in names if getattr(self, name) != _DEFAULTS[name]]
            if given and self.condition != condition:
                raise ConfigError(
                    f"{given[0]}={getattr(self, given[0])!r} means nothing with "
                    f"condition={self.condition!r}: leave it out, or use condition={condition!r}"
                )
        for name in _LOW_RANK:
            if self.low_rank is None and getattr(self, name) != _DEFAULTS[name]:
                raise ConfigError(f"{name}={getattr(self, name)!r} needs low_rank: the rank of the update")
        if self.choose is not None and self.density is not None:
            raise ConfigError(f"choose={self.choose} and density={self.density} exclude each other: give one")
        if self.bernoulli and self.density is None:
            raise ConfigError("bernoulli=True needs density: the probability that a patch is kept")
        if self.bernoulli and self.replacement:
            raise ConfigError("bernoulli=True and replacement=True exclude each other: give one")
        if self.condition == "window" and self.window is None:
            raise ConfigError("condition='window' needs window: the width of the windows, at least 1")
        if self.condition == "text" and self.text == "none":
            raise ConfigError("condition='text' with text='none' leaves no condition: use another text")
        several = self.condition not in ("class", "text") or self.class_tokens > 1
        if self.text == "broadcast" and several:
            raise ConfigError(
                "text='broadcast' adds one visual token to every text token, but "
                f"condition={self.condition!r} with class_tokens={self.class_tokens} gives several: use "
                "condition='class' and class_tokens=1"
            )
        if self.projector == "identity" and self.projector_start == "zero":
            raise ConfigError("projector='identity' has no weights: projector_start='zero' means nothing")
        if self.condition == "text" and (self.contrast or any(stage.contrast for stage in self.stages)):
            raise ConfigError("contrast compares the conditions of images, and condition='text' has none")
        weights, steps = self.draw_weights, self.timestep_range
        if weights is not None and len(weights) != self.draws:
            raise ConfigError(
                f"draw_weights={weights} holds {len(weights)} weights for draws={self.draws}: give one each"
            )
        if weights is not None and not any(weights):
            raise ConfigError(f"draw_weights={weights} are all zero: nothing would be trained")
        if steps is not None and steps[0] >= steps[1]:
            raise ConfigError(f"timestep_range={steps} is empty: the first number must be below the second")
        return self

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        if not self.stages:
            return self
        *others, last = self.stages
        if self.projector_warmup:
            raise ConfigError(
                f"projector_warmup={self.projector_warmup} does not go with stages: give a first stage "
                "that trains the projector alone"
            )
        if self.stages[0].continues:
            raise ConfigError("stages[0]: continues=True needs a stage before it")
        for index, stage in enumerate(others):
            if stage.steps is None:
                raise ConfigError(f"stages[{index}] needs steps: only the last stage can do without")
        done = sum(stage.steps or 0 for stage in self.stages)
        if last.steps is not None and self.steps is None:
            object.__setattr__(self, "steps", done)
        if self.steps is not None and (self.steps != done if last.steps else self.steps <= done):
            raise ConfigError(
                f"steps={self.steps}, but the stages have {done} steps: leave steps out, or leave them "
                "out of the last stage, which then does the rest"
            )
        return self


def as_recipe(recipe: Recipe | str | None) -> Recipe:
    """The recipe itself, the preset of that name, or the defaults.

    Raises:
        ConfigError: an unknown name, with near ones, or something that is no recipe.
    """
    if isinstance(recipe, str):
        return Recipe.named(recipe)
    if recipe is not None and not isinstance(recipe, Recipe):
        raise ConfigError(
            f"recipe is {a_type(recipe)}: give a diva_rs.Recipe, a preset's name or None (Recipe.from_dict "
            "makes one of a mapping)"
        )
    return recipe or Recipe()


_DEFAULTS: dict[str, Any] = {name: field.default for name, field in Recipe.model_fields.items()}
_LOW_RANK = ("low_rank_alpha", "low_rank_targets", "low_rank_bias")
_CONTRAST = ("contrast_temperature", "contrast_negatives", "contrast_group", "contrast_view")
# Fields that are younger than recorded digests.
_LATER = {"class_tokens", "projector_start", "denoising", "anchor_kind", "contrast", *_CONTRAST}
_LATER |= {"low_rank", *_LOW_RANK}
_OPERATIONAL = {name for name, field in Recipe.model_fields.items() if field.json_schema_extra}
