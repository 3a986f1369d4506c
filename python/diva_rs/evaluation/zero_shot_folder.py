"""Zero-shot classification of an image folder, without clip-benchmark."""

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from diva_rs._base.files import is_hidden
from diva_rs.data import ImageFolder
from diva_rs.data.decode import decode
from diva_rs.errors import ConfigError, DataError, shown
from diva_rs.evaluation.embedder import Embedder, FiniteEmbedder
from diva_rs.evaluation.measures import evaluating
from diva_rs.evaluation.scores import FolderResult
from diva_rs.evaluation.statistics import check_confidence

TEMPLATES = ("a photo of a {}.",)
_SPLITS = {"train", "val", "valid", "validation", "test", "dev"}


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
    the class with the largest cosine, the first of equal ones. What is left out is logged. A class folder
    without a readable image raises DataError, as do folders that no class is named by: a single one, those of
    splits, and WordNet's ids.

    ``classes`` are folder -> class name as a text says it, by default the folder's name with spaces for
    underscores; it may name classes that have no image. ``templates`` are texts with ``{}`` (or ``{c}``, as
    in clip-benchmark) in place of the class name. The model is as for `mmvp_vlm`.

    >>> clip, preprocess, tokenizer = diva_rs.microworld.example("clip", "preprocess", "tokenizer")
    >>> photos = diva_rs.microworld.write_photos(tempfile.mkdtemp())
    >>> result = zero_shot_folder(clip, preprocess, tokenizer, photos)
    >>> list(result.counts)[:3], 0 <= result.accuracy <= 100
    (['arrow', 'boat', 'cup'], True)
    """
    check_confidence(confidence)
    listed = ImageFolder(root)
    files = listed.names
    folders = [file.partition("/")[0] for file in files]
    _check_folders(listed.root, set(folders), classes)
    listed.accounting.log(f"zero-shot classification of {root}")
    if loose := [file for file in files if "/" not in file]:
        raise DataError(f"{listed.root / loose[0]} is in no class folder: move it into that of its class")
    names = {folder: folder.replace("_", " ") for folder in folders} if classes is None else dict(classes)
    for folder in folders:
        if folder not in names:
            raise DataError(f"{listed.root / folder}: classes does not name this folder")
    kinds = list(names.values())
    _check_names(listed.root, kinds)
    picked: list[str] = []
    with evaluating(clip) as model:
        embedder = FiniteEmbedder(model, preprocess, tokenizer)
        texts = torch.stack([_class_vector(embedder, name, templates) for name in kinds])
        _check_vectors(texts, kinds)
        for start in range(0, len(files), batch):
            paths = [listed.root / file for file in files[start : start + batch]]
            pixels = torch.stack([embedder.transform(decode(path, str(path))) for path in paths])
            images = normalize(embedder.encode_image(pixels.to(embedder.device)), dim=-1)
            picked += [kinds[number] for number in (images @ texts.T).argmax(dim=1).tolist()]
    rows = tuple(zip(files, [names[folder] for folder in folders], picked, strict=True))
    kind_of_model = type(model).__name__
    return FolderResult(rows, kind_of_model, str(root), confidence, accounting=listed.accounting)


def _check_folders(root: Path, used: set[str], classes: Mapping[str, str] | None) -> None:
    """Raise DataError for a class folder without an image: a class fewer makes the score higher."""
    for folder in sorted(root.iterdir()):
        asked = not is_hidden(folder.name) if classes is None else folder.name in classes
        is_class = folder.is_dir() or not folder.exists()  # a broken link
        if asked and is_class and folder.name not in used:
            ImageFolder(folder)  # says why it gives no image
            raise DataError(f"class folder {folder} is a link to a folder that is read already: remove one")


def _check_names(root: Path, kinds: Sequence[str]) -> None:
    """Raise DataError for folders whose names are no classes: the score would be that of other texts."""
    different = set(kinds)
    if len(different) == 1:
        raise DataError(f"{root} has one class alone, {kinds[0]!r}: every image would be right")
    if different <= _SPLITS:
        raise DataError(
            f"{root} holds splits ({', '.join(sorted(different))}), not classes: give one of them"
        )
    if ids := [kind for kind in kinds if re.fullmatch(r"n\d{8}", kind)]:
        raise DataError(
            f"{root / ids[0]} is named by an id of WordNet, which no text says: rename the folders, or give "
            "classes= with the class name of each"
        )


def _check_vectors(texts: Tensor, kinds: Sequence[str]) -> None:
    """Warn of classes that are one to the model."""
    first: dict[bytes, str] = {}
    for kind, row in zip(kinds, texts.float().cpu(), strict=True):
        other = first.setdefault(row.numpy().tobytes(), kind)
        if other != kind:
            text = "have the same tokens, words that the tokenizer lacks: the first is always picked"
            warnings.warn(f"the classes {other!r} and {kind!r} {text}", UserWarning, stacklevel=3)


def _class_vector(embedder: Embedder, name: str, templates: Sequence[str]) -> Tensor:
    """(D,): the classifier's row of one class."""
    if isinstance(templates, str) or not templates:
        raise ConfigError(f"templates={shown(templates)}: a list of one or more texts is needed")
    texts = []
    for template in templates:
        text = template.replace("{c}", name).replace("{}", name)
        if text == template:
            raise ConfigError(f"template {shown(template)} has no {{}} for the class name")
        texts.append(text)
    vectors = normalize(embedder.encode_text(embedder.tokenize(texts).to(embedder.device)), dim=-1)
    return normalize(vectors.mean(dim=0), dim=-1)
