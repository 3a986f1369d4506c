"""Everything a training step needs, put together once from (clip, unet, recipe).

`Trainer` and `FeedbackLoss` are two faces of these modules: the student's tower, the teacher, the projector
between them, the reader that makes tensors of a batch, and the native step that joins them.
"""

import copy
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

import diva_rs._native as _native
from diva_rs.clip import Tower, adapt
from diva_rs.clip.lora import Call, LowRank
from diva_rs.diffusion import Teacher
from diva_rs.diffusion.frozen import no_autocast
from diva_rs.errors import ConfigError
from diva_rs.native.choose import Part, choose_denoiser, choose_tower
from diva_rs.recipes.recipe import Recipe
from diva_rs.recipes.stage import WEIGHTS
from diva_rs.step.bridge import make_bridge, make_projector
from diva_rs.step.draws import Draws
from diva_rs.step.fits import check_objective, check_unmoved, denoiser_parameters, student_home
from diva_rs.step.inputs import Inputs, Reader
from diva_rs.step.precision import products_of
from diva_rs.step.terms import Term, identity_of, named_terms

_log = logging.getLogger("diva_rs")

WITHOUT = "none (there is no diffusion model)"


class StepModules:
    """The student, the teacher, the bridge between them, and the native step over all three."""

    def __init__(
        self,
        clip: nn.Module,
        unet: Any,
        recipe: Recipe,
        terms: Mapping[str, tuple[float, Term]] | None = None,
        *,
        projector: nn.Module | None = None,
        original: tuple[Any, Any] | None = None,
        low_rank: LowRank | None = None,
    ) -> None:
        """``projector``, ``original`` and ``low_rank`` are those of the modules that these are a copy of."""
        self.recipe, self._terms = recipe, terms
        added = named_terms(terms)
        self.tower = adapt(clip)
        self.parameters = self.tower.named_parameters()
        self._clip = clip
        self.device, self.dtype = student_home(self.parameters, recipe.precision)
        products = products_of(recipe, self.device)
        trained = any(
            group.name.partition(":")[0] == "denoiser" for stage in recipe.plan() for group in stage.groups
        )
        self.teacher: Teacher | None = None
        if unet is not None:
            # Nobody else holds what is loaded here from files.
            loaded = isinstance(unet, (str, os.PathLike))
            teacher = Teacher(unet, consume=True) if loaded else Teacher.of(unet)
            self.teacher = (teacher.training if trained else teacher.to_precision)(recipe.precision)
        idle = [stage for stage in recipe.plan() if self._named(stage.weights) == ("loss",)]
        check_objective(recipe, idle, self.teacher is not None, trained)
        if projector is None:
            slots = None if self.teacher is None else self.teacher.slots
            projector = make_projector(recipe, self.tower.embed_dim, slots)
        self.projector = projector.to(device=self.device, dtype=self.dtype)
        self.bridge = make_bridge(self.tower, self.projector, recipe)
        with self.plain():
            self.reader = Reader(self.tower, self.teacher, recipe, self.device, self.dtype)
        self.guard = self.reader.guard
        # Terms may read the untouched model's embeddings, and the tower changes with the first step.
        self._original = original or (self._untouched() if self._anchor or added else None)
        tower = choose_tower(self.tower, recipe, self._tokens_of(self.tower))
        if recipe.low_rank is not None and low_rank is None:
            how = (recipe.low_rank_alpha, recipe.low_rank_targets, recipe.low_rank_bias, recipe.seed)
            low_rank = LowRank(self.tower, recipe.low_rank, *how)
        self.low_rank = low_rank
        self.parts: dict[str, dict[str, nn.Parameter]] = {
            "tower": self.parameters if self.low_rank is None else self.low_rank.parameters,
            "projector": dict(self.projector.named_parameters(prefix="projector")),
        }
        if trained and self.teacher is not None:
            self.parts["denoiser"] = denoiser_parameters(self.teacher, self.device, self.dtype)
        denoiser = Part(None, WITHOUT) if self.teacher is None else choose_denoiser(self.teacher, recipe)
        if self.teacher is not None:
            self.teacher.release()
        self._parts = {"tower": tower, "denoiser": denoiser}
        contrast = recipe.contrast_temperature, recipe.contrast_negatives, recipe.contrast_group, recipe.seed
        self.step = _native.Step(
            tower.network,
            denoiser.network,
            self.bridge,
            None if self.teacher is None else self.teacher.schedule,
            denoising=recipe.denoising,
            loss=recipe.loss,
            draw_weights=list(recipe.weights()),
            min_snr=recipe.min_snr,
            contrast=recipe.contrast,
            contrast_options=contrast,
            anchor=recipe.anchor,
            anchor_kind=recipe.anchor_kind,
            terms=added,
            original=self._original,
            micro_batch=recipe.micro_batch,
            denoiser_batch=recipe.denoiser_batch,
        )
        self.multiply(products)
        self.weigh({name: getattr(recipe, name) for name in WEIGHTS})

    def multiply(self, products: str | None) -> None:
        """Multiply the bf16 matrices of native networks, and of a tower outside them, in "bf16" or "fp32".

        None: there is no choice.
        """
        self.products = products
        self.reader.wide = products == "fp32"
        self.step.widen(self.reader.wide)

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Give the recipe's own terms these weights, by name: all of them."""
        self.step.weigh(list(weights.items()))
        self.reader.augments = weights["contrast"] > 0
        self.loss_names = self._named(weights)

    def _named(self, *weights: Mapping[str, float]) -> tuple[str, ...]:
        """The names of the losses, in the order of the logs."""
        own = (name for name in WEIGHTS if any(each[name] for each in weights))
        return ("loss", *own, *(self._terms or ()))

    @property
    def all_loss_names(self) -> tuple[str, ...]:
        """The names of the losses of all stages."""
        return self._named(*(stage.weights for stage in self.recipe.plan()))

    def __deepcopy__(self, memo: dict[int, Any]) -> "StepModules":
        """Over copies of CLIP and the projector; teacher, terms and untouched model are shared."""
        if self.teacher is not None and self.teacher.trainable:
            raise ConfigError("the denoiser trains in place and is not copied: copy or average .clip instead")
        clip, projector, low_rank = copy.deepcopy((self._clip, self.projector, self.low_rank), memo)
        return StepModules(
            *(clip, self.teacher, self.recipe, self._terms),
            projector=projector,
            original=self._original,
            low_rank=low_rank,
        )

    def __reduce__(self) -> NoReturn:
        raise ConfigError(
            "a FeedbackLoss is not pickled: save feedback.state_dict(), and load it into a new FeedbackLoss "
            "that is made from clip, unet and recipe"
        )

    @property
    def backend(self) -> dict[str, str]:
        """What runs natively and why the rest does not: "native" or "torch (reason)" for each network.

        Whether a VAE is needed, and can run natively, is known after the first batch.
        """
        parts = {name: part.backend for name, part in self._parts.items()}
        query = self.reader.query
        return {**parts, "vae": WITHOUT if query is None else query.encoder.backend}

    def batch(self, item: Any, ids: Any, epoch: int, draws: Draws | None, seen: int) -> _native.Batch:
        """A loader's item, checked, for a step that runs all the networks: see `Reader.batch`."""
        self.check_home()
        self._check("tower")
        if self.low_rank is not None:
            self.low_rank.check_merged()
        return self._batch(item, ids, epoch, draws, seen)

    def inputs(self, item: Any, ids: Any, epoch: int, draws: Draws | None, seen: int) -> Inputs:
        """The step's tensors of a loader's item, for callers who run the tower: see `Reader.read`."""
        self.check_home()
        return self.reader.made(self._batch(item, ids, epoch, draws, seen))

    def _batch(self, item: Any, ids: Any, epoch: int, draws: Draws | None, seen: int) -> _native.Batch:
        self._check("denoiser")
        with self.plain(), torch.no_grad():
            return self.reader.batch(item, ids, epoch, draws, seen)

    def _check(self, part: str) -> None:
        snapshot = self._parts[part].snapshot
        if snapshot is not None:
            snapshot.check()

    def report_limit(self) -> None:
        """Warn, once, when the denoiser ran out of memory and sees fewer images at a time from then on."""
        limit = self.step.changed_limit()
        if limit is not None:
            _log.warning(
                "the denoiser ran out of memory: it sees at most %d %s at a time from now on, which changes "
                "no gradient; denoiser_batch=%d (or micro_batch) sets that limit from the start",
                limit,
                "image" if limit == 1 else "images",
                limit,
            )

    def tokens(self, images: Tensor) -> Tensor:
        """The student's tokens (B, 1+P, W), differentiable, in the recipe's precision."""
        return self.at_cut(images)[0]

    def at_cut(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The student's tokens, and the tensors at which the native bridge gives gradients, in its order."""
        tower, values = self.tower, {}
        tokens_of = self._tokens_of(tower)
        if self.low_rank is not None:
            self.merge()
            with no_autocast(self.device):
                values = self.low_rank.values()
            tokens_of = partial(Call(tower.module, tokens_of).on, values)
        named: dict[str, Any] = {"proj": tower.proj}
        if tower.norm is not None:
            named.update({"norm.weight": tower.norm.weight, "norm.bias": tower.norm.bias})
        named.update({f"projector.{name}": value for name, value in self.projector.named_parameters()})
        bridge = [named[name] for name in self.bridge.param_names]
        return tokens_of(images), [values.get(id(value), value) for value in bridge]

    @contextmanager
    def plain(self) -> Iterator[None]:
        """The modes of the native step, independent of the caller's: gradients on, autocast off."""
        with torch.inference_mode(False), torch.enable_grad(), no_autocast(self.device):
            yield

    def check_home(self) -> None:
        """Raise where what trains was moved, cast or replaced since: see `check_unmoved`."""
        projector = dict(self.projector.named_parameters(prefix="projector"))
        check_unmoved(self._clip, self.parameters, projector, (self.device, self.dtype))

    def write(self, parameters: Mapping[str, Tensor]) -> None:
        """Copy values into everything that trains, by name."""
        with self.plain(), torch.no_grad():
            for part in self.parts.values():
                for name, parameter in part.items():
                    parameter.copy_(parameters[name])
        self.merge()

    def merge(self) -> None:
        """Compute the weights of a low-rank tower from what trains in their place."""
        if self.low_rank is not None:
            with self.plain():
                self.low_rank.merge()

    def pull(self) -> None:
        """Carry the gradients at the weights of a low-rank tower to what trains in their place."""
        if self.low_rank is not None:
            with self.plain():
                self.low_rank.pull()

    @property
    def _anchor(self) -> float:
        """The greatest weight of the anchor."""
        return max(self.recipe.anchor, *(stage.weights["anchor"] for stage in self.recipe.plan()))

    @property
    def needing_original(self) -> list[str]:
        """What needs the CLIP from which training began: a low-rank tower, and terms."""
        values = {"anchor": self._anchor, "low_rank": self.recipe.low_rank}
        fields = [f"{name}={value}" for name, value in values.items() if value]
        added = [name for name, _, term in named_terms(self._terms) if getattr(term, "needs_original", False)]
        return fields + added

    @property
    def terms_identity(self) -> dict[str, str]:
        """What the caller's terms are: see `diva_rs.step.terms.identity_of`."""
        return identity_of(self._terms)

    def _untouched(self) -> tuple[Any, Any]:
        tower = self.tower.frozen_copy()
        network = choose_tower(tower, self.recipe, self._tokens_of(tower)).network
        return network, make_bridge(tower, self.projector, self.recipe)

    def _tokens_of(self, tower: Tower) -> Any:
        if self.recipe.precision != "bf16":
            return tower.tokens

        def tokens(images: Tensor) -> Tensor:
            narrow = self.products != "fp32"
            with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=narrow):
                return tower.tokens(images)

        return tokens
