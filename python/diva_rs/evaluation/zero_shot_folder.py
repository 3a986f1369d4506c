"""Zero-shot classification of an image folder, for people without clip-benchmark."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from diva_rs._base.arguments import checked, of_type
from diva_rs._base.kinds import each
from diva_rs._base.settings import integer, string
from diva_rs.data import ImageFolder
from diva_rs.data.decode import decode
from diva_rs.errors import ConfigError, DataError, shown
from diva_rs.evaluation.embedder import Embedder, stacked
from diva_rs.evaluation.mode import evaluating
from diva_rs.evaluation.scores import FolderResult
from diva_rs.evaluation.statistics import checked_confidence, wilson_interval

_TEMPLATES = each(string(), "texts")

TEMPLATES = ("a photo of a {}.",)


def zero_shot_folder(
    clip: Any,
    preprocess: Any,
    tokenizer: Any,
    root: str | os.PathLike[str],
    classes: Mapping[str, str] | None = None,
    templates: Sequence[str] = TEMPLATES,
    batch: int = 64,
    confidence: float = 0.95,
) -> FolderResult:
    """Zero-shot accuracy on ``root/<class folder>/**/<image>``, in float32.

    A class is embedded as the normalised mean of its normalised texts, one per template; an image is given
    the class with the largest cosine, the first of equal ones.

    Args:
        clip, preprocess, tokenizer: as for `mmvp_vlm`.
        root: folder with one sub-folder of images per class.
        classes: folder -> class name as a text says it; by default the folder's name with spaces for
            underscores. It may name classes that have no image.
        templates: texts with ``{}`` (or ``{c}``, as in clip-benchmark) where the class name goes.
        batch: images at a time.
        confidence: of the Wilson interval.

    Raises:
        DataError: no image, an image outside a class folder or that cannot be read, a folder that ``classes``
            does not name.
        ConfigError: a template without its place, a setting out of range.

    >>> result = zero_shot_folder(clip, preprocess, tokenizer, photos_folder)
    >>> list(result.counts), 0 <= result.accuracy <= 100
    (['cat', 'wild dog'], True)
    """
    checked_confidence(confidence)
    batch = checked("batch", batch, integer(1))
    if classes is not None:
        of_type("classes", classes, Mapping, "a mapping of folders to names")
    files = ImageFolder(root).names
    folders = list(dict.fromkeys(_folder(root, file) for file in files))
    names = {folder: folder.replace("_", " ") for folder in folders} if classes is None else dict(classes)
    unnamed = [folder for folder in folders if folder not in names]
    if unnamed:
        raise DataError(f"{Path(root) / unnamed[0]}: classes does not name this folder")
    kinds = list(names)
    with evaluating(clip) as model:
        embedder = Embedder(model, preprocess, tokenizer)
        texts = torch.stack([_class_vector(embedder, names[kind], templates) for kind in kinds])
        picked: list[str] = []
        for start in range(0, len(files), batch):
            some = [Path(root) / file for file in files[start : start + batch]]
            pixels = stacked([embedder.transform(decode(path, str(path))) for path in some])
            images = normalize(embedder.encode_image(pixels.to(embedder.device)), dim=-1)
            picked += [kinds[number] for number in (images @ texts.T).argmax(dim=1).tolist()]
    return _result(
        root,
        names,
        [(file, _folder(root, file), kind) for file, kind in zip(files, picked, strict=True)],
        type(model).__name__,
        confidence,
    )


def _class_vector(embedder: Embedder, name: str, templates: Sequence[str]) -> Tensor:
    """(D,): the classifier's row of one class."""
    if isinstance(templates, str):
        raise ConfigError(f"templates={shown(templates)} is one text: give a list of them")
    texts = []
    for template in checked("templates", templates, _TEMPLATES):
        text = template.replace("{c}", name).replace("{}", name)
        if text == template:
            raise ConfigError(f"template {shown(template)} has no {{}} where the class name goes")
        texts.append(text)
    if not texts:
        raise ConfigError("templates is empty: at least one text is needed")
    vectors = normalize(embedder.encode_text(embedder.tokenize(texts).to(embedder.device)), dim=-1)
    return normalize(vectors.mean(dim=0), dim=-1)


def _folder(root: str | os.PathLike[str], file: str) -> str:
    folder, slash, _ = file.partition("/")
    if not slash:
        raise DataError(f"{Path(root) / file} lies in no class folder: move it into the folder of its class")
    return folder


def _result(
    root: str | os.PathLike[str],
    names: Mapping[str, str],
    rows: list[tuple[str, str, str]],
    model: str,
    confidence: float,
) -> FolderResult:
    """From (file, its folder, the folder picked) to the scores, by class name."""
    counts = {names[folder]: (0, 0) for folder in dict.fromkeys(folder for _, folder, _ in rows)}
    for _, folder, kind in rows:
        right, total = counts[names[folder]]
        counts[names[folder]] = (right + (folder == kind), total + 1)
    right = sum(right for right, _ in counts.values())
    low, high = wilson_interval(right, len(rows), confidence)
    return FolderResult(
        accuracy=100 * right / len(rows),
        interval=(100 * low, 100 * high),
        per_class={name: 100 * hits / of for name, (hits, of) in counts.items()},
        counts=counts,
        predictions=tuple((file, names[folder], names[kind]) for file, folder, kind in rows),
        model=model,
        root=str(root),
        confidence=confidence,
    )
