"""Train all checkpoints of the microworld from scratch and write their manifest."""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import diva_rs
from diva_rs._base.checkpoint import save_weights
from diva_rs._base.files import make_folder, write_json
from diva_rs.errors import ConfigError
from diva_rs.microworld.dataset import World
from diva_rs.microworld.models import new_clip, new_text_encoder, new_unet, new_vae
from lab.pretraining.clip import train_classifier, train_clip, train_text
from lab.pretraining.data import Pixels
from lab.pretraining.denoiser import encode, train_dit, train_unet
from lab.pretraining.margins import margins
from lab.pretraining.vae import reconstruction_error, train_vae
from lab.world import StudyWorld, clip_name, new_dit


@dataclass(frozen=True)
class Lengths:
    """Optimizer steps of each training, and the share of captions that name an attribute."""

    text: int = 600
    objects: int = 2000
    clip: int = 500
    vae: int = 2000
    unet: int = 3000
    dit: int = 1000
    images: int = 65536
    share: float = 0.03
    asked: int = 4096  # scenes of the manifest's scores


QUICK = Lengths(text=4, objects=4, clip=4, vae=4, unet=4, dit=4, images=256, asked=64)


def pretrain(
    folder: str | Path, lengths: Lengths = Lengths(), seed: int = 0, clips: int = 1
) -> dict[str, Any]:
    """Train the microworld's CLIP, VAE, UNet with text encoder and DiT, and write ``manifest.json``.

    An interrupted run resumes: parts that ``folder`` already has are kept. Other settings than those of the
    kept parts are a ConfigError. Weights are saved in half precision, and the manifest's scores are those of
    the saved weights. Takes about forty minutes on two cores.

    Args:
        folder: for the checkpoints.
        lengths: the number of steps of each training.
        seed: of initial weights and of the orders of images.
        clips: number of CLIPs; they have consecutive seeds.

    Returns:
        the manifest.
    """
    place = make_folder(folder)
    settings = {**asdict(lengths), "seed": seed}
    notes = _Notes(place, settings)
    world = World("train", lengths.images, seed)
    pixels = _once(lambda: Pixels(world))
    latents = _once(lambda: encode(StudyWorld(place).vae, pixels()))

    for number in range(clips):
        name = clip_name(number)
        if notes.missing(name):
            clip: Any = new_clip(seed + number)
            with notes.timed(name, {name: clip}):
                train_text(clip, world, lengths.images, lengths.text, seed=seed + number)
                train_classifier(clip.visual, world, pixels(), lengths.objects, seed=seed + number)
                train_clip(clip, world, pixels(), lengths.clip, lengths.share, seed=seed + number)
    if notes.missing("vae"):
        vae = new_vae(seed)
        with notes.timed("vae", {"vae": vae}):
            train_vae(vae, pixels(), lengths.vae, seed=seed)
            notes.manifest["scaling_factor"] = vae.config.scaling_factor  # type: ignore[union-attr]
    if notes.missing("unet"):
        unet, encoder = new_unet(seed), new_text_encoder(seed)
        with notes.timed("unet", {"unet": unet, "text_encoder": encoder}):
            train_unet(unet, encoder, world, latents(), lengths.unet, seed=seed)
    if notes.missing("dit"):
        dit = new_dit(seed)
        with notes.timed("dit", {"dit": dit}):
            train_dit(dit, world, latents(), lengths.dit, seed=seed)
    notes.manifest["validation"] = figures(StudyWorld(place), lengths.asked)
    notes.write()
    return notes.manifest


def figures(world: StudyWorld, asked: int = 4096) -> dict[str, Any]:
    """The scores of the checkpoints on the validation split, for the manifest.

    Returns:
        "clip", "clip-1", ...: scores of `Measure`; "vae": squared error of pixels in [-1, 1];
        "unet": loss and margins.
    """
    from lab.study.measure import Measure

    measure = Measure("validation", asked, asked, per_pattern=max(1, asked // 20))
    scenes = World("validation", max(1, asked // 4))
    pixels = Pixels(scenes)
    latents = encode(world.vae, pixels)
    return {
        **{clip_name(number): measure(world.clip(number)) for number in range(world.clips)},
        "vae": reconstruction_error(world.vae, pixels),
        "unet": margins(world.unet, world.text_encoder, scenes, latents),
    }


class _Notes:
    """The manifest, written after each part."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        file = folder / "manifest.json"
        self.manifest: dict[str, Any] = {"settings": settings, "made": {}, "clips": [], "scaling_factor": 1.0}
        if file.exists():
            self.manifest = StudyWorld(folder).manifest
            was = self.manifest.get("settings", {})
            differing = [name for name in settings if settings[name] != was.get(name)]
            if differing:
                name = differing[0]
                raise ConfigError(
                    f"{folder} holds checkpoints made with {name}={was.get(name)!r}, now {name}="
                    f"{settings[name]!r}: use another folder"
                )

    def missing(self, part: str) -> bool:
        return part not in self.manifest["made"]

    @contextmanager
    def timed(self, part: str, models: dict[str, nn.Module]) -> Iterator[None]:
        """Time the block; then save the weights and write the manifest."""
        started = time.perf_counter()
        yield
        for name, model in models.items():
            weights = {
                key: tensor.half() if tensor.is_floating_point() else tensor
                for key, tensor in model.state_dict().items()
            }
            save_weights(self.folder / f"{name}.safetensors", weights)
        seconds = round(time.perf_counter() - started)
        parameters = sum(p.numel() for model in models.values() for p in model.parameters())
        if part.startswith("clip"):
            self.manifest["clips"].append(part)
        self.manifest["made"][part] = {"seconds": seconds, "parameters": parameters}
        self.write()

    def write(self) -> None:
        self.manifest["environment"] = {
            "diva_rs": diva_rs.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        }
        write_json(self.folder / "manifest.json", self.manifest)


def _once(make: Callable[[], Any]) -> Callable[[], Any]:
    made: list[Any] = []

    def get() -> Any:
        if not made:
            made.append(make())
        return made[0]

    return get
