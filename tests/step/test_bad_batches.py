"""Bad batches, loaders, draws and states: an exception that leaves weights and gradients as they were."""

import numpy as np
import pytest
import torch

import diva_rs
from builders.refused import refused
from builders.small import images, small_clip, small_teacher
from diva_rs import (
    ConfigError,
    DataError,
    DeviceError,
    Draws,
    Recipe,
    ShapeError,
    Trainer,
    WeightsError,
    checkpoint,
)

pytestmark = pytest.mark.hostile

GOOD = images(3)


@pytest.fixture(scope="module")
def teacher():
    return small_teacher()


def with_value(value, dtype=torch.float32):
    bad = GOOD.clone().to(dtype)
    bad[1, 2, 5, 7] = value
    return bad


# One of each check that a batch passes on its way into the core.
BATCHES = {
    "rank 3": (GOOD[0], ShapeError, r"images of batch 1 has shape \(3, 32, 32\), .*images\[None\]"),
    "0 to 255": (GOOD * 255, DataError, "images of batch 1, sample 0, .*divide the images by 255"),
    "NaN": (with_value(float("nan")), DataError, "images of batch 1, sample 1, channel 2: value nan is not"),
    "named": (
        {"images": with_value(9.0), "ids": ["a.png", "b.png", "c.png"]},
        DataError,
        r"batch 1, sample 1 \(id b.png\), channel 2: value 9 is outside \[0, 1\]",
    ),
    "small pixel_values": (
        {"pixel_values": GOOD[:, :, :16, :16]},
        ShapeError,
        r"pixel_values is \(3, 3, 16, 16\), VisionTransformer takes \(B, 3, 32, 32\): resize them",
    ),
    "latent channels": (
        {"images": GOOD, "latents": torch.zeros(3, 16, 8, 8)},
        ShapeError,
        r"latents is \(3, 16, 8, 8\), the teacher denoises \(B, 4, h, w\)",
    ),
    "latent NaN": (
        {"images": GOOD, "latents": torch.full((3, 4, 8, 8), float("nan"))},
        DataError,
        "latents of batch 1, sample 0: not finite",
    ),
    "too few ids": ({"images": GOOD, "ids": [1, 2]}, ShapeError, "batch 1: 2 ids for 3 samples"),
    "negative id": ({"images": GOOD, "ids": [1, -2, 3]}, DataError, r"ids\[1\] is -2"),
    "other keys": ({"image": GOOD}, DataError, "rename 'image' in the collate function"),
    "meta": (GOOD.to("meta"), DeviceError, "images of batch 1 is on the meta device, which holds no values"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_bad_batches(teacher, name):
    batch, kind, match = BATCHES[name]
    clip = small_clip()
    trainer = Trainer(clip, teacher, Recipe(lr=1e-2))
    trainer.step(GOOD)
    with refused(kind, match, clip, trainer.projector, *teacher.modules()):
        trainer.accumulate(batch)
    assert (trainer.pending, trainer.steps_done) == (0, 1)
    trainer.step(GOOD)  # still in order
    with refused(kind, match, clip):
        diva_rs.post_train(clip, teacher, [GOOD, batch], batch=6, progress=False)
    feedback = diva_rs.FeedbackLoss(clip, teacher)
    feedback(GOOD)
    with refused(kind, match, clip, feedback.projector):
        feedback(batch)


@pytest.mark.parametrize(
    ("ids", "kind", "match"),
    [
        ([1, 2], ShapeError, "batch 0: 2 ids for 3 samples"),
        (torch.zeros(3), DataError, r"ids\[0\] is 0.0 \(float\)"),
        ([2**64, 1, 2], DataError, r"ids\[0\] is 18446744073709551616, expected 0 to 2\*\*64 - 1"),
    ],
    ids=["few", "floats", "large"],
)
def test_ids_that_do_not_fit(teacher, ids, kind, match):
    clip = small_clip()
    trainer = Trainer(clip, teacher)
    with refused(kind, match, clip, trainer.projector):
        trainer.accumulate(GOOD, ids=ids)


def test_a_refused_batch_leaves_what_was_accumulated_before(teacher):
    """Of three batches the second is bad: the caller may leave it out and go on."""
    kept, expected = (Trainer(small_clip(), teacher) for _ in range(2))
    for trainer in (kept, expected):
        trainer.accumulate(GOOD, ids=range(3))
    with pytest.raises(DataError):
        kept.accumulate(GOOD * 255)
    assert kept.pending == 3
    for trainer in (kept, expected):
        trainer.accumulate(images(2, seed=7), ids=[7, 8])
    for name, parameter in expected.parameters().items():
        assert torch.equal(kept.parameters()[name].grad, parameter.grad), name


LOADERS = {
    "tensor": (GOOD, DataError, r"loader is one array <torch.float32 \(3, 3, 32, 32\)>: .*\[images\]"),
    "dict": ({"images": GOOD}, ConfigError, "loader is a dict: give an iterable of image batches"),
    "path": ("photos", ConfigError, r"loader is a path: give diva_rs.data.folder_loader\('photos'\)"),
    "dataset": (
        torch.utils.data.Dataset(),
        ConfigError,
        "loader is a Dataset: give an iterable of image batches, e.g. a DataLoader",
    ),
    "empty list": ([], DataError, "the loader is empty: it has length 0"),
    "empty iterator": (iter([]), DataError, "the loader gave no batch in pass 1"),
    "exhausted": (iter([GOOD]), DataError, "no batch in pass 2, after 1 steps: .*only once"),
}


@pytest.mark.parametrize("name", LOADERS)
def test_bad_loaders(teacher, name):
    loader, kind, match = LOADERS[name]
    steps = 2 if name == "exhausted" else None
    clip = small_clip()
    with refused(kind, match, clip):
        diva_rs.post_train(clip, teacher, loader, steps=steps, lr=0.0, progress=False)


def test_the_loaders_own_exception_comes_back_unchanged(teacher):
    def broken():
        yield GOOD
        raise OSError("the disk is gone")

    clip = small_clip()
    with refused(OSError, "the disk is gone", clip):
        diva_rs.post_train(clip, teacher, broken(), lr=0.0, progress=False)


def draws_of(n=2, k=5, latent=(4, 8, 8)):
    return diva_rs.draw(seed=0, ids=range(3), draws=n, latent_shape=latent, patches=16, choose=k)


OUT_OF_RANGE = Draws(np.full((3, 2), 1000), np.zeros((3, 2, 4, 8, 8)), np.zeros((3, 2, 5), np.int64))
NO_SUCH_PATCH = Draws(np.zeros((3, 2), np.int64), np.zeros((3, 2, 4, 8, 8)), np.full((3, 2, 5), 16))
NAN_NOISE = Draws(np.zeros((3, 2), np.int64), np.full((3, 2, 4, 8, 8), np.nan), np.zeros((3, 2, 5), np.int64))


@pytest.mark.parametrize(
    ("draws", "kind", "match"),
    [
        (draws_of(n=3), ShapeError, r"draws.timesteps is \(3, 3\), this batch and recipe need \(3, 2\)"),
        (draws_of(k=4), ShapeError, r"draws.tokens is \(3, 2, 4\), .* need \(3, 2, 5\): .*k chosen patches"),
        (
            draws_of(latent=(4, 4, 8)),
            ShapeError,
            r"draws.noise is \(3, 2, 4, 4, 8\), .* need \(3, 2, 4, 8, 8\)",
        ),
        (OUT_OF_RANGE, DataError, "draws.timesteps reaches from 1000 to 1000, valid are 0 to 999"),
        (NO_SUCH_PATCH, DataError, "draws.tokens reaches from 16 to 16, valid are -1 to 15"),
        (NAN_NOISE, DataError, "draws.noise, sample 0: not finite"),
        ((1, 2, 3), ConfigError, "draws is a tuple: give diva_rs.Draws"),
    ],
    ids=["N", "k", "latent", "timestep", "patch", "NaN", "kind"],
)
def test_explicit_draws_that_do_not_fit(teacher, draws, kind, match):
    clip = small_clip()
    trainer = Trainer(clip, teacher, Recipe(choose=5))
    with refused(kind, match, clip, trainer.projector):
        trainer.accumulate(GOOD, draws=draws)
    trainer.accumulate(GOOD, draws=draws_of())


def test_a_state_is_not_written_over_the_working_folder(teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="cannot be replaced: give the name of a file or folder in it"):
        checkpoint.save_state(".", Trainer(small_clip(), teacher).state_dict())


def test_a_dtype_that_safetensors_does_not_have_leaves_no_file(tmp_path):
    with pytest.raises(WeightsError, match=r"weights of torch.complex128, a dtype that safetensors lacks"):
        checkpoint.save_weights(tmp_path / "w.safetensors", {"w": torch.zeros(2, dtype=torch.complex128)})
    assert not list(tmp_path.iterdir())
