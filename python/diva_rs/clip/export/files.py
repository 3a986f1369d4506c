"""One file of weights: for open_clip, and for OpenAI's `clip`."""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from diva_rs._base.arguments import as_path, takes
from diva_rs._base.checkpoint import save_torch, save_weights
from diva_rs._base.files import make_folder
from diva_rs._base.settings import flag
from diva_rs.clip.export.layouts import clip_rules
from diva_rs.clip.export.model import is_open_clip, plain, read
from diva_rs.clip.export.rules import convert
from diva_rs.clip.export.source import ARGMAX, Blocks, Source
from diva_rs.errors import ConfigError

# clip/model.py, `convert_weights`: what a loaded model keeps in half precision.
_HALF = (
    "conv1.weight",
    "in_proj_weight",
    "in_proj_bias",
    "out_proj.weight",
    "out_proj.bias",
    "text_projection",
)
_HALF_ENDINGS = (*_HALF, "c_fc.weight", "c_fc.bias", "c_proj.weight", "c_proj.bias", "visual.proj")


def to_open_clip(clip: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write the weights for ``open_clip.create_model_and_transforms(name, pretrained=path)``.

    Segmentation with SAN and whatever else takes a model name and a file reads them so. The name is that of
    the model's own architecture, with its activation: ``ViT-L-14-quickgelu`` for OpenAI's weights.

    Args:
        clip: an open_clip model (any, by its own keys), a transformers `CLIPModel` or `SiglipModel`, or a ViT
            of OpenAI's `clip`; wrappers are looked through.
        path: a file that ends in ``.safetensors`` or ``.pt``; replaced where it exists.

    Returns:
        The path.

    Raises:
        ConfigError: another ending, or a model that is none of these.
        WeightsError: a weight that open_clip's layout has no place for; names it.
        DataError: the file cannot be written; what was there is unchanged.

    >>> import tempfile
    >>> path = to_open_clip(clip, tempfile.mkdtemp() + "/clip.safetensors")
    >>> torch.equal(diva_rs._base.checkpoint.load_weights(path)["visual.proj"], clip.visual.proj)
    True
    """
    model, state = plain(clip)
    if not is_open_clip(model):
        state = read(model, state).state
    return _write(path, state, (".safetensors", ".pt"))


@takes(half=flag())
def to_openai(clip: nn.Module, path: str | os.PathLike[str], *, half: bool = False) -> Path:
    """Write the weights in the layout of OpenAI's `clip`, for ``clip.load(path)``.

    ``clip.load`` infers the sizes from the shapes and builds a model whose matrices are in half precision,
    whatever the file holds; on the CPU it turns them to float32 afterwards. Code that wants the full
    precision of the file builds the model and calls ``load_state_dict`` itself.

    Args:
        clip: an open_clip ViT, a transformers `CLIPModel` or a ViT of OpenAI's `clip`.
        path: a file that ends in ``.pt``; replaced where it exists.
        half: store in float16 what ``clip.load`` keeps in float16: half the size, the same loaded model.

    Returns:
        The path.

    Raises:
        ConfigError: another ending, or what this layout has no word for: GELU without "quick", heads that are
            not 64 wide, SigLIP.
        WeightsError: a weight that this layout has no place for, such as a layer scale; names it.
        DataError: the file cannot be written; what was there is unchanged.

    >>> to_openai(clip, "clip.pt")
    Traceback (most recent call last):
    diva_rs.errors.ConfigError: visual: the activation is gelu, OpenAI's clip computes quick_gelu: ...
    """
    source = read(*plain(clip))
    _check_openai(source)
    state = source.state
    if half:
        state = {key: value.half() if key.endswith(_HALF_ENDINGS) else value for key, value in state.items()}
    return _write(path, state, (".pt",))


def _check_openai(source: Source) -> None:
    if source.family != "clip" or source.text is None:
        raise ConfigError(
            "a SigLIP cannot be written in the layout of OpenAI's clip, which has a class token"
        )
    for where, blocks in (("visual", source.vision), ("text", source.text.blocks)):
        _check_blocks(where, blocks)
    if source.text.pool not in (ARGMAX, source.text.vocab - 1):
        raise ConfigError(
            f"the text is read at token {source.text.pool}, in OpenAI's clip at the highest token number"
        )
    # The keys: the same rules that transformers is written by, one to one.
    convert(source.state, clip_rules(source.vision.layers, source.text.blocks.layers), "OpenAI clip")


def _check_blocks(where: str, blocks: Blocks) -> None:
    expected = {
        "activation": (blocks.activation, "quick_gelu"),
        "head width": (blocks.width / blocks.heads, 64),
        "MLP's width": (blocks.mlp, 4 * blocks.width),
        "LayerNorm eps": (blocks.eps, 1e-5),
    }
    for what, (found, needed) in expected.items():
        if found != needed:
            raise ConfigError(
                f"{where}: the {what} is {found}, OpenAI's clip computes {needed}: the layout cannot say so"
            )


def _write(path: str | os.PathLike[str], state: Mapping[str, Tensor], endings: tuple[str, ...]) -> Path:
    file = as_path(path).expanduser()
    if file.suffix not in endings:
        raise ConfigError(
            f"{file} ends in {file.suffix!r}: a file that ends in {' or '.join(endings)} is needed"
        )
    make_folder(file.parent)
    if file.suffix == ".safetensors":
        save_weights(file, state)
    else:
        save_torch(file, state)
    return file
