"""FeedbackLoss: the generative feedback as an ordinary loss module, for a training loop of one's own."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks, saved_tensors_hooks

from diva_rs.errors import WeightsError
from diva_rs.recipes.recipe import Recipe, as_recipe
from diva_rs.step.draws import Draws
from diva_rs.step.inputs import Inputs, checked_epoch
from diva_rs.step.modules import StepModules
from diva_rs.step.terms import Term


class FeedbackLoss(nn.Module):
    """``loss = feedback(images); loss.backward()`` with any optimizer, accelerate or DistributedDataParallel.

    CLIP's vision tower runs inside ordinary autograd, so hooks, DDP's reducers and gradient scalers see what
    they expect. The teacher is no submodule: ``parameters()`` and ``state_dict()`` hold CLIP, the projector
    and the draw counter alone. Text-side parameters of a full CLIP take no part; under DDP pass
    ``find_unused_parameters=True`` or hand over the vision model only. A copy (``copy.deepcopy``, torch's
    ``AveragedModel``, EMA helpers) has its own CLIP and projector, and shares the teacher. With
    ``low_rank`` A and B are parameters of this module; until `merge` is called, CLIP holds the weights of the
    last forward pass, and the vision parameters that do not train are frozen.

    Args:
        clip: as for `Trainer`; changed in place by the caller's optimizer.
        unet: as for `Trainer`; None for terms that do without a diffusion model.
        recipe: a `Recipe`, a preset's name, or None for the defaults. Its optimizer fields and its stages are
            not used.
        terms: as for `Trainer`.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> feedback = FeedbackLoss(clip, teacher, Recipe(draws=2))
    >>> optimizer = torch.optim.AdamW(feedback.trained_parameters(), lr=1e-5)
    >>> loss = feedback(images[:4])
    >>> loss.backward()
    >>> optimizer.step()
    """

    step_modules: StepModules

    def __init__(
        self,
        clip: nn.Module,
        unet: Any,
        recipe: Recipe | str | None = None,
        terms: Mapping[str, tuple[float, Term]] | None = None,
    ) -> None:
        super().__init__()
        self.recipe = as_recipe(recipe)
        self.clip = clip
        modules = StepModules(clip, unet, self.recipe, terms)
        self.projector = modules.projector
        if modules.low_rank is not None:
            modules.low_rank.freeze()
            named = modules.low_rank.factors()
            self.low_rank = nn.ParameterDict({name.replace(".", "/"): p for name, p in named.items()})
        # Past nn.Module's registration: the frozen teacher is neither trained nor saved nor moved.
        object.__setattr__(self, "step_modules", modules)
        self.epoch = 0
        self._calls = 0
        self.losses: dict[str, Tensor] = {}  # of the last call, by name: 0-dim, detached
        self.samples_seen = 0  # by this rank, within this epoch: the default ids of samples that come without

    @property
    def backend(self) -> dict[str, str]:
        """What runs natively, and why the rest does not: see `Trainer.backend`."""
        return self.step_modules.backend

    def trained_parameters(self) -> list[nn.Parameter]:
        """CLIP's vision parameters, or its low-rank ones, and the projector's: what an optimizer should get.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> len(FeedbackLoss(clip, teacher).trained_parameters()) > 2
        True
        """
        return [*self.step_modules.parts["tower"].values(), *self.projector.parameters()]

    # The step is native: a compiled loop breaks its graph here.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, images: Any, ids: Any = None, draws: Draws | None = None) -> Tensor:
        """Mean loss over a batch (0-dim), differentiable in CLIP's vision tower and the projector.

        Arguments and errors are those of `Trainer.accumulate`. Samples without ids are numbered over all
        ranks, which take turns (sample i of rank r is number ``i * world + r``): no two ranks share a draw.
        """
        modules = self.step_modules
        inputs = modules.inputs(images, ids, self.epoch, draws, self.samples_seen)
        if modules.low_rank is not None:
            modules.low_rank.freeze()
        tokens, bridge = modules.at_cut(inputs.images)
        loss: Tensor = _Feedback.apply(self, inputs, tokens, *bridge)
        self._calls += 1
        if self._calls % self.recipe.log_every == 0:
            modules.guard.report()  # pixels on a device are checked without waiting; here is the one read
        if self.training:
            self.samples_seen += len(inputs.batch)
        return loss

    def merge(self) -> None:
        """Make an ordinary model of a CLIP with a low-rank tower: write A and B into its weights, and let
        its other parameters have gradients again.

        Call it after the last ``optimizer.step()``, before CLIP is measured or saved. Training may go on.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> FeedbackLoss(clip, teacher, Recipe(low_rank=4)).merge()
        """
        self.step_modules.merge()
        if self.step_modules.low_rank is not None:
            self.step_modules.low_rank.freeze(False)

    def set_epoch(self, epoch: int) -> None:
        """Start a pass over the data: draws depend on it, and samples without ids are numbered from 0 again.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> FeedbackLoss(clip, teacher).set_epoch(1)
        """
        self.epoch = checked_epoch(epoch)
        self.samples_seen = 0

    def get_extra_state(self) -> Tensor:
        """The draw counters, and of a low-rank tower what A and B belong to; as a tensor so that every
        checkpoint format can hold them.
        """
        state = [self.epoch, self.samples_seen, *self._low_rank_key()]
        return torch.tensor(state, dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the draw counters; WeightsError where A and B belong to other weights of CLIP."""
        epoch, samples_seen, *key = (int(value) for value in state)
        if key != self._low_rank_key():
            raise WeightsError(
                "the saved state is of another low_rank, low_rank_alpha or CLIP (training changes CLIP in "
                "place): load the model again, and make the FeedbackLoss with the same recipe"
            )
        self.epoch, self.samples_seen = epoch, samples_seen

    def _low_rank_key(self) -> list[int]:
        """A number for alpha and W0 of a low-rank tower."""
        low_rank = self.step_modules.low_rank
        return [] if low_rank is None else [int(low_rank.facts()["start"][:15], 16)]


def _without_hooks() -> AbstractContextManager[Any]:
    """Inside, the caller's hooks on saved tensors do not apply. ``torch.utils.checkpoint`` would run the step
    again in the middle of itself, for ever.
    """
    try:
        with disable_saved_tensors_hooks("there are some"):
            return nullcontext()
    except RuntimeError:
        return saved_tensors_hooks(torch.Tensor.detach, lambda tensor: tensor)


class _Feedback(torch.autograd.Function):
    """Cut 1 as an autograd function: one native call gives loss and gradients, backward hands them out."""

    @staticmethod
    def forward(ctx: Any, module: FeedbackLoss, inputs: Inputs, tokens: Tensor, *bridge: Tensor) -> Tensor:
        modules = module.step_modules
        # In the weights' dtype, also where autocast changed the tokens': float16 would lose small gradients
        # before a GradScaler multiplies them.
        wide = tokens.detach().to(modules.dtype)
        with _without_hooks():
            found = modules.step.at_tokens(wide, inputs.images, inputs.targets, inputs.batch)
        module.losses, d_tokens, d_bridge, _ = found
        modules.report_limit()
        ctx.save_for_backward(d_tokens, *d_bridge)
        ctx.dtypes = (tokens.dtype, *(parameter.dtype for parameter in bridge))
        return module.losses["loss"].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        scaled = (
            None if gradient is None else (gradient * grad.to(gradient.dtype)).to(dtype)
            for gradient, dtype in pairs
        )
        return None, None, *scaled
