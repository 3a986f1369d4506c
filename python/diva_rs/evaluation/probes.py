"""Linear probes: how much a linear classifier can read from a tower's features."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from diva_rs._base.arguments import described, takes
from diva_rs._base.kinds import each, is_dense, iterable
from diva_rs._base.optional import one_line, require
from diva_rs._base.settings import integer, number, several, string
from diva_rs.errors import DataError
from diva_rs.evaluation.features import FEATURES, collect, pixels_of
from diva_rs.evaluation.scores import ProbeScore
from diva_rs.evaluation.statistics import checked_confidence, wilson_interval

_C = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


@takes(
    train=iterable("batches (pixels, labels)"),
    test=iterable("batches (pixels, labels)"),
    features=each(string(), "kinds of features", least=1),
    validation=number(above=0, below=1),
    cs=several(number(above=0)),
    seed=integer(0, (1 << 32) - 1),
)
def linear_probe(
    clip: Any,
    train: Iterable[Any],
    test: Iterable[Any],
    features: Sequence[str] = FEATURES,
    validation: float = 0.2,
    cs: Sequence[float] = _C,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, ProbeScore]:
    """Logistic regression on frozen features: kind of features -> test accuracy.

    Features are standardised by the images that are fitted on. The penalty is chosen on a stratified part of
    ``train``, the strongest of equally good ones; the probe is then fitted again on all of ``train``.

    Args:
        clip: a full or vision-only model of any supported library, or a `Tower`.
        train, test: batches (pixels (B, 3, H, W) made by the model's own transform, labels (B,)), as a
            torch DataLoader gives them; labels are whole numbers or strings.
        features: of "pooled", "class" and "patches" (see `image_features`).
        validation: share of ``train`` that chooses the penalty.
        cs: inverse penalties to choose from, scikit-learn's ``C``.
        seed: of the split.
        confidence: of the Wilson interval.

    Raises:
        DataError: batches without labels, fewer than two classes or than two images of a class in ``train``,
            a class in ``test`` that ``train`` does not have.
        ConfigError: a setting out of range.
        DependencyError: scikit-learn is not installed.

    >>> labels = torch.tensor([0, 1] * 6)
    >>> images = torch.randn(12, 3, 32, 32) + labels.view(-1, 1, 1, 1)
    >>> scores = linear_probe(clip, [(images, labels)], [(images, labels)], ["pooled", "patches"])
    >>> scores["patches"].images
    {'train': 10, 'validation': 2, 'test': 12}
    """
    checked_confidence(confidence)
    require("sklearn.linear_model", extra="eval")  # before the work, not after it
    fit_on, known = _read(clip, train, features, "train")
    tested, asked = _read(clip, test, features, "test")
    _check_classes(known, asked)
    parts = _split(known, validation, seed)
    return {
        name: _probe(name, fit_on[name], known, tested[name], asked, parts, sorted(cs), confidence)
        for name in features
    }


def _probe(
    name: str,
    rows: npt.NDArray[Any],
    known: npt.NDArray[Any],
    tested: npt.NDArray[Any],
    asked: npt.NDArray[Any],
    parts: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    cs: Sequence[float],
    confidence: float,
) -> ProbeScore:
    inner, held = parts
    scores = [
        float((_fit(rows[inner], known[inner], c).predict(rows[held]) == known[held]).mean()) for c in cs
    ]
    best = int(np.argmax(scores))  # the first, so the strongest penalty, of equal ones
    outcomes = (_fit(rows, known, cs[best]).predict(tested) == asked).tolist()
    low, high = wilson_interval(sum(outcomes), len(outcomes), confidence)
    return ProbeScore(
        features=name,
        accuracy=100 * sum(outcomes) / len(outcomes),
        interval=(100 * low, 100 * high),
        c=cs[best],
        validation=100 * scores[best],
        images={"train": len(inner), "validation": len(held), "test": len(outcomes)},
        outcomes=tuple(outcomes),
    )


def _fit(rows: npt.NDArray[Any], labels: npt.NDArray[Any], c: float) -> Any:
    linear = require("sklearn.linear_model", extra="eval")
    scaler = require("sklearn.preprocessing", extra="eval").StandardScaler()
    model = linear.LogisticRegression(C=c, max_iter=2000)
    return require("sklearn.pipeline", extra="eval").make_pipeline(scaler, model).fit(rows, labels)


def _read(
    clip: Any, batches: Iterable[Any], features: Sequence[str], what: str
) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[Any]]:
    rows, labels = collect(clip, _labelled(batches, what), features)
    return {name: values.double().numpy() for name, values in rows.items()}, np.concatenate(labels)


def _labelled(batches: Iterable[Any], what: str) -> Iterator[tuple[Tensor, npt.NDArray[Any]]]:
    for place, batch in enumerate(batches):
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise DataError(f"{what}, batch {place}: expected (pixels, labels), got a {type(batch).__name__}")
        pixels = pixels_of(batch)
        labels = _labels(batch[1], f"{what}, batch {place}")
        if labels.shape != (len(pixels),):
            raise DataError(
                f"{what}, batch {place}: {len(pixels)} images with labels of shape {labels.shape}, expected "
                "one label per image"
            )
        yield pixels, labels


def _labels(given: Any, where: str) -> npt.NDArray[Any]:
    if isinstance(given, Tensor):
        if not is_dense(given) or given.is_meta:
            raise DataError(
                f"{where}: the labels are {described(given)} on {given.device}, which holds no numbers"
            )
        given = given.cpu()
    try:
        return np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as err:  # unequal lengths, dtypes that NumPy has not
        raise DataError(f"{where}: the labels are no array: {one_line(err)}") from err


def _check_classes(known: npt.NDArray[Any], asked: npt.NDArray[Any]) -> None:
    classes, counts = np.unique(known, return_counts=True)
    if len(classes) < 2:
        raise DataError(f"train has the one class {classes[0]}: at least two are needed")
    if counts.min() < 2:
        raise DataError(
            f"train has one image of class {classes[counts.argmin()]}: at least two are needed, to fit and "
            "to choose the penalty"
        )
    unseen = np.setdiff1d(asked, classes)
    if len(unseen):
        raise DataError(f"test has the class {unseen[0]}, which train does not have")


def _split(
    labels: npt.NDArray[Any], validation: float, seed: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Places of the images to fit on and of those held back; each class is in both."""
    generator = np.random.default_rng(seed)
    held: list[Any] = []
    for name in np.unique(labels):
        places = generator.permutation(np.flatnonzero(labels == name))
        held += places[: min(max(1, round(validation * len(places))), len(places) - 1)].tolist()
    return np.setdiff1d(np.arange(len(labels)), held), np.sort(held)
