"""Linear probes: how much a linear classifier can read from a tower's features."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from diva_rs._base.optional import require
from diva_rs.errors import ConfigError, DataError, a_type
from diva_rs.evaluation.features import FEATURES, collect, pixels_of
from diva_rs.evaluation.scores import ProbeScore
from diva_rs.evaluation.statistics import check_confidence, interval_of

Array = npt.NDArray[Any]


def linear_probe(
    clip: Any,
    train: Iterable[Any],
    test: Iterable[Any],
    features: Sequence[str] = FEATURES,
    validation: float = 0.2,
    cs: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, ProbeScore]:
    """Logistic regression on frozen features: kind of features -> test accuracy.

    Features are standardised by the images that are fitted on. The penalty is chosen on a stratified part of
    ``train``, the strongest of equally good ones; the probe is then fitted again on all of ``train``.

    ``clip`` and ``features`` are as for `image_features`. ``train`` and ``test`` are batches (pixels, labels)
    as a torch DataLoader gives them; labels (B,) are whole numbers or strings. ``validation`` is the share of
    ``train`` that chooses the penalty, drawn by ``seed``, of ``cs``, scikit-learn's ``C``.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> labels = torch.tensor([0, 1] * 4)
    >>> scores = linear_probe(clip, [(images, labels)], [(images, labels)], ["pooled", "patches"])
    >>> scores["patches"].images
    {'train': 6, 'validation': 2, 'test': 8}
    """
    check_confidence(confidence)
    if not 0 < validation < 1:
        raise ConfigError(f"validation={validation}: a share inside (0, 1) is needed")
    require("sklearn.linear_model", extra="eval")  # before the work, not after it
    rows, labels = _read(clip, train, features, "train")
    test_rows, test_labels = _read(clip, test, features, "test")
    _check_classes(labels, test_labels)
    inner, held = _split(labels, validation, seed)
    cs = sorted(cs)
    found = {}
    for name in features:
        known, tested = rows[name], test_rows[name]
        fits = (_fit(known[inner], labels[inner], c) for c in cs)
        scores = [float((fit.predict(known[held]) == labels[held]).mean()) for fit in fits]
        best = int(np.argmax(scores))  # the first, so the strongest penalty, of equal ones
        outcomes = (_fit(known, labels, cs[best]).predict(tested) == test_labels).tolist()
        found[name] = ProbeScore(
            features=name,
            accuracy=100 * sum(outcomes) / len(outcomes),
            interval=interval_of(sum(outcomes), len(outcomes), confidence),
            c=cs[best],
            validation=100 * scores[best],
            images={"train": len(inner), "validation": len(held), "test": len(outcomes)},
            outcomes=tuple(outcomes),
        )
    return found


def _fit(rows: Array, labels: Array, c: float) -> Any:
    scaler = require("sklearn.preprocessing", extra="eval").StandardScaler()
    model = require("sklearn.linear_model", extra="eval").LogisticRegression(C=c, max_iter=2000)
    return require("sklearn.pipeline", extra="eval").make_pipeline(scaler, model).fit(rows, labels)


def _read(
    clip: Any, batches: Iterable[Any], features: Sequence[str], what: str
) -> tuple[dict[str, Array], Array]:
    rows, labels = collect(clip, _labelled(batches, what), features)
    return {name: values.double().numpy() for name, values in rows.items()}, np.concatenate(labels)


def _labelled(batches: Iterable[Any], what: str) -> Iterator[tuple[Tensor, Array]]:
    for place, batch in enumerate(batches):
        where = f"{what}, batch {place}"
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise DataError(f"{where}: expected (pixels, labels), got {a_type(batch)}")
        pixels, labels = pixels_of(batch), batch[1]
        labels = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
        if labels.shape != (len(pixels),):
            raise DataError(f"{where}: {len(pixels)} images with labels of shape {labels.shape}")
        yield pixels, labels


def _check_classes(known: Array, tested: Array) -> None:
    classes, counts = np.unique(known, return_counts=True)
    if len(classes) < 2:
        raise DataError(f"train has the one class {classes[0]}: at least two are needed")
    if counts.min() < 2:
        raise DataError(f"train has one image of class {classes[counts.argmin()]}: at least two are needed")
    if len(unseen := np.setdiff1d(tested, classes)):
        raise DataError(f"test has the class {unseen[0]}, which train does not have")


def _split(labels: Array, validation: float, seed: int) -> tuple[Array, Array]:
    """Places of the images to fit on and of those held back; each class is in both."""
    generator = np.random.default_rng(seed)
    held: list[Any] = []
    for name in np.unique(labels):
        places = generator.permutation(np.flatnonzero(labels == name))
        held += places[: min(max(1, round(validation * len(places))), len(places) - 1)].tolist()
    return np.setdiff1d(np.arange(len(labels)), held), np.sort(held)
