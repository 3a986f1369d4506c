"""What a loader is: what must be the same where a run resumes in the middle of a pass."""

import hashlib
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from diva_rs.data.loader import text_of
from diva_rs.run.loader import datasets_of, generators_of, length_of, samplers_of


def identity_of(loader: Any) -> dict[str, Any]:
    """What is known of a loader that decides which images come and in which order, as JSON values.

    diva_rs's own loaders and datasets have a method ``identity()`` for it. Of a DataLoader these are
    the length, the files and the ``transform`` of its dataset, the sampler and its seeds, and for an
    iterable dataset batch and workers; of another iterable its class and length; of an iterator nothing.
    """
    if callable(getattr(loader, "identity", None)):
        return _known(loader.identity())
    datasets = datasets_of(loader)
    if datasets:
        return _known(_of_datasets(datasets) | _of_order(loader, datasets[0]))
    facts = {"class": type(loader).__name__, "batches": length_of(loader)}
    facts["batch"] = getattr(loader, "batch_size", None)
    return {} if hasattr(loader, "__next__") else _known(facts)


def _of_datasets(datasets: list[Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for number, data in enumerate(datasets):
        found: dict[str, Any] = {"images": length_of(data)}
        if found["images"] is None:
            found["dataset"] = type(data).__name__
        if isinstance(getattr(data, "indices", None), (list, tuple, range)):  # of a Subset
            found["indices"] = _digest(map(str, data.indices))
        if getattr(data, "transform", None) is not None:
            found["transform"] = text_of(data.transform)
        names = map(_names, getattr(data, "__dict__", {}).values())
        files = [name for listed in names if len(listed) == found["images"] for name in listed]
        if files:
            found["files"] = _digest(files)
        if callable(getattr(data, "identity", None)):
            found |= data.identity()
        facts |= {f"{name} of part {number}" if number else name: value for name, value in found.items()}
    return facts


def _names(value: Any) -> list[str]:
    """The ends of the paths in a list of paths, or of pairs of a path and a label; empty for others."""
    listed = value.tolist() if isinstance(value, np.ndarray) and value.dtype.kind == "U" else value
    if not isinstance(listed, (list, tuple)):
        return []
    firsts = [entry[0] if isinstance(entry, (list, tuple)) and entry else entry for entry in listed]
    if not all(isinstance(first, (str, os.PathLike)) for first in firsts):
        return []
    return ["/".join(os.fspath(first).split(os.sep)[-2:]) for first in firsts]


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _of_order(loader: Any, dataset: Any) -> dict[str, Any]:
    """What decides the order in which a DataLoader reads its dataset."""
    if isinstance(dataset, IterableDataset):
        # The workers take turns by batches; a single one gives the same order in any batches.
        workers = max(1, getattr(loader, "num_workers", 1))
        return {"workers": workers, "batch": getattr(loader, "batch_size", None) if workers > 1 else None}
    sampler, batches, inner = samplers_of(loader)
    own = sampler if inner is None else inner
    facts: dict[str, Any] = {"sampler": None if own is None else type(own).__name__}
    facts |= {f"sampler's {name}": getattr(own, name, None) for name in ("seed", "shuffle", "replacement")}
    if batches is not None and type(batches).__module__ != "torch.utils.data.sampler":
        facts["batch sampler"] = type(batches).__name__
    seeds = [generator.initial_seed() for generator in generators_of(loader)]
    return facts | {"generator's seed": ", ".join(map(str, seeds)) or None}


def _known(facts: dict[str, Any]) -> dict[str, Any]:
    plain = (str, int, float, bool)
    return {name: value for name, value in facts.items() if isinstance(value, plain)}
