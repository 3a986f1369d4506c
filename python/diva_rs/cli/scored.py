"""From what the command line names to a CLIP with the transform and the tokenizer that belong to it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diva_rs._base.checkpoint import load_weights
from diva_rs._base.files import check_files
from diva_rs._base.optional import require
from diva_rs.cli.models import load_clip
from diva_rs.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    import torch

_FILES = {
    "AutoImageProcessor": ("preprocessor_config.json", "processor_config.json"),
    "AutoTokenizer": ("tokenizer.json", "vocab.json", "spiece.model", "vocab.txt"),
}

Scored = tuple[Any, Any, Any]
"""(clip, preprocess, tokenizer)."""


def load_scored(spec: str, device: "torch.device") -> Scored:
    """The model of ``spec`` (as for `load_clip`) in float32, with its own transform and tokenizer.

    Raises:
        ConfigError: no such model, or a transformers folder without image processor or tokenizer.
        WeightsError: the weights cannot be loaded, or do not fit.
    """
    clip = load_clip(spec, device, "fp32").eval()
    return clip, *belongings(clip, spec)


def belongings(clip: Any, spec: str) -> tuple[Any, Any]:
    """The transform and the tokenizer of the model that was loaded by ``spec``.

    Raises:
        ConfigError: a transformers folder without image processor or tokenizer.
    """
    folder = Path(spec)
    if folder.is_dir() and (folder / "config.json").is_file():
        return _of_transformers(folder)
    from open_clip.transform import PreprocessCfg, image_transform_v2

    from diva_rs.clip import adapt

    adapt(clip, training=False)  # warns of pixels that do not belong to the weights
    open_clip = require("open_clip", extra="open-clip")
    visual: Any = clip.visual
    name = f"local-dir:{folder}" if folder.is_dir() else spec
    if ":" in spec and not spec.startswith(("hf-hub:", "local-dir:")) and not folder.is_dir():
        name = spec.partition(":")[0]
    transform = image_transform_v2(PreprocessCfg(**visual.preprocess_cfg), is_train=False)
    return transform, open_clip.get_tokenizer(name)


def load_other(spec: str, first: Scored, device: "torch.device", of: str) -> Scored:
    """The model to compare with: another one, or the weights that a run of ``first``'s model has left.

    ``spec`` is as for `load_clip`, or a .safetensors file or a run folder with clip.safetensors, whose
    weights are put into a fresh model of ``of``.

    Raises:
        WeightsError: the weights are not those of the first model's class.
    """
    path = Path(spec)
    file = path / "clip.safetensors" if (path / "clip.safetensors").is_file() else path
    if not (file.is_file() and file.suffix == ".safetensors"):
        return load_scored(spec, device)
    clip = load_clip(of, device, "fp32").eval()
    try:
        clip.load_state_dict(load_weights(file))
    except RuntimeError as err:
        text = " ".join(str(err).split())
        raise WeightsError(f"{file} does not hold the weights of {of}: {text[:240]}") from err
    return clip, *first[1:]


def _of_transformers(folder: Path) -> tuple[Any, Any]:
    transformers = require("transformers", extra="transformers")
    loaded = []
    for auto, files in _FILES.items():
        try:
            # Without its files AutoTokenizer may return a tokenizer that knows no word, and says nothing.
            if not any((folder / file).is_file() for file in files):
                raise FileNotFoundError
            check_files(folder)
            # Without the last argument a file could have a question asked on the terminal.
            kind = getattr(transformers, auto)
            loaded.append(kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
        except Exception as err:  # OS, value and json errors of many kinds
            raise ConfigError(
                f"{folder} holds no {' or '.join(files)} that transformers can load: save the model's "
                "processor beside it"
            ) from err
    return loaded[0], loaded[1]
