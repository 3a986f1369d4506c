"""The report of a run: what it shows, put into the page's templates, with images as data URIs."""

import base64
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import diva_rs._native as _native
from diva_rs._base.files import as_path, make_folder, read_bytes, reading, write_text
from diva_rs.data.decode import decode, load
from diva_rs.errors import ConfigError, DataError
from diva_rs.recipes.presets import presets
from diva_rs.report import facts, scores, words
from diva_rs.report.evidence import Side, gather
from diva_rs.report.run import Run, positive, read_run
from diva_rs.run.result import PostTrainResult

Pictures = Mapping[str, str | os.PathLike[str]]  # caption -> image file

_MOST_BYTES = 1 << 24  # of a picture: the page holds it whole
_SHOWN = ("PNG", "JPEG", "GIF", "WEBP")  # formats that every browser shows


def write(
    run: PostTrainResult | str | os.PathLike[str],
    folder: str | os.PathLike[str] | None = None,
    *,
    before: Any = None,
    after: Any = None,
    note: str = "",
    pictures: Pictures | None = None,
) -> Path:
    """Write report.html, one file that loads nothing from anywhere and works without JavaScript.

    What was not measured is said, with the code that measures it. Without matplotlib the page has words in
    place of charts. Returns the path. Raises DataError for a damaged file, with its name.

    Args:
        run: a `PostTrainResult`, or a run folder, also of a run that has not ended.
        folder: where to write; by default the run folder.
        before: evaluations of CLIP before post-training: result objects of `diva_rs.evaluation`, or
            files that ``to_json`` or ``diva-rs eval --out`` wrote, or the folder of a model in a
            suite's; one, or a list with at most one of each kind. For a kind that is not
            given, the run's own ``evaluate`` counts.
        after: those of CLIP after it, and the drift.
        note: a sentence or two for the head of the page: what the run was for.
        pictures: caption -> image file; they have a section of their own.

    >>> result = diva_rs.microworld.example("result")
    >>> import tempfile
    >>> write(result, tempfile.mkdtemp()).name
    'report.html'
    """
    record = read_run(run)
    if folder is None:
        if not isinstance(run, (str, os.PathLike)):
            raise ConfigError("folder is missing: a PostTrainResult has no folder to write the report to")
        folder = run
    own = record.results
    old, new = gather(before, "before", own.get("before", ())), gather(after, "after", own.get("after", ()))
    page = _page(record, old, new, note, pictures or {})
    place = make_folder(folder) / "report.html"
    write_text(place, page)
    return place


def picture(path: str | os.PathLike[str]) -> str:
    """An image file as a data URI, unchanged. Raises DataError if it is damaged or too large."""
    file = as_path(path)
    with reading(file):
        content = read_bytes(file, _MOST_BYTES)
    image = load(content, str(file))
    if image.format not in _SHOWN:
        raise DataError(f"{file} is a {image.format} image: give a PNG, JPEG, GIF or WebP image")
    return _uri(image.get_format_mimetype(), content)


def thumbnail(path: str, root: str = "", side: int = 224) -> str | None:
    """A JPEG of at most ``side`` pixels a side as a data URI; None if the file is not a readable image.

    ``path`` is as given or below ``root``.
    """
    try:
        small = decode(path if Path(path).exists() else Path(root, path), path)
    except (DataError, OSError, ValueError):  # a name that no file can have is a ValueError
        return None
    return jpeg(small, side)


def jpeg(image: Any, side: int = 224) -> str:
    """A PIL image as a JPEG of at most ``side`` pixels a side, as a data URI."""
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=82)
    return _uri("image/jpeg", buffer.getvalue())


def rendered(template: str, **values: Any) -> str:
    """A page of ``templates``. Every text is escaped: names and prompts cannot add markup."""
    environment = Environment(
        loader=PackageLoader("diva_rs.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (words.figure, words.between, words.level, words.duration, words.count, positive, thumbnail)
    environment.filters.update({function.__name__: function for function in filters})
    return environment.get_template(template).render(version=_native.__version__, **values)


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _page(run: Run, before: Side, after: Side, note: str, pictures: Pictures) -> str:
    return rendered(
        "page.html",
        run=run,
        preset=presets().get(run.recipe.name),
        before=before,
        after=after,
        note=note,
        pictures={caption: picture(path) for caption, path in pictures.items()},
        facts=facts,
        scores=scores,
    )
