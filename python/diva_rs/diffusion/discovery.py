"""Where a teacher's parts are: given, in a pipeline, or on disk beside the denoiser; loaded when needed."""

import re
from pathlib import Path
from typing import Any

from torch import nn

from diva_rs._base.files import as_path
from diva_rs._base.hub import mirror
from diva_rs._base.stored import check_stored
from diva_rs.clip import unwrap
from diva_rs.diffusion.families import family_of, folders, supported
from diva_rs.diffusion.frozen import emptied
from diva_rs.diffusion.loading import denoiser_name, load_part, text_config
from diva_rs.errors import ConfigError, WeightsError, a_type

# A repository on the Hub is owner/name; anything that looks like a path is none.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SINGLE = (".safetensors", ".ckpt", ".bin", ".pth", ".pt", ".gguf")
_NAMES = {"vae": "VAE", "text_encoder": "text encoder"}
_ARGUMENTS = {"vae": "vae", "scheduler": "scheduler"}


class Parts:
    """The parts of one diffusion model by their diffusers names: "vae", "scheduler", "text_encoder", ...

    ``source`` is a denoiser, a pipeline, a folder (of a pipeline or of a denoiser) or a Hub repository.
    Parts that are ``given`` come before what is found.
    """

    def __init__(self, source: Any, given: dict[str, Any]) -> None:
        self._parts: dict[str, Any] = {}
        self._where: dict[str, str] = {}
        self._failed: dict[str, str] = {}
        self._root: str | None = None  # the pipeline's folder or Hub repository
        if isinstance(source, (str, Path)):
            model = self._opened(str(source))
        elif isinstance(source, nn.Module):
            model = self._given(source)
        elif "DiffusionPipeline" in {base.__name__ for base in type(source).__mro__}:
            model = self._in_pipeline(source)
        else:
            raise ConfigError(f"unet is {a_type(source)}, expected {_expected()}")
        if family_of(model) is None:
            raise ConfigError(f"{type(model).__name__} cannot be a teacher; expected {_expected()}")
        self.denoiser: nn.Module = model
        self._parts["unet"] = model
        self._hold(given, "given")

    def get(self, name: str) -> Any | None:
        """The part, loaded at the first call; None when there is none."""
        if name not in self._parts and self.findable(name):
            assert self._root is not None
            try:
                self._parts[name] = load_part(self._root, name)
                self._where[name] = f"from {self._root}/{name}"
            except WeightsError as err:
                if Path(self._root).is_dir():
                    raise
                # A repository without this part and a Hub out of reach look alike here.
                self._failed[name] = str(err)
        return self._parts.get(name)

    def need(self, name: str) -> Any:
        """The part, or a ConfigError that says where it was looked for and which argument supplies it."""
        part = self.get(name)
        if part is None:
            argument = _ARGUMENTS.get(name, "text_condition")
            raise ConfigError(
                f"no {_NAMES.get(name, name)} was found{self._searched(name)}: "
                f"pass Teacher(unet, {argument}=...)"
            )
        return part

    def loaded(self, name: str) -> Any | None:
        """The part if it is in memory already."""
        return self._parts.get(name)

    def findable(self, name: str) -> bool:
        """Whether the part could still be loaded from disk or the Hub; costs neither loading nor network."""
        if self._root is None or name in self._parts or name in self._failed:
            return False
        if Path(self._root).is_dir():
            return Path(self._root, name).is_dir()
        return _HUB_NAME.fullmatch(self._root) is not None

    def pooled_width(self) -> int | None:
        """The width of SDXL's pooled text, read without loading weights; None where it is not known."""
        name = "text_encoder_2"
        config = getattr(self._parts.get(name), "config", None)
        if config is None and self._root is not None and self.findable(name):
            try:
                config = text_config(self._root, name)
            except WeightsError:
                if Path(self._root).is_dir():
                    raise
        width = getattr(config, "projection_dim", None)
        return None if width is None else int(width)

    def owned(self, name: str) -> bool:
        """Whether the part was loaded here, so that no other object holds it."""
        return self._where.get(name, "").startswith("from ")

    def consume(self, part: nn.Module, used: nn.Module) -> None:
        """Empty a part of which ``used`` is a copy, and hold the copy in its place."""
        if part is not used:
            emptied(part)
            self._parts = {name: used if one is part else one for name, one in self._parts.items()}

    def where(self, name: str) -> str:
        """Where the part is from, for people."""
        if self.findable(name):
            return f"in {self._root}/{name}, not loaded yet"
        return self._where.get(name, "not found")

    def _hold(self, parts: dict[str, Any], place: str) -> None:
        for name, part in parts.items():
            if part is not None:
                self._parts[name] = unwrap(part) if isinstance(part, nn.Module) else part
                self._where[name] = place

    def _given(self, model: nn.Module) -> nn.Module:
        model = unwrap(model)
        self._where["unet"] = "given"
        # Written by diffusers' from_pretrained.
        named = getattr(getattr(model, "config", None), "_name_or_path", None)
        if named:
            self._root = _root_of(Path(str(named)))
        return model

    def _in_pipeline(self, pipeline: Any) -> nn.Module:
        place = f"in the {type(pipeline).__name__}"
        self._hold(pipeline.components, place)
        self._where["unet"] = place
        named = [self._parts[name] for name in folders() if name in self._parts]
        held = [part for part in self._parts.values() if family_of(part) is not None] or named
        if not held:
            raise ConfigError(f"the {type(pipeline).__name__} holds no denoiser; expected {_expected()}")
        model: nn.Module = held[0]
        return model

    def _opened(self, source: str) -> Any:
        folder = as_path(source)
        if folder.is_dir():
            self._root = _root_of(folder)
            names = (*folders(), "") if self._root == str(folder) else (folder.name,)
            held = [name for name in names if (Path(self._root) / name / "config.json").is_file()]
            if not held and any(file.suffix in _SINGLE for file in folder.iterdir()):
                raise ConfigError(f"{folder} holds no config.json: {_single_file('PATH')}")
            if not held and (folder / "snapshots").is_dir():
                raise ConfigError(f"{folder} is a cache of the Hub: give a folder in {folder / 'snapshots'}")
            if not held:
                inside = ", ".join(folders())
                raise ConfigError(
                    f"{folder} is not a diffusers folder: it has no config.json, nor do its folders {inside}"
                )
            name = held[0]
        elif not folder.exists() and _HUB_NAME.fullmatch(source):
            self._root = source
            try:
                name = denoiser_name(source, folders())
            except WeightsError as err:
                raise ConfigError(
                    f"{source} is not a folder here, and the Hugging Face Hub did not supply it: {err}"
                ) from err
        elif folder.exists():
            check_stored(folder)
            raise ConfigError(f"{folder} is one file: {_single_file(str(folder))}")
        else:
            repository = mirror(folder.name) or "OWNER/NAME"
            raise ConfigError(
                f"{folder} does not exist; expected {_expected()}. Such a folder is a download: hf download "
                f"{repository} --local-dir {folder}"
            )
        self._where["unet"] = f"from {self._root}/{name}" if name else f"from {self._root}"
        return load_part(self._root, name)

    def _searched(self, name: str) -> str:
        if name in self._failed:
            return f" ({self._failed[name]})"
        if self._root is not None:
            return f" in {self._root}"
        if self._where["unet"] != "given":
            return f" {self._where['unet']}"
        return " (the denoiser does not say which folder it was loaded from)"


def _expected() -> str:
    return (
        f"{supported()}, a pipeline that holds one, a diffusers folder, a repository on the Hugging Face "
        "Hub, a diva_rs.Teacher, or Teacher(predict=...) for any other model"
    )


def _single_file(path: str) -> str:
    return (
        "diffusers loads one file of weights with StableDiffusionPipeline (or the pipeline of its family)"
        f'.from_single_file("{path}"): pass that pipeline, or the folder that its save_pretrained writes'
    )


def _root_of(folder: Path) -> str:
    """The pipeline's folder, also when the denoiser's own folder inside it is named."""
    own = folder.name in folders() and (folder / "config.json").is_file()
    return str(folder.parent) if own else str(folder)
