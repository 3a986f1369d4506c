"""How a condition (B, S, C) enters a denoiser: cross-attention, class projection or label embedding."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from diva_rs.diffusion.frozen import moved, rebuilt
from diva_rs.diffusion.sdxl import AddedCondition
from diva_rs.errors import ConfigError, ShapeError, shown

LABELS = ("replace", "join")


class Conditioning(ABC):
    """One denoiser and the way into it."""

    width: int  # C of the condition
    text_width: int | None  # width of the model's text tokens; None for a model that reads no text
    text_joins: bool  # whether text tokens may stand in the condition beside the visual ones
    entry: str  # for people

    @abstractmethod
    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Raw output (B, C or 2C, h, w); the inputs are on the model's device and in its dtype."""

    @abstractmethod
    def native(self, checkpoint: bool, exact: nn.Module | None) -> Any:
        """The native network that computes what the model does, or NotNative with the reason.

        ``exact`` is the model before it was rounded to bf16, if it was.
        """


def conditioning_of(
    model: nn.Module,
    added: Mapping[str, Tensor] | None,
    label: str,
    text: Callable[[int], Tensor],
    factor: Callable[[], int],
) -> Conditioning:
    """The conditioning that the model's configuration asks for.

    Args:
        model: a UNet2DConditionModel or a DiTTransformer2DModel.
        added: SDXL's "text_embeds" and "time_ids", where they are given.
        label: "replace" or "join", for DiT.
        text: gives text tokens (1, L, width) to a model whose own condition enters elsewhere (Stable unCLIP).
        factor: gives the pixels per latent along a side, for SDXL's sizes.

    Raises:
        ConfigError: the model needs an input that a training step does not have.
        ShapeError: ``added`` does not fit the model.

    >>> conditioning_of(unet, None, "replace", torch.zeros, lambda: 8).entry
    'cross-attention, 24 wide'
    """
    if not isinstance(label, str) or label not in LABELS:
        raise ConfigError(f'label is {shown(label)}, expected "replace" or "join"')
    config: Any = model.config
    is_unet = hasattr(config, "cross_attention_dim")
    if added is not None and not (is_unet and config.addition_embed_type == "text_time"):
        raise ConfigError(
            f"added_cond_kwargs are given, but this {type(model).__name__} is not of SDXL's kind"
        )
    if not is_unet:
        return _Label(model, label)
    cross = _Cross(model, added, factor)
    return cross if config.class_embed_type is None else _ClassProjection(cross, text)


class _Cross(Conditioning):
    """UNet2DConditionModel: the condition is what the cross-attention reads (encoder_hidden_states)."""

    text_joins = True

    def __init__(
        self, unet: nn.Module, added: Mapping[str, Tensor] | None, factor: Callable[[], int]
    ) -> None:
        config: Any = unet.config
        check_unet(config)
        self.unet = unet
        # DeepFloyd's UNet itself projects a wider text into the width of its cross-attention.
        width = config.encoder_hid_dim
        self.width = _one_width(config.cross_attention_dim) if width is None else int(width)
        self.text_width = self.width
        self.entry = f"cross-attention, {self.width} wide"
        sdxl = config.addition_embed_type == "text_time"
        self.added = AddedCondition(config, added or {}, factor) if sdxl else None

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        return self.call(noisy, timesteps, condition, None)

    def native(self, checkpoint: bool, exact: nn.Module | None) -> Any:
        from diva_rs.native.unet import native_unet

        return native_unet(self.unet, None, self.added, checkpoint, exact)

    def call(self, noisy: Tensor, timesteps: Tensor, hidden: Tensor, class_labels: Tensor | None) -> Tensor:
        output: Tensor = self.unet(
            noisy,
            timesteps,
            encoder_hidden_states=hidden,
            class_labels=class_labels,
            added_cond_kwargs=None if self.added is None else self.added.like(noisy),
            return_dict=False,
        )[0]
        return output


class _ClassProjection(Conditioning):
    """Stable unCLIP: the mean over the positions enters the time embedding, text is cross-attended."""

    text_joins = False

    def __init__(self, cross: _Cross, text: Callable[[int], Tensor]) -> None:
        config: Any = cross.unet.config
        self.cross, self.text = cross, text
        self.width = int(config.projection_class_embeddings_input_dim)
        self.text_width = cross.width
        self.entry = f"class projection, {self.width} wide (text by {cross.entry})"
        self.hidden: Tensor | None = None

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        if self.hidden is None:
            self.hidden = moved(self.text(self.cross.width), noisy.device, noisy.dtype)
        hidden = self.hidden.expand(len(noisy), -1, -1)
        return self.cross.call(noisy, timesteps, hidden, condition.mean(dim=1))

    def native(self, checkpoint: bool, exact: nn.Module | None) -> Any:
        from diva_rs.native.unet import native_unet

        weight = next(self.cross.unet.parameters())
        text = moved(self.text(self.cross.width), weight.device, weight.dtype)
        return native_unet(self.cross.unet, text, self.cross.added, checkpoint, exact)


class _Label(Conditioning):
    """DiT: the mean over the positions replaces each block's label embedding, or joins "no class"."""

    text_joins = True
    text_width = None

    def __init__(self, dit: nn.Module, label: str) -> None:
        config: Any = dit.config
        self.dit, self.label = dit, label
        self.width = int(config.num_attention_heads) * int(config.attention_head_dim)
        self.entry = f"label embedding ({label}), {self.width} wide"
        self.patch = int(config.patch_size)
        # The view has every weight of the given model, which itself keeps its embedders and gets no hooks. A
        # hook would be gone when gradient checkpointing runs a block once more during the backward pass.
        self.view: Any = rebuilt(dit, lambda tensor: tensor)
        blocks: Any = self.view.transformer_blocks
        for block in blocks:
            embed = block.norm1.emb
            embed.class_embedder = _Given() if label == "replace" else _Joined(embed.class_embedder)

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        height, width = noisy.shape[-2:]
        if height != width or height % self.patch:
            raise ShapeError(
                f"noisy is {tuple(noisy.shape)}: a DiT takes squares whose side is a multiple of its patch "
                f"size, {self.patch}"
            )
        label = condition.mean(dim=1)  # (B, C)
        output: Tensor = self.view(noisy, timesteps, class_labels=label, return_dict=False)[0]
        return output

    def native(self, checkpoint: bool, exact: nn.Module | None) -> Any:
        from diva_rs.native.dit import native_dit

        return native_dit(self.dit, self.label, checkpoint, exact)


class _Given(nn.Module):
    """Stands where a label embedding stood: the embedding is handed in, (B, D) -> (B, D)."""

    def forward(self, embedding: Tensor) -> Tensor:
        return embedding


class _Joined(nn.Module):
    """The given embedding plus that of "no class": diffusers LabelEmbedding's row after the last class."""

    def __init__(self, embedder: Any) -> None:
        super().__init__()
        self.embedding_table = embedder.embedding_table
        self.num_classes = int(embedder.num_classes)

    def forward(self, embedding: Tensor) -> Tensor:
        nothing: Tensor = self.embedding_table.weight[self.num_classes]
        return embedding + nothing


def check_unet(config: Any) -> None:
    """Raise ConfigError for a UNet that needs inputs beside noise, timestep and condition.

    >>> check_unet(unet.config)
    """
    takes, gives = int(config.in_channels), int(config.out_channels)
    if gives not in (takes, 2 * takes):
        raise ConfigError(
            f"this UNet takes {takes} channels and predicts {gives}: it needs more than the noisy image, as "
            "models for inpainting, upscaling and editing do; take the text-to-image model of its family"
        )
    kind, classes = config.class_embed_type, config.num_class_embeds
    if kind not in (None, "projection", "simple_projection") or (kind is None and classes is not None):
        shown = repr(kind) if kind is not None else f"a table of {classes} classes"
        raise ConfigError(f"this UNet's class embedding, {shown}, is not supported: only 'projection' is")
    if config.addition_embed_type not in (None, "text", "text_time"):
        raise ConfigError(
            f"this UNet's addition_embed_type, {config.addition_embed_type!r}, is not supported: only 'text' "
            "and 'text_time' are"
        )
    if config.encoder_hid_dim_type not in (None, "text_proj"):
        raise ConfigError(
            f"this UNet's encoder_hid_dim_type, {config.encoder_hid_dim_type!r}, is not supported: only "
            "'text_proj' is"
        )
    blocks = (*config.down_block_types, str(config.mid_block_type), *config.up_block_types)
    if config.cross_attention_dim is None or not any("CrossAttn" in block for block in blocks):
        raise ConfigError(
            "this UNet has no cross-attention, so no condition could reach it: take a text-to-image model"
        )


def check_inputs(noisy: Tensor, timesteps: Tensor, condition: Tensor, channels: int, width: int) -> None:
    """Raise ShapeError unless (B, channels, h, w), (B,) and (B, S, width) belong together.

    >>> check_inputs(torch.zeros(2, 4, 8, 8), torch.zeros(2), torch.zeros(2, 5, 24), 4, 32)
    Traceback (most recent call last):
    ...
    diva_rs.errors.ShapeError: condition is float32 (2, 5, 24), expected floating point (2, S, 32) with S > 0
    """
    sized = noisy.ndim == 4 and noisy.shape[1] == channels and 0 not in noisy.shape
    if not sized or not noisy.is_floating_point():
        raise ShapeError(
            f"noisy is {_shown(noisy)}, expected floating point (B, {channels}, h, w), nothing of it empty"
        )
    batch = len(noisy)
    if tuple(timesteps.shape) != (batch,) or str(timesteps.dtype) == "torch.bool":
        raise ShapeError(f"timesteps is {_shown(timesteps)}, expected numbers ({batch},), one per sample")
    sized = condition.ndim == 3 and len(condition) == batch and condition.shape[2] == width
    if not sized or condition.shape[1] == 0 or not condition.is_floating_point():
        raise ShapeError(
            f"condition is {_shown(condition)}, expected floating point ({batch}, S, {width}) with S > 0"
        )


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _one_width(width: Any) -> int:
    widths = set(width) if isinstance(width, (tuple, list)) else {width}
    if len(widths) != 1:
        raise ConfigError(
            f"this UNet's blocks cross-attend to different widths, {sorted(widths)}: one condition cannot fit"
        )
    return int(widths.pop())
