"""Tiny models, images and folders to try every example of the documentation with."""

import csv
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diva_rs._base.files import as_path, make_folder
from diva_rs._base.optional import require
from diva_rs.captions import Judge, Judgements
from diva_rs.clip.export import to_transformers
from diva_rs.diffusion import Teacher
from diva_rs.errors import ConfigError
from diva_rs.microworld.captions import END, PAD, START, Tokenizer, vocabulary
from diva_rs.microworld.dataset import World, pictures
from diva_rs.microworld.models import MEAN, STD, new_scheduler
from diva_rs.microworld.pretrained import Microworld
from diva_rs.microworld.rendering import SIDE
from diva_rs.microworld.scores import pairs
from diva_rs.run.post_training import post_train
from diva_rs.run.result import PostTrainResult

_IMAGES = 8


class _Example:
    """What `example` gives, made on first use."""

    def __init__(self) -> None:
        self._models, self._world = Microworld(), World("train", _IMAGES, start=1 << 20)

    @cached_property
    def clip(self) -> nn.Module:
        return self._models.clip()

    @cached_property
    def teacher(self) -> Teacher:
        return self._models.teacher()

    @cached_property
    def images(self) -> Tensor:
        return self._world.images(range(_IMAGES))

    @cached_property
    def loader(self) -> list[dict[str, Any]]:
        return list(self._world.batches(4))

    @cached_property
    def preprocess(self) -> Any:
        transform = require("open_clip.transform", extra="open-clip")
        settings = transform.PreprocessCfg(size=SIDE, mean=(MEAN,) * 3, std=(STD,) * 3)
        return transform.image_transform_v2(settings, is_train=False)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer()

    @cached_property
    def encode(self) -> Any:
        return self._models.encode

    @cached_property
    def result(self) -> PostTrainResult:
        return post_train(self.clip, self.teacher, self.loader, progress=False, log_every=1)

    @cached_property
    def judged(self) -> Judgements:
        judge = Judge(self.teacher, draws=4, encode=self._models.encode)
        ids = [number for batch in self.loader for number in batch["ids"]]
        latents, words = self.teacher.encode(2 * self.images - 1), vocabulary()
        start = [{"subject": self._world.scene(number).value("object")} for number in range(_IMAGES)]
        return judge.describe(latents, ids, words, start, rounds=1, names=("count", "colour", "size"))


def example(*names: str) -> Any:
    """The microworld's models and images by name, small enough for every example; new at each call.

    ``clip``        an ``open_clip.CLIP`` of 48 pixels, pretrained
    ``teacher``     a `Teacher` that denoises latents (B, 16, 6, 6) under a condition (B, S, 64)
    ``images``      (8, 3, 48, 48) in [0, 1]
    ``loader``      the same images as two batches with ids
    ``preprocess``, ``tokenizer``  picture -> (3, 48, 48) and texts -> (N, 26), as open_clip's
    ``encode``      captions -> text tokens (M, 26, 64), for `diva_rs.captions.Judge`
    ``judged``      the images' judgements under `vocabulary`: `diva_rs.captions.Judgements`
    ``result``      of a run of two steps: `PostTrainResult`

    Without names: clip, teacher and images, as a tuple. One name gives the thing itself.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> preprocess, tokenizer = diva_rs.microworld.example("preprocess", "tokenizer")
    >>> images.shape, tokenizer("a photo of a fish").shape
    (torch.Size([8, 3, 48, 48]), torch.Size([1, 26]))
    """
    made = _Example()
    known = [name for name in vars(_Example) if not name.startswith("_")]
    if unknown := sorted(set(names) - set(known)):
        raise ConfigError(f"example has no {unknown[0]!r}, but {', '.join(known)}")
    parts = [getattr(made, name) for name in names or ("clip", "teacher", "images")]
    return parts[0] if len(parts) == 1 else tuple(parts)


def write_models(folder: str | Path) -> Path:
    """Write the tiny models as others publish theirs, for ``--clip`` and ``--teacher`` of the command line:
    ``clip`` for transformers, ``diffusion`` as a diffusers pipeline. Returns the folder.

    >>> folder = diva_rs.microworld.write_models(tempfile.mkdtemp())
    >>> teacher = diva_rs.Teacher(folder / "diffusion")
    >>> teacher.texts(["a photo of a fish"]).shape
    torch.Size([1, 26, 64])
    """
    root, models, words = as_path(folder), Microworld(), _words_of_transformers()
    to_transformers(models.clip(), root / "clip", processor=words)
    diffusers = require("diffusers", extra="diffusers")
    diffusers.StableDiffusionPipeline(
        vae=models.vae,
        text_encoder=models.text_encoder,
        tokenizer=words,
        unet=models.unet,
        scheduler=diffusers.DDPMScheduler.from_config(
            new_scheduler().config, clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(root / "diffusion")
    return root


def write_photos(folder: str | Path, images: int = 16) -> Path:
    """Write pictures of the world as PNG files, one folder for each of the eight objects; returns the folder.

    >>> photos = diva_rs.microworld.write_photos(tempfile.mkdtemp(), images=8)
    >>> len(diva_rs.data.ImageFolder(photos))
    8
    """
    root, world = as_path(folder), World("validation", images)
    for number in range(images):
        place = make_folder(root / world.scene(number).value("object"))
        _save(world.images([number])[0], place / f"{number}.png")
    return root


def write_mmvp(folder: str | Path, per_pattern: int = 2) -> Path:
    """Write pairs of the world in the layout of MMVP-VLM; returns the folder.

    >>> folder = diva_rs.microworld.write_mmvp(tempfile.mkdtemp())
    >>> clip, preprocess, tokenizer = diva_rs.microworld.example("clip", "preprocess", "tokenizer")
    >>> diva_rs.evaluation.mmvp_vlm(clip, preprocess, tokenizer, folder).asked
    18
    """
    root, rows = as_path(folder), list[list[Any]]()
    for pair in pairs(World("validation", 9 * per_pattern), per_pattern):
        place = make_folder(root / "MLLM_VLM Images" / pair.pattern)
        for picture, statement in zip(pictures(pair.scenes), pair.statements, strict=True):
            rows.append([len(rows) + 1, pair.pattern, statement.removeprefix("a photo of ")])
            _save(picture, place / f"{len(rows)}.jpg")
    with open(root / "Questions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["Question ID", "Type", "Statement"], *rows])
    return root


def _save(pixels: Tensor, path: Path) -> None:
    image = require("PIL.Image", extra="data")
    image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy()).save(path)


def _words_of_transformers() -> Any:
    """`Tokenizer` as a tokenizer of transformers."""
    parts, world = require("tokenizers", extra="diffusers"), Tokenizer()
    words = parts.Tokenizer(parts.models.WordLevel(world.ids, unk_token=PAD))
    words.normalizer = parts.normalizers.Replace(parts.Regex("[ .]+$"), "")
    words.pre_tokenizer = parts.pre_tokenizers.WhitespaceSplit()
    words.post_processor = parts.processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(word, world.ids[word]) for word in (START, END)]
    )
    return require("transformers", extra="diffusers").PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=world.context_length,
        pad_token=PAD,
        unk_token=PAD,
        bos_token=START,
        eos_token=END,
    )
