"""Augmentation of cached latents: a few fixed views of each image, all of them cached, one in each epoch."""

import json

import pytest
import torch

from builders.pictures import picture, write_tar
from diva_rs._base.checkpoint import write_manifest
from diva_rs.data import LatentCache, Views, folder_loader, shard_loader
from diva_rs.errors import ConfigError, DataError

SIZE = 16


class Plain:
    """Latents from which the pixels can be told."""

    def encode(self, images):
        return images[:, :, ::2, ::2] * 2

    def describe(self):
        return "every other pixel"


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for i in range(3):
        picture(i).save(root / f"{i}.png")
    return root


def epochs(loader, count):
    """Id -> what it showed in each epoch."""
    shown = {}
    for epoch in range(count):
        loader.set_epoch(epoch)
        for batch in loader:
            for i, key in enumerate(batch["ids"].tolist()):
                shown.setdefault(key, []).append({name: part[i] for name, part in batch.items()})
    return shown


@pytest.mark.parametrize(
    "views", [Views(), Views(flip=True), Views(crops=3), Views(crops=2, flip=True)], ids=str
)
def test_every_view_is_cached_and_shown_once_in_as_many_epochs(photos, tmp_path, views):
    cache = LatentCache.build(folder_loader(photos, 2, SIZE, 0, views=views), Plain(), tmp_path / "cache")
    assert len(cache) == 3 * len(views) and cache.views == views == LatentCache.open(tmp_path / "cache").views
    loader = cache.wrap(folder_loader(photos, 2, SIZE, 0, seed=4, views=cache.views))
    for shown in epochs(loader, 2 * len(views)).values():
        first, second = shown[: len(views)], shown[len(views) :]
        assert len({one["images"].numpy().tobytes() for one in first}) == len(views)
        for one, again in zip(first, second, strict=True):
            assert torch.equal(one["images"], again["images"])
            assert torch.equal(one["latents"], ((one["images"] * 2 - 1)[:, ::2, ::2] * 2))


def test_half_of_the_views_mirror_the_others(photos):
    loader = folder_loader(photos, 2, SIZE, 0, views=Views(crops=2, flip=True))
    for shown in epochs(loader, 4).values():
        images = [one["images"] for one in shown]
        mirrored = [image.flip(-1) for image in images]
        pairs = [(i, j) for i in range(4) for j in range(4) if torch.equal(images[i], mirrored[j])]
        assert len(pairs) == 4 and all(i != j and (j, i) in pairs for i, j in pairs)


def test_views_are_the_images_own_and_their_order_the_seeds(photos):
    def crops(seed, workers=0):
        return epochs(folder_loader(photos, 3, SIZE, workers, seed=seed, views=Views(crops=4)), 4)

    one, other = crops(0), crops(7)
    orders = []
    for key in one:
        a, b = ([view["images"].numpy().tobytes() for view in found[key]] for found in (one, other))
        assert len(set(a)) == 4 and set(a) == set(b)
        orders.append(a == b)
    assert not all(orders)
    for key, shown in crops(0, workers=2).items():
        assert all(torch.equal(a["images"], b["images"]) for a, b in zip(shown, one[key], strict=True))


def test_shards_have_the_views_of_a_folder(photos, tmp_path):
    write_tar(tmp_path / "00.tar", [(path.name, path.read_bytes()) for path in sorted(photos.iterdir())])
    views = Views(crops=2)
    pattern = str(tmp_path / "{00..00}.tar")
    cache = LatentCache.build(shard_loader(pattern, 2, SIZE, 0, views=views), Plain(), tmp_path / "cache")
    assert len(cache) == 6
    seen = epochs(cache.wrap(shard_loader(pattern, 3, SIZE, 0, seed=1, views=cache.views)), 2)
    assert all(not torch.equal(*(one["latents"] for one in shown)) for shown in seen.values())


def test_other_views_than_the_cached_ones_are_refused(photos, tmp_path):
    cache = LatentCache.build(folder_loader(photos, 2, SIZE, 0, views=Views(2)), Plain(), tmp_path / "cache")
    with pytest.raises(DataError, match=r"fixed views of each image: load with views=cache\.views"):
        list(cache.wrap(folder_loader(photos, 2, SIZE, 0, scale=None)))
    fixed = LatentCache.build(folder_loader(photos, 2, SIZE, 0, scale=None), Plain(), tmp_path / "one")
    assert fixed.views is None and len(fixed) == 3


def test_a_build_shows_views_only_while_it_runs(photos, tmp_path):
    loader = folder_loader(photos, 2, SIZE, 0, views=Views(3))
    before = epochs(loader, 2)
    LatentCache.build(loader, Plain(), tmp_path / "cache")
    for key, shown in epochs(loader, 2).items():
        assert all(torch.equal(a["images"], b["images"]) for a, b in zip(shown, before[key], strict=True))


@pytest.mark.parametrize(
    "views", [{"crops": -1, "flip": True}, {"crops": 2}, {"crops": 10**9, "flip": False}, 7]
)
def test_facts_with_other_views_are_damaged(photos, tmp_path, views):
    LatentCache.build(folder_loader(photos, 2, SIZE, 0, views=Views(2)), Plain(), tmp_path / "cache")
    path = tmp_path / "cache" / "facts.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"views": views}))
    write_manifest(tmp_path / "cache", ["facts.json", "index.safetensors"])
    if views == {"crops": 2}:  # flip has a default
        assert LatentCache.open(tmp_path / "cache").views == Views(2)
        return
    with pytest.raises(DataError, match=r"facts\.json: .*views"):
        LatentCache.open(tmp_path / "cache")


def test_settings_out_of_range_are_named(photos):
    with pytest.raises(ConfigError, match="crops=1001: an integer from 0 to 1000"):
        Views(crops=1001)
    with pytest.raises(ConfigError, match=r"crops=2 are random and scale=None means the centre crop"):
        folder_loader(photos, 2, SIZE, 0, scale=None, views=Views(2))
