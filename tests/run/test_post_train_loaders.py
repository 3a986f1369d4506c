"""What a loader may be: lists, DataLoaders, dicts with pixels, latents and ids, folders, cached latents."""

import numpy as np
import pytest
import torch
from PIL import Image

import diva_rs
from builders.small import SIDE, images, small_clip
from diva_rs import DataError, Recipe, Trainer
from diva_rs.clip import adapt
from diva_rs.data import LatentCache, folder_loader
from diva_rs.data.pixels import clip_input


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six smooth coloured pictures of 40 x 36 pixels."""
    folder = tmp_path_factory.mktemp("photos")
    y, x = np.mgrid[0:36, 0:40] / 40
    for i in range(6):
        picture = np.stack([np.sin((i + 1) * x), np.cos((i + 1) * y), x * y], axis=-1)
        Image.fromarray((picture * 127 + 128).clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def losses(teacher, loader, **given):
    """The losses of a run whose weights stand still, so that they tell the inputs alone."""
    given = {"progress": False, "log_every": 1, "lr": 0.0, **given}
    return [row["loss"] for row in diva_rs.post_train(small_clip(), teacher, loader, **given).history]


def clip_pixels(pixels):
    """What CLIP's own preprocessing would give."""
    tower = adapt(small_clip())
    return clip_input(pixels, Recipe(), (SIDE, SIDE), tower.mean, tower.std)


def test_every_way_to_hand_over_images_is_the_same(teacher):
    batches = [images(4, seed=n) for n in range(2)]
    expected = losses(teacher, batches)
    labels = torch.arange(4)
    assert losses(teacher, ((batch, labels) for batch in batches)) == expected
    assert losses(teacher, [[batch] for batch in batches]) == expected
    assert losses(teacher, [{"images": batch, "caption": ["a"] * 4} for batch in batches]) == expected
    assert losses(teacher, [batch.numpy() for batch in batches]) == expected
    data = torch.utils.data.TensorDataset(torch.cat(batches), torch.arange(8))
    assert losses(teacher, torch.utils.data.DataLoader(data, batch_size=4)) == expected


def test_pixel_conventions_are_the_same_images(teacher):
    batch = images(4)
    [expected] = losses(teacher, [batch])
    assert losses(teacher, [batch * 2 - 1], pixels="symmetric") == pytest.approx([expected], rel=1e-5)
    assert losses(teacher, [clip_pixels(batch)], pixels="clip") == pytest.approx([expected], rel=1e-5)
    # Alone, pixel values feed the VAE as well: here both see 32 pixels.
    assert losses(teacher, [{"pixel_values": clip_pixels(batch)}]) == pytest.approx([expected], rel=1e-5)


def test_latents_take_the_place_of_the_vae(teacher):
    batch = images(4)
    [expected] = losses(teacher, [batch])
    small = torch.nn.functional.interpolate(batch, 16, mode="bicubic", antialias=True)
    latents = teacher.encode(small * 2 - 1)
    unet = diva_rs.Teacher(teacher.unet, scheduler=teacher.schedule, text_condition=teacher.text())
    for parts in ({"images": batch}, {"pixel_values": clip_pixels(batch)}):
        found = losses(unet, [{**parts, "latents": latents}])  # this teacher has no VAE at all
        assert found == pytest.approx([expected], rel=1e-5)
    other = losses(unet, [{"images": batch, "latents": torch.zeros_like(latents)}])
    assert abs(other[0] - expected) > 1e-3


def test_ids_of_every_kind_key_the_draws(teacher):
    batch, plain = images(4), [3, 1, 4, 15]
    expected = losses(teacher, [{"images": batch, "ids": plain}])
    assert expected != losses(teacher, [batch])  # numbered 0 to 3
    trainer = Trainer(small_clip(), teacher)
    mixed = [np.int32(3), torch.tensor(1), 4, 15]
    for ids in (tuple(plain), torch.tensor(plain), np.array(plain, np.uint64), mixed):
        assert losses(teacher, [{"images": batch, "ids": ids}]) == expected
        assert float(trainer.accumulate({"images": batch, "ids": [0] * 4}, ids=iter(ids))) == expected[0]


def test_names_are_ids_too(teacher):
    batch, names = images(3), ["a.png", "b.png", "ü.png"]
    trainer = Trainer(small_clip(), teacher)
    straight = float(trainer.accumulate({"images": batch, "ids": names}))
    trainer.discard()
    assert float(trainer.accumulate(batch.flip(0), ids=names[::-1])) == pytest.approx(straight, rel=1e-6)
    trainer.discard()
    assert float(trainer.accumulate(batch, ids=names[::-1])) != pytest.approx(straight, rel=1e-4)


def test_a_folder_of_photographs(teacher, photos):
    def run(workers):
        loader = folder_loader(photos, batch=2, size=SIDE, workers=workers)
        return diva_rs.post_train(
            small_clip(), teacher, loader, steps=6, lr=1e-2, log_every=1, progress=False, batch=2
        )

    result = run(0)
    assert [row["epoch"] for row in result.history] == [0, 0, 0, 1, 1, 1]
    assert result.report["samples"] == 12
    # The files' names key order, crops and draws: workers do not matter.
    assert [row["loss"] for row in run(2).history] == [row["loss"] for row in result.history]


def test_a_latent_cache(teacher, photos, tmp_path):
    """The VAE runs once per image, before training, and not during it."""
    loader = folder_loader(photos, batch=3, size=SIDE, workers=0, scale=None)
    expected = losses(teacher, loader, steps=4)
    cache = LatentCache.build(loader, teacher, tmp_path / "latents", recipe=Recipe())
    without_vae = diva_rs.Teacher(teacher.unet, scheduler=teacher.schedule, text_condition=teacher.text())
    cached = losses(without_vae, cache.wrap(loader), steps=4)
    assert cached == pytest.approx(expected, rel=1e-5)
    with pytest.raises(DataError, match=r"its pixels are not those that were cached.*scale=None"):
        losses(
            without_vae, cache.wrap(folder_loader(photos, batch=3, size=SIDE, workers=0, scale=(0.5, 0.6)))
        )


def test_sampled_latents_are_keyed_like_the_draws(teacher):
    batch = images(4)
    mean = losses(teacher, [batch])
    recipe = Recipe(latent="sample")
    sampled = losses(teacher, [batch, batch], recipe=recipe, steps=4)
    assert sampled == losses(teacher, [batch, batch], recipe=recipe, steps=4)
    assert len(set(sampled)) == 4 and sampled[0] != mean[0]
    trainer = Trainer(small_clip(), teacher, recipe)
    straight = float(trainer.accumulate(batch, ids=[5, 6, 7, 8]))
    trainer.discard()
    assert float(trainer.accumulate(batch.flip(0), ids=[8, 7, 6, 5])) == pytest.approx(straight, rel=1e-6)
