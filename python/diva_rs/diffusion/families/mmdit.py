"""What Flux and Stable Diffusion 3 share: joint attention to tokens, and a pooled vector beside the time."""

from typing import Any

from torch import Tensor, nn

from diva_rs._base.tensors import described, is_dense
from diva_rs.diffusion.condition import Condition, Slots
from diva_rs.diffusion.families.family import Context, Family, NativePlan
from diva_rs.diffusion.frozen import moved
from diva_rs.diffusion.text import pooled_prompts
from diva_rs.errors import ConfigError, ShapeError, shown


class MMDiT(Family):
    """The condition fills both slots or, with ``slot``, one of them; then the other one reads text.

    The tokens read ``text_condition`` or the empty prompt, the pooled vector ``pooled_projections`` (1, V) or
    the empty prompt.
    """

    options = frozenset({"slot", "pooled_projections"})
    flow = True
    guidance: float | None = None  # the scale that the model is given, where it has an embedding of it

    def __init__(
        self, model: nn.Module, context: Context, slot: str = "both", pooled_projections: Tensor | None = None
    ) -> None:
        super().__init__(model, context)
        config: Any = self.model.config
        widths = {"tokens": int(config.joint_attention_dim), "pooled": int(config.pooled_projection_dim)}
        if slot not in ("both", *widths):
            raise ConfigError(f'slot is {shown(slot)}, expected "both", "tokens" or "pooled"')
        open_ = {name: width for name, width in widths.items() if slot in ("both", name)}
        self.slots = Slots(**open_, apart=slot == "both")
        self.text_joins = slot == "tokens"
        self.text_width = None if slot == "both" else widths["tokens"]
        given, self._pooled = pooled_projections, pooled_projections
        if given is not None and slot != "tokens":
            raise ConfigError(
                f"pooled_projections is given, but slot is {slot!r}: the condition itself fills that slot; "
                'leave it out, or use slot="tokens"'
            )
        if given is not None and (not is_dense(given) or tuple(given.shape) != (1, widths["pooled"])):
            raise ShapeError(
                f"pooled_projections is {described(given)}, expected a tensor (1, {widths['pooled']})"
            )
        takes, gives = int(config.in_channels), int(self.model.out_channels)
        if takes != gives:
            raise ConfigError(
                f"this {type(model).__name__} takes {takes} channels and predicts {gives}: it needs "
                "more than noise, as models for inpainting do; take the text-to-image model of its family"
            )

    def filled(self, noisy: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """The tokens (B, S, C) and pooled vectors (B, V): the condition, and text where it fills one slot."""
        tokens, pooled = condition.tokens, condition.pooled
        if tokens is None:
            assert self.text_width is not None
            text = moved(self.context.text(self.text_width), noisy.device, noisy.dtype)
            tokens = text.expand(len(noisy), -1, -1)
        if pooled is None:
            pooled = moved(self.pooled_text(), noisy.device, noisy.dtype).expand(len(noisy), -1)
        return tokens, pooled

    def native(self) -> NativePlan:
        fixed = {}
        if self.slots.tokens is None:
            assert self.text_width is not None
            fixed["encoder_hidden_states"] = self.context.text(self.text_width)
        if self.slots.pooled is None:
            fixed["pooled_projections"] = self.pooled_text()
        return NativePlan("mmdit", {} if self.guidance is None else {"guidance": self.guidance}, fixed)

    def pooled_text(self) -> Tensor:
        """The pooled vector (1, V) beside a condition that fills the tokens alone."""
        if self._pooled is None:
            self._pooled = pooled_prompts([""], self.context.part, self.pooling)
        if self._pooled is None:
            raise ConfigError(
                'slot="tokens" leaves the pooled slot to text, and no text encoder was found: pass '
                "Teacher(..., pooled_projections=...), a tensor (1, V) that the model's own pipeline encodes"
            )
        return self._pooled
