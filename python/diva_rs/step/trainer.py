"""Trainer: the training step for people with their own loop, and the engine of `post_train`."""

from collections.abc import Mapping
from typing import Any, NoReturn

from torch import Tensor, nn

from diva_rs.diffusion import Teacher
from diva_rs.errors import ConfigError
from diva_rs.recipes.recipe import Recipe, as_recipe
from diva_rs.step.draws import Draws
from diva_rs.step.inputs import checked_epoch
from diva_rs.step.interrupts import held_interrupts
from diva_rs.step.modules import StepModules
from diva_rs.step.outcome import StepOutcome
from diva_rs.step.stages import Stages
from diva_rs.step.state import COUNTERS, checked_state
from diva_rs.step.terms import Term


class Trainer:
    """Post-trains the vision tower of ``clip`` in place, step by step.

    Args:
        clip: an open_clip, transformers or OpenAI CLIP (see `diva_rs.clip.adapt`), changed in place.
        unet: what `Teacher.of` takes: a diffusers UNet or DiT, a pipeline, a folder, or a `Teacher`. None
            with ``denoising=0``, where the terms do without a diffusion model.
        recipe: a `Recipe`, a preset's name, or None for the defaults. ``schedule="cosine"`` needs ``steps``;
            without it the learning rate stays constant after its warm-up.
        terms: further terms of the loss, name -> (weight, function of a `View` of the batch -> 0-dim loss).

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> trainer = Trainer(clip, teacher, Recipe(draws=2, density=0.5, lr=1e-3))
    >>> loss = trainer.step(images[:4])
    >>> loss.shape, trainer.steps_done
    (torch.Size([]), 1)
    """

    def __init__(
        self,
        clip: nn.Module,
        unet: Any,
        recipe: Recipe | str | None = None,
        terms: Mapping[str, tuple[float, Term]] | None = None,
    ) -> None:
        self.recipe = as_recipe(recipe)
        self.clip = clip
        self.step_modules = StepModules(clip, unet, self.recipe, terms)
        self.steps_done = 0  # optimizer steps
        self.samples_seen = 0  # within this epoch: the default ids of samples that come without
        self.epoch = 0
        self.pending = 0  # samples whose gradient waits in `.grad` for `apply`
        # Of the last step; tensors stay on the device until somebody reads them.
        self.metrics: dict[str, Any] = {}
        # Buffers made under a caller's inference_mode could not be updated outside it.
        with self.step_modules.plain():
            tower = (self.step_modules.parameters, self.step_modules.low_rank)
            self._stages = Stages(self.recipe, self.step_modules.parts, tower)
        self.step_modules.weigh(self._stages.current.weights)

    def __reduce__(self) -> NoReturn:
        raise ConfigError("a Trainer is not copied: copy trainer.clip, and save trainer.state_dict()")

    @property
    def projector(self) -> nn.Module:
        """The trained map from CLIP's embedding to the teacher's condition; an Identity without a teacher."""
        return self.step_modules.projector

    @property
    def teacher(self) -> Teacher | None:
        """The frozen diffusion model; None where there is none."""
        return self.step_modules.teacher

    @property
    def backend(self) -> dict[str, str]:
        """ "native" or "torch (reason)" for each network; that of a VAE is known after the first batch."""
        return self.step_modules.backend

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The names of this stage's losses in `metrics`: "loss" is the sum of the others."""
        return self.step_modules.loss_names

    @property
    def warming_up(self) -> bool:
        """Whether CLIP is still frozen while the projector warms up (``recipe.projector_warmup``)."""
        return self.steps_done < self.recipe.projector_warmup

    @property
    def stage(self) -> int:
        """The number of the stage that the next step belongs to, of ``recipe.plan()``."""
        return self._stages.index

    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything that can train: CLIP's vision parameters by their own keys, or with ``low_rank`` their
        ``<key>.lora_A`` and ``<key>.lora_B``; ``projector.*``, and ``denoiser.*`` where some stage trains it.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> sorted(Trainer(clip, teacher).parameters())[0]
        'projector.bias'
        """
        parts = self.step_modules.parts.values()
        return {name: parameter for part in parts for name, parameter in part.items()}

    def accumulate(self, images: Any, ids: Any = None, draws: Draws | None = None) -> Tensor:
        """Run one batch forward and backward; returns its mean loss, detached, 0-dim, on CLIP's device.

        Afterwards every ``.grad`` holds the gradient of the mean loss over all samples since the last
        `apply`, so that several calls are one larger batch, of any sizes. A batch that raises an error
        changes nothing; an error inside the step discards what was accumulated before.

        Args:
            images: a batch as loaders give it: a tensor (B, 3, H, W), ``(images, ...)``, or a dict with
                ``images``, ``pixel_values``, ``latents``, ``ids``. Pixels are in the range that
                ``recipe.pixels`` declares.
            ids: one key per sample (integers or strings) that decides its draws; by default the batch's own
                ids, or the sample's number within the epoch.
            draws: explicit draws in place of keyed ones, for comparison with another implementation.

        Raises:
            DataError, ShapeError: an image that cannot be used; names the sample.
            DeviceError, ConfigError: CLIP was moved, cast or given other parameters since this trainer was
                made.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> trainer = Trainer(clip, teacher)
        >>> loss = trainer.accumulate({"images": images[:2], "ids": ["cat", "dog"]})
        >>> trainer.pending
        2
        """
        return self.train(images, ids, draws).losses["loss"]

    def apply(self) -> StepOutcome:
        """Clip the gradient and update the weights. The outcome's losses and samples are the whole step's.

        Where loss or gradient is not finite the update is skipped, without a wait for the device: weights and
        moments stay, and the step counts as one, for the schedule and AdamW's bias correction too.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> trainer = Trainer(clip, teacher)
        >>> _ = trainer.accumulate(images[:2])
        >>> trainer.apply().samples, trainer.pending, trainer.steps_done
        (2, 0, 1)
        """
        if self.pending == 0:
            raise ConfigError("apply() has no gradient to apply: call accumulate(images) first")
        with held_interrupts() as hold:  # the weights and the count of steps change together
            hold()
            try:
                self.step_modules.check_home()
                norm = self._update()
            except BaseException:
                self.discard()
                raise
            losses = {name: self.metrics[name] for name in self.loss_names if name in self.metrics}
            samples = self.pending
            self._updated(norm)
        return StepOutcome(losses, samples, True, norm, self.metrics["lr"])

    def step(self, images: Any, ids: Any = None) -> Tensor:
        """`accumulate` and `apply` in one native call, without the GIL; returns the loss.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> Trainer(clip, teacher).step(images[:2]).requires_grad
        False
        """
        return self.train(images, ids, until=1).losses["loss"]

    def discard(self) -> None:
        """Discard the gradient accumulated since the last `apply`.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> trainer = Trainer(clip, teacher)
        >>> _ = trainer.accumulate(images[:2])
        >>> trainer.discard()
        >>> trainer.pending
        0
        """
        for parameter in (*self.parameters().values(), *self.step_modules.parameters.values()):
            parameter.grad = None
        self.pending = 0

    def set_epoch(self, epoch: int) -> None:
        """Start a pass over the data: draws depend on it, and samples without ids are numbered from 0 again.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> Trainer(clip, teacher).set_epoch(3)
        """
        self.epoch = checked_epoch(epoch)
        self.samples_seen = 0

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later `load_state_dict` needs to go on bit for bit.

        A gradient that was not applied yet is not kept.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> sorted(Trainer(clip, teacher).state_dict())
        ['counters', 'optimizer', 'parameters', 'recipe']
        """
        low_rank, products = self.step_modules.low_rank, self.step_modules.products
        state = {
            "parameters": {name: parameter.detach().clone() for name, parameter in self.parameters().items()},
            "optimizer": {name: value.clone() for name, value in self._stages.optimizer.state().items()},
            "counters": {name: getattr(self, name) for name in COUNTERS},
            "recipe": self.recipe.to_dict(),
            "low_rank": None if low_rank is None else low_rank.facts(),
            "products": products,
        }
        return {name: value for name, value in state.items() if value is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`. Nothing is changed when anything in it does not fit.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> trainer = Trainer(clip, teacher)
        >>> trainer.load_state_dict(trainer.state_dict())
        """
        modules = self.step_modules
        modules.check_home()
        saved = checked_state(state, self.parameters(), modules.device)
        if modules.low_rank is not None:
            modules.low_rank.check(state.get("low_rank"))
        if modules.products is not None and self.recipe.products == "auto":
            modules.multiply(saved.products or modules.products)
        self._stages.load(saved.counters["steps_done"], saved.optimizer)
        modules.weigh(self._stages.current.weights)
        modules.write(saved.parameters)
        self.__dict__.update(saved.counters)
        self.discard()

    def train(
        self, batch: Any, ids: Any = None, draws: Draws | None = None, until: int | None = None
    ) -> StepOutcome:
        """`accumulate`, and `apply` too once ``until`` samples are pending: one call into the native core.

        The outcome's losses and samples are this batch's; `metrics` holds the means over the whole step.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> trainer = Trainer(clip, teacher)
        >>> [trainer.train(images[:2], until=4).stepped for _ in range(4)]
        [False, True, False, True]
        """
        modules = self.step_modules
        if self.pending == 0:
            self.discard()
            for name in {*modules.all_loss_names} - {*self.loss_names}:
                self.metrics.pop(name, None)  # of the stage before
        read = modules.batch(batch, ids, self.epoch, draws, self.samples_seen)
        samples = self.pending + len(read)
        stages, share = self._stages, len(read) / samples
        before = self.metrics.get("loss") if self.pending else None
        complete = until is not None and samples >= until
        # The gradients of a low-rank tower are complete after the native call, which then does not update.
        whole = complete and modules.low_rank is None
        update = (stages.current.grad_clip, stages.factors(self.steps_done), before) if whole else None
        lr = stages.lr(self.steps_done)
        with held_interrupts() as hold:
            try:
                with stages.training():
                    given = (modules.reader.native, read, stages.optimizer, share, stages.trains_tower)
                    losses, norm = modules.step.train(*given, update, hold)
                    modules.pull()
                self._note(losses, share)
                if complete and norm is None:
                    norm = self._update()
            except BaseException:
                # Part of a batch may be in `.grad` already: no later step may build on it.
                self.discard()
                raise
            self.pending = samples
            self.samples_seen += len(read)
            if norm is not None:
                self._updated(norm)
        modules.report_limit()
        return StepOutcome(losses, len(read), norm is not None, norm, lr)

    def _update(self) -> Tensor:
        """Move the weights by the gradient in ``.grad``; returns its norm."""
        stages = self._stages
        factors, loss = stages.factors(self.steps_done), self.metrics.get("loss")
        norm: Tensor = stages.optimizer.update(stages.current.grad_clip, factors, loss)
        self.step_modules.merge()
        return norm

    def _updated(self, norm: Tensor) -> None:
        lr = self._stages.lr(self.steps_done)
        self.metrics.update(grad_norm=norm, lr=lr, epoch=self.epoch, samples=self.pending)
        self.pending = 0
        self.steps_done += 1
        with self.step_modules.plain():
            if self._stages.advance(self.steps_done):
                self.step_modules.weigh(self._stages.current.weights)

    def _note(self, losses: dict[str, Tensor], share: float) -> None:
        for name, value in losses.items():
            before = None if share == 1.0 else self.metrics.get(name)
            self.metrics[name] = value if before is None else before + share * (value - before)
