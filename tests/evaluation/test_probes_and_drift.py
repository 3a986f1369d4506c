"""Linear probes and embedding drift: planted truths, scikit-learn, and a model that was trained."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import diva_rs
from builders.clips import clip_variants, library_embedding, pixels
from builders.small import images, small_clip, small_teacher
from diva_rs.clip import adapt
from diva_rs.errors import ConfigError, DataError, DependencyError, ShapeError
from diva_rs.evaluation import drift, image_features, linear_cka, linear_probe, wilson_interval

VARIANTS = clip_variants()
LIBRARIES = ["open_clip-gelu", "open_clip-avg", "timm-siglip", "openai"]
LIBRARIES += [f"transformers-{name}" for name in ("clip", "siglip", "clip-projection", "clip-vision")]


def set_of(count, seed, classes=3, signal=0.5):
    """Noise images whose class sets their brightness."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    values = torch.randn(count, 3, 32, 32, generator=generator)
    values += signal * (labels.view(-1, 1, 1, 1) - 1)
    return values, labels


def batches(values, labels, size=10):
    return list(zip(values.split(size), labels.split(size), strict=True))


@pytest.mark.parametrize("name", LIBRARIES)
def test_features_are_the_towers(name):
    model = VARIANTS[name]()
    given = pixels(model, batch=3)
    with torch.no_grad():
        model.eval()
        tower = adapt(model)
        tokens = tower.tokens(given)
        tokens = tokens if tower.norm is None else tower.norm(tokens)
        pooled = library_embedding(model, given)
        model.train()
    torch.testing.assert_close(image_features(model, given), pooled, rtol=1e-5, atol=1e-6)
    assert torch.equal(image_features(model, given, "class"), tokens[:, 0])
    assert torch.equal(image_features(model, given, "patches"), tokens[:, 1:].mean(1))
    tuples, named = [(given[:2], [0, 1]), (given[2:], [2])], [{"pixel_values": given}]
    for batched in ([given[:2], given[2:]], tuples, named):
        torch.testing.assert_close(image_features(model, batched, "patches"), tokens[:, 1:].mean(1))
    assert model.training


def test_a_probe_finds_what_is_planted_and_nothing_else():
    model = small_clip(seed=1)
    train, test = set_of(90, seed=0), set_of(60, seed=1)
    found = linear_probe(model, batches(*train), batches(*test))
    assert list(found) == ["pooled", "class", "patches"]
    for name, score in found.items():
        assert score.features == name and score.accuracy > 75  # a third by chance
        assert score.accuracy == pytest.approx(100 * sum(score.outcomes) / 60)
        ends = wilson_interval(sum(score.outcomes), 60)
        assert score.interval == pytest.approx([100 * end for end in ends])
        assert score.images == {"train": 72, "validation": 18, "test": 60}
    nothing = linear_probe(model, batches(*set_of(90, 2, signal=0.0)), batches(*set_of(60, 3, signal=0.0)))
    for score in nothing.values():
        assert score.accuracy < 64  # five standard errors above a third


def test_a_probe_is_scikit_learns_logistic_regression_on_standardised_features():
    model = small_clip(seed=1)
    train, test = set_of(60, seed=0), set_of(40, seed=1)
    score = linear_probe(model, batches(*train), batches(*test), ["patches"], cs=[0.01])["patches"]
    fit_on, asked = (
        image_features(model, values, "patches").double().numpy() for values in (train[0], test[0])
    )
    scaler = StandardScaler().fit(fit_on)
    theirs = LogisticRegression(C=0.01, max_iter=2000).fit(scaler.transform(fit_on), train[1])
    right = theirs.predict(scaler.transform(asked)) == test[1].numpy()
    assert score.outcomes == tuple(right.tolist()) and score.c == 0.01


def test_the_penalty_is_chosen_on_the_validation_part_the_strongest_of_equals():
    model = small_clip(seed=1)
    train, test = batches(*set_of(90, 0, signal=0.1)), batches(*set_of(30, 1, signal=0.1))
    each = {c: linear_probe(model, train, test, ["class"], cs=[c])["class"] for c in (1e-5, 1e-2, 1.0)}
    chosen = linear_probe(model, train, test, ["class"], cs=[1.0, 1e-5, 1e-2])["class"]
    best = max(score.validation for score in each.values())
    assert chosen.validation == best
    assert chosen.c == min(c for c, score in each.items() if score.validation == best)
    assert chosen.accuracy == each[chosen.c].accuracy
    again = linear_probe(model, train, test, ["class"], cs=[1.0, 1e-5, 1e-2])["class"]
    assert again == chosen


def test_labels_may_be_names():
    values, labels = set_of(30, seed=0)
    names = np.array(["left", "middle", "right"])[labels.numpy()]
    named = linear_probe(small_clip(), [(values, names.tolist())], [(values, names)], ["pooled"])["pooled"]
    assert named == linear_probe(small_clip(), [(values, labels)], [(values, labels)], ["pooled"])["pooled"]


@pytest.mark.parametrize(
    "change,error,words",
    [
        ({"train": [torch.zeros(2, 3, 32, 32)]}, DataError, r"batch 0: expected \(pixels, labels\), got a T"),
        ({"train": []}, DataError, "not a single batch"),
        ({"test": [(torch.zeros(2, 3, 32, 32), [1])]}, DataError, "batch 0: 2 images with labels of shape"),
        ({"train": [(torch.zeros(3, 3, 32, 32), [1, 1, 1])]}, DataError, "train has the one class 1"),
        ({"train": [(torch.zeros(3, 3, 32, 32), [1, 1, 2])]}, DataError, "train has one image of class 2"),
        ({"test": [(torch.zeros(1, 3, 32, 32), [9])]}, DataError, "test has the class 9"),
        ({"validation": 20}, ConfigError, "validation=20"),
        ({"features": ["tokens"]}, ConfigError, r"features=\['tokens'\]: known are pooled"),
    ],
)
def test_bad_probes_are_named(change, error, words):
    batch = set_of(12, seed=0)
    with pytest.raises(error, match=words):
        linear_probe(**{"clip": small_clip(), "train": [batch], "test": [batch], **change})


def test_without_scikit_learn_the_pip_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    batch = set_of(12, seed=0)
    with pytest.raises(DependencyError, match=r"pip install 'diva-rs\[eval\]'"):
        linear_probe(small_clip(), [batch], [batch])


def test_the_room_loads_no_optional_library():
    heavy = {"sklearn", "scipy", "clip_benchmark", "PIL", "open_clip", "transformers", "matplotlib"}
    code = f"import sys, diva_rs.evaluation; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("set()\n", 0), done.stderr


def gram_cka(x, y):
    """CKA as it is defined, through centred Gram matrices (equation 5 of the paper)."""
    centring = torch.eye(len(x)).double() - 1 / len(x)
    k, m = centring @ x @ x.T @ centring, centring @ y @ y.T @ centring
    return float((k * m).sum() / (k.norm() * m.norm()))


@pytest.mark.parametrize("widths", [(5, 5), (3, 40), (60, 7)])
def test_cka_is_the_gram_matrices_definition(widths):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(30, width, generator=generator, dtype=torch.float64) + 1 for width in widths)
    y[:, :3] += 2 * x[:, :3]
    assert linear_cka(x, y) == pytest.approx(gram_cka(x, y), rel=1e-12)
    assert 0 < linear_cka(x, y) < 1
    rotation = torch.linalg.qr(torch.randn(widths[0], widths[0], generator=generator, dtype=torch.float64))[0]
    assert linear_cka(x, 3 * x @ rotation - 2) == pytest.approx(1, rel=1e-12)


def test_cka_of_features_that_do_not_vary():
    still, moving = torch.ones(4, 2), torch.eye(4)
    assert linear_cka(still, still) == 1 and linear_cka(still, moving) == 0 == linear_cka(moving, still)


def test_drift_of_known_embeddings():
    before = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    after = torch.tensor([[5.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    result = drift(before, after)
    assert result.cosines == pytest.approx((1, 0, 0.5**0.5))
    assert result.cosine == pytest.approx((1 + 0.5**0.5) / 3) and result.lowest == pytest.approx(0)
    assert result.cka == pytest.approx(gram_cka(before.double(), after.double()))
    assert drift(before, 2 * before).cosine == pytest.approx(1) == drift(before, 2 * before).cka


def test_drift_of_a_model_that_was_trained():
    clip = small_clip()
    given = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    original, stored = adapt(clip).frozen_copy(), image_features(clip, given)
    assert drift(original, clip, given).cosine == pytest.approx(1, abs=1e-7)
    loader = [images(2, seed=n) for n in range(4)]
    diva_rs.post_train(clip, small_teacher(), loader, optimizer="adamw", lr=1e-2, choose=4, progress=False)
    moved = drift(original, clip, given)
    assert moved == drift(stored, clip, given)
    assert moved.lowest <= moved.cosine < 0.999 and moved.cka < 1
    assert set(moved.to_dict()) == {"cosine", "lowest", "cka", "cosines"}


@pytest.mark.parametrize(
    "call,error,words",
    [
        (lambda: drift(torch.ones(2, 3), torch.ones(3, 3)), ShapeError, r"before are \(2, 3\), after \(3"),
        (lambda: drift(small_clip(), small_clip()), ConfigError, "drift of a model needs images"),
        (lambda: linear_cka(torch.ones(2, 3), torch.ones(3, 3)), ShapeError, "two matrices of N rows"),
        (lambda: image_features(small_clip(), []), DataError, "not a single batch"),
        (lambda: image_features(small_clip(), ["a.png"]), DataError, "a batch is a str without pixels"),
        (
            lambda: image_features(small_clip(), torch.ones(1, 3, 32, 32).byte()),
            DataError,
            r"torch\.uint8 pixels",
        ),
        (lambda: image_features(torch.nn.Linear(2, 2), torch.ones(1, 3, 4, 4)), ConfigError, "Linear"),
    ],
)
def test_bad_embeddings_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
