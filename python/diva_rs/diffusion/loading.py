"""Loading one part of a diffusers folder or Hub repository, strictly: no weight is ever left to chance."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diva_rs._base.files import check_model
from diva_rs._base.hub import check_weights, hub_reason, variant_of
from diva_rs._base.optional import one_line, require
from diva_rs.errors import ConfigError, DivaError, WeightsError, shown


def load_part(root: str, name: str) -> Any:
    """The part ``name`` ("unet", "transformer", "vae", "scheduler", "tokenizer", ...) of a pipeline.

    ``root`` is a pipeline folder, or a repository on the Hugging Face Hub (downloaded by its client). The
    name "" stands for a folder that holds the denoiser alone. Raises WeightsError where a file is damaged, or
    a weight is missing, unexpected or misshapen.
    """
    place = f"{root}/{name}" if name else root
    try:
        if Path(place).is_dir():
            check_model(Path(place))
            check_weights(Path(place))
        if name.startswith("tokenizer"):
            transformers = require("transformers", extra="diffusers")
            auto = require("transformers.models.auto.tokenization_auto", extra="diffusers")
            # Beside CLIP's there are those of T5, and others that a folder names.
            wanted = str(auto.get_tokenizer_config(root, subfolder=name).get("tokenizer_class"))
            kind = getattr(transformers, wanted, transformers.CLIPTokenizer)
            tokenizer = kind.from_pretrained(root, subfolder=name)
            longest = tokenizer.model_max_length
            if not isinstance(longest, int) or longest < 1:
                raise WeightsError(f"{place}: model_max_length is {shown(longest)}, no whole number")
            return tokenizer
        if name.startswith("text_encoder"):
            return _text_encoder(root, name, place)
        return _diffusers_part(root, name, place)
    except DivaError:
        raise
    except Exception as err:  # json, safetensors, pickle, OS and network errors of two libraries
        reason = one_line(err) if Path(root).is_dir() else hub_reason(err, root)
        raise WeightsError(f"{place} could not be loaded: {reason}") from err


def denoiser_name(root: str, names: Sequence[str]) -> str:
    """The folder of a pipeline's denoiser: the one of ``names`` that its model_index.json has."""
    diffusers = require("diffusers", extra="diffusers")
    try:
        index = diffusers.DiffusionPipeline.load_config(root)
    except Exception as err:
        raise WeightsError(hub_reason(err, root)) from err
    return next((name for name in names if name in index), names[0])


def _diffusers_part(root: str, name: str, place: str) -> Any:
    diffusers = require("diffusers", extra="diffusers")
    subfolder = {"subfolder": name} if name else {}
    # Any class of the kind reads the configuration of all of them; it names the class that is wanted.
    schedules = name.endswith("scheduler")
    reader = diffusers.DDPMScheduler if schedules else diffusers.AutoencoderKL
    class_name = str(reader.load_config(root, **subfolder).get("_class_name"))
    kind = getattr(diffusers, class_name, None) or getattr(
        require("diffusers.pipelines.stable_diffusion", extra="diffusers"), class_name, None
    )
    if kind is None:
        raise ConfigError(f"{place} is a {class_name}, which diffusers {diffusers.__version__} does not have")
    # A file may name any class. Those of pipelines run code that lies beside the weights.
    base = diffusers.SchedulerMixin if schedules else diffusers.ModelMixin
    if base not in getattr(kind, "__mro__", ()):
        raise ConfigError(f"{place} is a {class_name}, which is no {base.__name__} of diffusers")
    if schedules:
        return kind.from_pretrained(root, **subfolder)
    lean = find_spec("accelerate") is not None  # where it is missing, diffusers warns and loads all the same
    model, info = _from_pretrained(kind, root, name, low_cpu_mem_usage=lean)
    _strict(place, info, ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def text_config(root: str, name: str) -> Any:
    """The configuration of a text encoder, without its weights; WeightsError where it cannot be read."""
    transformers = require("transformers", extra="diffusers")
    try:
        # Without the last argument a file could have a question asked on the terminal.
        return transformers.AutoConfig.from_pretrained(root, subfolder=name, trust_remote_code=False)
    except Exception as err:
        raise WeightsError(f"{root}/{name} could not be loaded: {one_line(err)}") from err


def _text_encoder(root: str, name: str, place: str) -> Any:
    transformers, config = require("transformers", extra="diffusers"), text_config(root, name)
    class_name = str((config.architectures or ["unknown"])[0])
    if class_name not in ("CLIPTextModel", "CLIPTextModelWithProjection"):
        raise ConfigError(
            f"{place} is a {class_name}, only CLIP text encoders are run here: encode the prompt with its "
            "own pipeline and pass Teacher(unet, text_condition=...)"
        )
    kind = getattr(transformers, class_name)
    model, info = _from_pretrained(kind, root, name)
    # Extra keys are usual here: text encoders are published inside files of a whole CLIP.
    _strict(place, info, ("missing_keys", "mismatched_keys"))
    # One prompt is encoded once: float32 costs nothing and half precision is not on every CPU.
    return model.float()


def _from_pretrained(kind: Any, root: str, name: str, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """The model and its loading info; in half precision where there is no other."""
    settings |= {"output_loading_info": True, **({"subfolder": name} if name else {})}
    variant, here = variant_of(Path(root) / name), Path(root).is_dir()
    try:
        return kind.from_pretrained(root, variant=variant, **settings)  # type: ignore[no-any-return]
    except OSError as err:
        if here:
            raise
        try:  # a repository does not say which variants it has
            return kind.from_pretrained(root, variant="fp16", **settings)  # type: ignore[no-any-return]
        except OSError:
            raise err from None


def _strict(place: str, info: dict[str, Any], kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        keys = sorted(str(key) for key in info[kind])
        if keys:
            found = f"{len(keys)} {kind.replace('_', ' ')} ({', '.join(keys[:5])})"
            raise WeightsError(f"{place}: {found}: the weights do not fit the config.json beside them")
