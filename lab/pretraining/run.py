"""Train all checkpoints of a world from scratch and write their manifest."""

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
from diva_rs.microworld.models import new_clip, new_text_encoder, new_unet, new_vae
from diva_rs.microworld.pretrained import Microworld
from lab.pretraining.balance import Balance
from lab.pretraining.clip import train_classifier, train_clip, train_text
from lab.pretraining.data import Pixels
from lab.pretraining.denoiser import encode, train_dit, train_unet
from lab.pretraining.loop import Keep
from lab.pretraining.margins import margins
from lab.pretraining.vae import reconstruction_error, train_vae
from lab.world import StudyWorld, clip_name, new_dit
from lab.worlds import Data, MicroworldData
from lab.worlds.even import Even


@dataclass(frozen=True)
class Lengths:
    """Optimizer steps of each training; no DiT for 0."""

    text: int = 600
    objects: int = 4000
    clip: int = 500
    vae: int = 2000
    unet: int = 8000
    dit: int = 1000
    images: int = 65536
    asked: int = 4096  # scenes of the manifest's scores


QUICK = Lengths(text=4, objects=4, clip=4, vae=4, unet=4, dit=4, images=256, asked=64)


def pretrain(
    folder: str | Path,
    lengths: Lengths = Lengths(),
    seed: int = 0,
    clips: int = 1,
    data: Data | None = None,
    patch: int = Microworld.patch,
    heads: int = 8,
) -> dict[str, Any]:
    """Train a world's CLIP, VAE, UNet with text encoder and DiT, and write ``manifest.json``.

    An interrupted run resumes, also within a part: a training saves its state every 200 steps. Other settings
    than those of the kept parts are a ConfigError. Weights are saved in half precision, and the manifest's
    scores are those of the saved weights. Takes about two hours on two cores.

    Args:
        folder: for the checkpoints.
        lengths: the number of steps of each training.
        seed: of initial weights and of the orders of images.
        clips: number of CLIPs; they have consecutive seeds.
        data: the world; None: the microworld.
        patch: CLIP's, in pixels.
        heads: of each attention of the UNet.

    Returns:
        the manifest.
    """
    data = data or MicroworldData()
    place, side, tokenizer = make_folder(folder), data.side, data.tokenizer
    share = data.share
    kept = asdict(share) if isinstance(share, Even) else share
    notes = _Notes(
        place,
        {**asdict(lengths), "share": kept, "seed": seed, "patch": patch, "heads": heads},
        data.identity(),
    )
    images = data.pretraining(lengths.images, seed)
    pixels = _once(lambda: Pixels(images))
    latents = _once(lambda: encode(StudyWorld(place).vae, pixels()))

    for number in range(clips):
        name, own = clip_name(number), seed + number
        if notes.missing(name):
            clip: Any = new_clip(own, tokenizer, side, patch)
            with notes.timed(name, {name: clip}, "text", "objects", "captions") as (text, objects, captions):
                train_text(clip, images, len(images), lengths.text, seed=own, keep=text)
                train_classifier(clip.visual, images, pixels(), lengths.objects, seed=own, keep=objects)
                named = Balance(share, data, clip) if isinstance(share, Even) else share
                train_clip(clip, images, pixels(), lengths.clip, named, seed=own, keep=captions)
    if notes.missing("vae"):
        vae = new_vae(seed, side)
        with notes.timed("vae", {"vae": vae}) as [keep]:
            train_vae(vae, pixels(), lengths.vae, seed=seed, keep=keep)
            notes.manifest["scaling_factor"] = vae.config.scaling_factor  # type: ignore[union-attr]
    if notes.missing("unet"):
        unet, encoder = new_unet(seed, side, heads), new_text_encoder(seed, tokenizer)
        with notes.timed("unet", {"unet": unet, "text_encoder": encoder}) as [keep]:
            train_unet(unet, encoder, images, latents(), lengths.unet, seed=seed, keep=keep)
    if notes.missing("dit") and lengths.dit:
        dit = new_dit(seed, len(data.vocabulary.subjects), side)
        with notes.timed("dit", {"dit": dit}) as [keep]:
            train_dit(dit, images, latents(), lengths.dit, seed=seed, keep=keep)
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

    measure = Measure("validation", asked, asked, max(1, asked // 20), world.data)
    scenes = world.data.scored("validation", max(1, asked // 4), per_pattern=0)
    pixels = Pixels(scenes)
    latents = encode(world.vae, pixels)
    return {
        **{clip_name(number): measure(world.clip(number)) for number in range(world.clips)},
        "vae": reconstruction_error(world.vae, pixels),
        "unet": margins(world.unet, world.text_encoder, scenes, latents),
    }


class _Notes:
    """The manifest, written after each part."""

    def __init__(self, folder: Path, settings: dict[str, Any], data: dict[str, Any]) -> None:
        self.folder = folder
        now = {**settings, "data": data}
        self.manifest: dict[str, Any] = {"settings": settings, "made": {}, "clips": [], "scaling_factor": 1.0}
        self.manifest["data"] = data
        if (folder / "manifest.json").exists():
            self.manifest = Microworld(folder).manifest
            was = {"patch": Microworld.patch, "heads": Microworld.heads, **self.manifest.get("settings", {})}
            was["data"] = self.manifest.get("data", {})
            for name, value in now.items():
                if value != was.get(name):
                    raise ConfigError(
                        f"{folder} holds checkpoints made with {name}={was.get(name)!r}, now {name}="
                        f"{value!r}: use another folder"
                    )
        self.write()

    def missing(self, part: str) -> bool:
        return part not in self.manifest["made"]

    @contextmanager
    def timed(self, part: str, models: dict[str, nn.Module], *stages: str) -> Iterator[list[Keep]]:
        """Where each stage of the block saves its state; then save the weights, the time, the manifest."""
        started = time.perf_counter()
        files = [self.folder / f"{part}.{stage}.state" for stage in stages or ("training",)]
        yield [Keep(file) for file in files]
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
        for file in files:
            file.unlink(missing_ok=True)

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
