"""One file of weights: for open_clip, and for OpenAI's `clip`."""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from diva_rs._base.checkpoint import save_torch, save_weights
from diva_rs._base.files import as_path, make_folder
from diva_rs.clip.export.checks import check_dense, check_layers
from diva_rs.clip.export.layouts import clip_rules, convert
from diva_rs.clip.export.source import HIGHEST, Source, read
from diva_rs.clip.facts import Facts, facts
from diva_rs.clip.wrappers import merged, own_weights
from diva_rs.errors import ConfigError

# clip/model.py, `convert_weights`: what a loaded model keeps in half precision.
_HALF = (
    *("conv1.weight", "in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"),
    *("text_projection", "c_fc.weight", "c_fc.bias", "c_proj.weight", "c_proj.bias", "visual.proj"),
)


def to_open_clip(clip: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write the weights for ``open_clip.create_model_and_transforms(name, pretrained=path)``.

    SAN and other code that takes a model name and a file reads them. The name is that of the model's own
    architecture, with its activation: ``ViT-L-14-quickgelu`` for OpenAI's weights. The metadata of a
    .safetensors file say what the model computes (see `diva_rs.clip.facts`). Raises WeightsError naming a
    weight or layer that open_clip does not have, DataError if the file cannot be written.

    ``clip`` is an open_clip model (any, by its own keys), a transformers `CLIPModel` or `SiglipModel`, or a
    ViT of OpenAI's `clip`, wrapped or not; the adapters of a `PeftModel` are merged in a copy. ``path`` ends
    in ``.safetensors`` or ``.pt``; an existing file is replaced. It is returned.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> import tempfile
    >>> path = to_open_clip(clip, tempfile.mkdtemp() + "/clip.safetensors")
    >>> torch.equal(diva_rs._base.checkpoint.load_weights(path)["visual.proj"], clip.visual.proj)
    True
    """
    model = merged(clip)
    check_dense(model)
    if any(cls.__module__.startswith("open_clip.") for cls in type(model).__mro__):
        check_layers(model)
        state = own_weights(model)
    else:
        state = read(model).state
    return _write(path, state, (".safetensors", ".pt"), facts(model))


def to_openai(clip: nn.Module, path: str | os.PathLike[str], *, half: bool = False) -> Path:
    """Write the weights in the layout of OpenAI's `clip`, for ``clip.load(path)``.

    ``clip.load`` builds a model whose matrices are in half precision, also from a float32 file; code that
    needs the full precision builds the model and calls ``load_state_dict`` itself. Raises ConfigError for
    what this layout cannot express (GELU without "quick", heads that are not 64 wide, SigLIP), WeightsError
    naming a weight that it has no place for, such as a layer scale.

    ``clip`` is an open_clip ViT, a transformers `CLIPModel` or a ViT of OpenAI's `clip`; ``path``, a file
    that ends in ``.pt``, is replaced if it exists, and returned. ``half`` stores in float16 what
    ``clip.load`` keeps in float16: half the size, the same loaded model.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> to_openai(clip, "clip.pt")
    Traceback (most recent call last):
    diva_rs.errors.ConfigError: visual: the activation is gelu, OpenAI's clip computes quick_gelu, ...
    """
    model = merged(clip)
    check_dense(model)
    source = read(model)
    _check_openai(source)
    state = source.state
    if half:
        state = {key: value.half() if key.endswith(_HALF) else value for key, value in state.items()}
    return _write(path, state, (".pt",))


def _check_openai(source: Source) -> None:
    vision, text = source.vision, source.text
    if source.family != "clip" or text is None:
        raise ConfigError(
            "a SigLIP cannot be written in the layout of OpenAI's clip, which has a class token"
        )
    for where, blocks in (("visual", vision), ("text", text)):
        expected = {
            "activation": (blocks["hidden_act"], "quick_gelu"),
            "head width": (blocks["hidden_size"] / blocks["num_attention_heads"], 64),
            "MLP's width": (blocks["intermediate_size"], 4 * blocks["hidden_size"]),
            "LayerNorm eps": (blocks["layer_norm_eps"], 1e-5),
        }
        for what, (found, needed) in expected.items():
            if found != needed:
                raise ConfigError(
                    f"{where}: the {what} is {found}, OpenAI's clip computes {needed}, and nothing else"
                )
    end = text["eos_token_id"]
    if end not in (HIGHEST, text["vocab_size"] - 1):
        raise ConfigError(f"the text is read at token {end}, in OpenAI's clip at the highest token number")
    # Its keys are those on the left of the rules for transformers, one to one.
    convert(source.state, clip_rules(vision["num_hidden_layers"], text["num_hidden_layers"]), "OpenAI clip")


def _write(
    path: str | os.PathLike[str],
    state: Mapping[str, Tensor],
    endings: tuple[str, ...],
    about: Facts | None = None,
) -> Path:
    file = as_path(path)
    if file.suffix not in endings:
        raise ConfigError(
            f"{file} ends in {file.suffix!r}: a file that ends in {' or '.join(endings)} is needed"
        )
    make_folder(file.parent)
    if file.suffix == ".safetensors":
        save_weights(file, state, about)
    else:
        save_torch(file, state)
    return file
