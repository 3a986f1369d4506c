"""diffusers' UNet2DConditionModel: the condition is what the cross-attention reads."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from diva_rs.diffusion.condition import Condition, Slots
from diva_rs.diffusion.families.family import Context, Family, NativePlan
from diva_rs.diffusion.families.text_time import TextTime
from diva_rs.errors import ConfigError


class UNet(Family):
    """Stable Diffusion 1 and 2, DeepFloyd, and what is common to the UNets of other files."""

    of = "UNet2DConditionModel"
    supported = "a diffusers UNet2DConditionModel"
    folder = "unet"
    options = frozenset({"added_cond_kwargs"})

    def __init__(
        self, model: nn.Module, context: Context, added_cond_kwargs: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(model, context)
        config: Any = self.model.config
        _check(config)
        # DeepFloyd's UNet itself projects a wider text into the width of its cross-attention.
        width = config.encoder_hid_dim
        self.text_width = _one_width(config.cross_attention_dim) if width is None else int(width)
        self.slots = Slots(tokens=self.text_width)
        self.added: TextTime | None = None
        if config.addition_embed_type == "text_time":
            self.added = TextTime(
                config, added_cond_kwargs or {}, context.pixels_per_latent, context.pooled_width
            )
        elif added_cond_kwargs is not None:
            raise ConfigError(
                "added_cond_kwargs is given, but this UNet has no embedding of pooled text and sizes, as "
                "SDXL's has"
            )

    @property
    def entry(self) -> str:
        return f"cross-attention, {self.slots.width} wide"

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        return self.call(noisy, timesteps, condition.tokens)

    def call(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        hidden: Tensor | None,
        class_labels: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> Tensor:
        output: Tensor = self.model(
            noisy,
            timesteps,
            encoder_hidden_states=hidden,
            class_labels=class_labels,
            added_cond_kwargs=None if self.added is None else self.added.like(noisy, pooled),
            return_dict=False,
        )[0]
        return output

    def native(self) -> NativePlan | str:
        if self.added is None:
            return NativePlan("unet_2d_condition", {"text_time": None})
        added = self.added.native(next(self.model.parameters()))
        if isinstance(added, str):
            return added
        fields, fixed = added
        return NativePlan("unet_2d_condition", {"text_time": fields}, fixed)


_SUPPORTED = {"addition_embed_type": ("text", "text_time"), "encoder_hid_dim_type": ("text_proj",)}


def _check(config: Any) -> None:
    """Raise ConfigError for a UNet that needs inputs beside noise, timestep and condition."""
    takes, gives = int(config.in_channels), int(config.out_channels)
    if gives not in (takes, 2 * takes):
        raise ConfigError(
            f"this UNet takes {takes} channels and predicts {gives}: it needs more than the noisy image, as "
            "models for inpainting, upscaling and editing do; take the text-to-image model of its family"
        )
    embedding, classes = config.class_embed_type, config.num_class_embeds
    if embedding not in (None, "projection", "simple_projection") or (embedding is None and classes):
        found = repr(embedding) if embedding is not None else f"a table of {classes} classes"
        raise ConfigError(f"this UNet's class embedding, {found}, is not supported: only 'projection' is")
    if config.time_cond_proj_dim is not None:
        raise ConfigError(
            f"this UNet's time_cond_proj_dim is {config.time_cond_proj_dim}: it was distilled to read a "
            "guidance scale, as latent consistency models are; take the model that it was distilled from"
        )
    for name, supported in _SUPPORTED.items():
        if config[name] not in (None, *supported):
            known = " and ".join(map(repr, supported))
            raise ConfigError(f"this UNet's {name}, {config[name]!r}, is not supported: only {known}")
    blocks = (*config.down_block_types, str(config.mid_block_type), *config.up_block_types)
    if config.cross_attention_dim is None or not any("CrossAttn" in block for block in blocks):
        raise ConfigError(
            "this UNet has no cross-attention, so no condition could reach it: take a text-to-image model"
        )


def _one_width(width: Any) -> int:
    widths = set(width) if isinstance(width, (tuple, list)) else {width}
    if len(widths) != 1:
        raise ConfigError(
            f"this UNet's blocks cross-attend to different widths, {sorted(widths)}: one condition cannot fit"
        )
    return int(widths.pop())


FAMILY = UNet
