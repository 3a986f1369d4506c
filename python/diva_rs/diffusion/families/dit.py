"""diffusers' DiTTransformer2DModel: the condition enters through the label embedding of each block."""

from typing import Any

from torch import Tensor, nn

from diva_rs.diffusion.condition import Condition, Slots
from diva_rs.diffusion.families.family import Context, Family, NativePlan
from diva_rs.diffusion.frozen import rebuilt
from diva_rs.errors import ConfigError, ShapeError


class DiT(Family):
    """The condition replaces the label embedding of each block, or joins that of "no class"."""

    of = "DiTTransformer2DModel"
    supported = "a diffusers DiTTransformer2DModel"
    options = frozenset({"label"})

    def __init__(self, model: nn.Module, context: Context, label: str = "replace") -> None:
        super().__init__(model, context)
        if label not in ("replace", "join"):
            raise ConfigError(f'label is {label!r}, expected "replace" or "join"')
        config: Any = self.model.config
        self.label = label
        self.slots = Slots(pooled=int(config.num_attention_heads) * int(config.attention_head_dim))
        self.patch = int(config.patch_size)
        # The view shares every weight of the given model, which keeps its embedders and gets no hooks. A
        # hook would be gone when gradient checkpointing runs a block once more during the backward pass.
        self.view: Any = rebuilt(model, lambda tensor: tensor)
        blocks: Any = self.view.transformer_blocks
        for block in blocks:
            embed = block.norm1.emb
            embed.class_embedder = nn.Identity() if label == "replace" else _Joined(embed.class_embedder)

    @property
    def entry(self) -> str:
        return f"label embedding ({self.label}), {self.slots.width} wide"

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        height, width = noisy.shape[-2:]
        if height != width or height % self.patch:
            raise ShapeError(
                f"noisy is {tuple(noisy.shape)}: a DiT takes squares whose side is a multiple of its patch "
                f"size, {self.patch}"
            )
        output: Tensor = self.view(noisy, timesteps, class_labels=condition.pooled, return_dict=False)[0]
        return output

    def native(self) -> NativePlan:
        return NativePlan("dit", {"label": self.label})


class _Joined(nn.Module):
    """The given embedding plus that of "no class": diffusers LabelEmbedding's row after the last class."""

    def __init__(self, embedder: Any) -> None:
        super().__init__()
        self.embedding_table = embedder.embedding_table
        self.num_classes = int(embedder.num_classes)

    def forward(self, embedding: Tensor) -> Tensor:
        no_class: Tensor = self.embedding_table.weight[self.num_classes]
        return embedding + no_class


FAMILY = DiT
