"""``diva-rs eval suite``: every benchmark in a folder, for one model or many."""

import glob
import hashlib
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from diva_rs._base.checkpoint import load_weights
from diva_rs._base.files import as_path, make_folder, read_json, write_json
from diva_rs._base.optional import one_line
from diva_rs.cli.clips import facts_of_checkpoint
from diva_rs.cli.models import Scored, load_other, load_scored, pick_device
from diva_rs.cli.suite_table import Row, content, table
from diva_rs.cli.tables import left_out
from diva_rs.clip.facts import facts
from diva_rs.clip.weights import fill
from diva_rs.clip.wrappers import own_weights
from diva_rs.data import ImageFolder
from diva_rs.data.loader import text_of
from diva_rs.errors import ConfigError, DataError, DivaError
from diva_rs.evaluation import (
    Bank,
    Embedder,
    find_benchmarks,
    read_benchmark,
    score_benchmark,
    zero_shot_folder,
)
from diva_rs.evaluation.decoded import decoded
from diva_rs.evaluation.formats import formats
from diva_rs.evaluation.items import Picture
from diva_rs.evaluation.measures import evaluating

RETENTION = "retention"
_FOLDER = "diva-scores"
_MODELS = ("config.json", "open_clip_config.json")  # of a folder that is a model by itself
_TRAINED = "parameters.safetensors"  # of a checkpoint of a run


def run(options: Any) -> int:
    """Score, print and write; the exit code is 1 where a data set or a model could not be scored."""
    folder = make_folder(options.out or _FOLDER)
    failed: list[tuple[str, str]] = []
    sets = dict(_read(options, failed))
    device = pick_device(options.device)
    rows: list[Row] = []
    for spec in (specs := _models(options)):
        try:
            model = _load(spec, specs[0], options, device)
            for row in _scored(spec, model, sets, options, folder, failed):
                rows.append(row)
                write_json(folder / "suite.json", content(rows, failed))
        except DivaError as err:
            failed.append((spec, str(err)))
        except KeyboardInterrupt:
            print(f"the scores so far are in {folder}: the same command resumes", file=sys.stderr)
            raise
    write_json(folder / "suite.json", content(rows, failed))
    notes = dict.fromkeys(line for row in rows for line in left_out(row.result))
    print(*table(rows), *notes, sep="\n")
    for name, reason in failed:
        print(f"failed: {name}: {reason}")
    print(f"\nscores in {folder / 'suite.json'}; beside it the decisions of each model and data set as CSV")
    return 1 if failed else 0


def _read(options: Any, failed: list[tuple[str, str]]) -> Iterator[tuple[str, Any]]:
    """(name, benchmark) of every data set in the folder, and last the image folder for retention."""
    found = list(find_benchmarks(options.data))
    if not found:
        looked = "; ".join(f"{name}: {kind.LOOKS_FOR}" for name, kind in formats().items())
        raise DataError(f"--data {options.data} and the folders in it hold no known benchmark. {looked}")
    for place, name in found:
        title = name if place == as_path(options.data) else f"{place.name}-{name}"
        try:
            yield title, read_benchmark(place, name, options.images, options.half)
        except DivaError as err:
            failed.append((title, str(err)))
    if options.retention is not None:
        yield RETENTION, ImageFolder(options.retention)


def _models(options: Any) -> list[str]:
    """The models that --clip and --compare name, patterns filled in.

    A pattern stands alone or after ``MODEL:``, whose weights the files then are.
    """
    specs: list[str] = []
    for flag, text in (("--clip", options.clip), ("--compare", options.compare)):
        if text is None or not glob.has_magic(text):
            specs += [text] if text else []
            continue
        name, colon, pattern = text.rpartition(":")
        matches = sorted(glob.glob(str(as_path(pattern))))
        if not matches:
            raise ConfigError(f"{flag} {text}: nothing matches {pattern}")
        specs += [f"{name}{colon}{match}" for match in matches]
    return list(dict.fromkeys(specs))


def _load(spec: str, first: str, options: Any, device: torch.device) -> Scored:
    """The model of a spec: as for `load_clip`, weights of the first model, or ``MODEL[:TAG]:WEIGHTS``."""
    name, _, place = spec.rpartition(":")
    path = as_path(place)
    if not path.exists() or any((path / file).is_file() for file in _MODELS):
        return load_scored(spec, device, options.tokenizer)
    of = name or first
    if of == spec:
        raise ConfigError(
            f"{spec} holds weights without their model: give --clip 'MODEL:PATTERN', or --clip MODEL and "
            "--compare PATTERN"
        )
    if name and ":" not in name and (path / _TRAINED).is_file():
        raise ConfigError(f"{place} holds trained parts alone: name their start, --clip '{name}:TAG:PATTERN'")
    if name and ":" not in name:
        file = path / "clip.safetensors" if path.is_dir() else path
        return load_scored(f"{name}:{file}", device, options.tokenizer)
    base = load_scored(of, device, options.tokenizer)
    if not (path / _TRAINED).is_file():
        return load_other(place, base, device, of, options.tokenizer)
    own, trained = own_weights(base[0]), load_weights(path / _TRAINED)
    foreign = [key for key in trained.keys() - own if not key.startswith(("projector.", "denoiser."))]
    if foreign:
        raise ConfigError(
            f"{place}: {min(foreign)} is not a weight of {of}: score the run's clip.safetensors"
        )
    both = {**own, **{key: value for key, value in trained.items() if key in own}}
    fill(base[0], both, place, facts_of_checkpoint(path))
    return base


def _scored(
    spec: str, model: Scored, sets: dict[str, Any], options: Any, folder: Path, failed: list[tuple[str, str]]
) -> Iterator[Row]:
    """The scores of one model; what an earlier call has written of the same model and data is read."""
    weights = _digest_of_weights(model[0])
    computes = facts(model[0]), text_of(model[1])
    name = re.sub(r"[^\w.-]+", "-", spec).strip("-")[-80:]
    place = make_folder(folder / f"{name}-{weights[:8]}")
    with evaluating(model[0]) as clip:
        embedder = Embedder(clip, *model[1:], options.embedding, options.seed)
        bank = Bank(embedder, options.batch, options.progress)
        for name, data in sets.items():
            file = place / f"{name}{'' if options.half is None else f'-{options.half}'}.json"
            key = _digest((weights, computes), options, _parts(data))
            row = _earlier(file, key, (name, spec))
            if row is None:
                if options.progress:
                    print(f"{spec}: {name}", file=sys.stderr)
                try:
                    row = Row(name, spec, *_score(model, data, bank, options))
                except Exception as err:  # one data set must not cost the others
                    failed.append(
                        (f"{spec}, {name}", str(err) if isinstance(err, DivaError) else one_line(err))
                    )
                    continue
                about = {"key": key, "seconds": row.seconds, "images": row.images, "model": spec}
                row.result.to_csv(file.with_suffix(".csv"))
                write_json(file, {**row.result.to_dict(), "suite": about})
            yield row


def _score(model: Scored, data: Any, bank: Bank, options: Any) -> tuple[Any, float, int]:
    """The result, the seconds, and how many images were embedded."""
    started, before = time.perf_counter(), bank.counts["images"]
    if isinstance(data, ImageFolder):
        rest = {"templates": options.template, "batch": options.batch}
        result: Any = zero_shot_folder(*model, options.retention, **rest)
        images = result.asked
    else:
        result = score_benchmark(data, bank)
        images = bank.counts["images"] - before
    return result, time.perf_counter() - started, images


def _earlier(file: Path, key: str, names: tuple[str, str]) -> Row | None:
    """What an earlier call has written; None if there is nothing, or of another model, data or setting."""
    try:
        found = read_json(file)
        about = found["suite"]
        if about["key"] != key:
            return None
        return Row(*names, decoded(found, file), float(about["seconds"]), int(about["images"]))
    except (DataError, LookupError, TypeError, ValueError):
        return None


def _digest(model: Any, options: Any, parts: Iterator[str]) -> str:
    """Of everything that a score depends on."""
    settings = (options.embedding, options.seed, options.tokenizer, options.template, options.batch)
    digest = hashlib.sha256(repr((model, settings)).encode())
    for part in parts:
        digest.update(part.encode())
    return digest.hexdigest()


def _parts(data: Any) -> Iterator[str]:
    """The content of a data set, item by item; of files the name, size and time."""
    if isinstance(data, ImageFolder):
        yield from (_file(Path(data.root, name)) for name in data.names)
        return
    for task in data.tasks:
        yield f"\0{task.rule}"
        for item in task.items:
            yield f"\0{item.id}\0{item.category}"
    for part in data.parts():
        picture = isinstance(part, Picture)
        yield "\0" + (
            _file(part.source) if picture and isinstance(part.source, Path) else getattr(part, "key", part)
        )


def _file(path: Path) -> str:
    state = path.stat()
    return f"\0{path}\0{state.st_size}\0{state.st_mtime_ns}"


def _digest_of_weights(clip: Any) -> str:
    digest = hashlib.sha256(type(clip).__name__.encode())
    for name, value in own_weights(clip).items():
        digest.update(f"\0{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
