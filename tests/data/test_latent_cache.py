"""The latent cache: it gives what the VAE gives; nothing half-written, damaged or foreign is used."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from builders.pictures import encoded, picture, write_tar
from builders.small import WIDTH, scheduler, small_unet, small_vae
from diva_rs import Recipe, Teacher
from diva_rs._base.checkpoint import write_manifest
from diva_rs.data import LatentCache, Views, folder_loader, latent_store, shard_loader, vae_input
from diva_rs.data.latent_store import Facts, Store, StoreWriter, content_hash
from diva_rs.errors import ConfigError, DataError, ShapeError

SIZE = 16
LATENTS = "latents-00000.safetensors"
FILES = [LATENTS, "index.safetensors", "facts.json", "manifest.json"]


def make_teacher(seed=2, **config):
    vae = small_vae(seed=seed)
    vae.register_to_config(**config)
    return Teacher(small_unet(), vae=vae, scheduler=scheduler(), text_condition=torch.zeros(1, 4, WIDTH))


class Plain:
    """The least that the cache needs of a teacher."""

    def __init__(self, encode=lambda images: images[:, :, ::2, ::2] * 2):
        self.encode = encode

    def describe(self):
        return "every other pixel"


def batches(ids=True, size=SIZE, count=3):
    generator = torch.Generator().manual_seed(1)
    loader = []
    for number in range(count):
        batch = {"images": torch.rand(2, 3, size, size, generator=generator)}
        loader.append(batch | ({"ids": torch.tensor([2 * number, 2 * number + 1])} if ids else {}))
    return loader


@pytest.fixture
def place(tmp_path):
    return tmp_path / "cache"


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("size", [SIZE, 24])
def test_cached_latents_are_the_vaes(place, ids, size):
    teacher, loader = make_teacher(), batches(ids, size)
    cache = LatentCache.build(loader, teacher, place)
    assert len(cache) == 6 and cache.shape == (4, SIZE // 2, SIZE // 2)
    for batch, cached in zip(loader, LatentCache.open(place, teacher, Recipe()).wrap(loader), strict=True):
        want = teacher.encode(vae_input(batch["images"], Recipe(), (SIZE, SIZE)))
        assert torch.equal(cached["latents"], want)
        assert torch.equal(cached["images"], batch["images"])
        assert sorted(cached) == (["ids", "images", "latents"] if ids else ["images", "latents"])


def test_rows_are_found_in_any_order_and_batch_size(place):
    loader = batches()
    cache = LatentCache.build(loader, Plain(), place)
    images = torch.cat([batch["images"] for batch in loader]).flip(0)
    [cached] = cache.wrap([images])
    assert torch.equal(cached["latents"], (images * 2 - 1)[:, :, ::2, ::2] * 2)


def test_pixel_values_and_official_pixels_are_cached_with_their_normalisation(place, tmp_path):
    half, recipe = (0.5, 0.5, 0.5), Recipe()
    values = [{"pixel_values": batch["images"] * 2 - 1} for batch in batches()]
    cache = LatentCache.build(values, Plain(), place, recipe, half, half)
    [cached, *_] = cache.wrap(values)
    assert torch.allclose(cached["latents"], values[0]["pixel_values"][:, :, ::2, ::2] * 2, atol=1e-6)
    with pytest.raises(DataError, match=r"prepared in another way \(mean was \[0.5, 0.5, 0.5\], is \[0.48"):
        LatentCache.open(place, recipe=recipe, std=half)
    official = recipe.replace(vae_pixels="official")
    LatentCache.build(batches(), Plain(), tmp_path / "official", official)
    LatentCache.open(tmp_path / "official", recipe=official)
    with pytest.raises(DataError, match="vae_pixels was 'official', is 'symmetric'"):
        LatentCache.open(tmp_path / "official", recipe=recipe)


def test_float16_halves_the_file(place, tmp_path):
    loader = batches()
    full = LatentCache.build(loader, Plain(), place)
    half = LatentCache.build(loader, Plain(), tmp_path / "half", dtype="float16")
    one, other = (next(iter(cache.wrap(loader)))["latents"] for cache in (full, half))
    assert other.dtype == torch.float32 and torch.equal(one.half().float(), other)
    stored = [load_file(folder / LATENTS)["latents"] for folder in (place, tmp_path / "half")]
    assert stored[0].shape == (6, 3, SIZE // 2, SIZE // 2) and torch.equal(stored[0].half(), stored[1])
    with pytest.raises(DataError, match=r"batch 0, sample 0: a latent exceeds torch.float16"):
        LatentCache.build(loader, Plain(lambda x: x * 1e6), tmp_path / "c", dtype="float16")


def test_an_image_that_comes_twice_is_encoded_once(place):
    images = torch.rand(1, 3, SIZE, SIZE).repeat(4, 1, 1, 1)
    seen = []

    def encode(pixels):
        seen.append(len(pixels))
        return pixels

    loader = [{"images": images, "ids": [1, 2, 3, 4]}, {"images": images[:2], "ids": [1, 9]}]
    cache = LatentCache.build(loader, Plain(encode), place)
    assert seen == [1] and len(cache) == 1
    assert [len(batch["latents"]) for batch in cache.wrap(loader)] == [4, 2]


def test_a_folder_is_cached_with_its_loader(place, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(5):
        picture(i).save(tmp_path / "images" / f"{i}.png")
    fixed = folder_loader(tmp_path / "images", 2, SIZE, 0, scale=None)
    cache = LatentCache.build(fixed, make_teacher(), place)
    wrapped = cache.wrap(folder_loader(tmp_path / "images", 3, SIZE, 0, scale=None, seed=4))
    wrapped.set_epoch(3)
    assert [len(batch["latents"]) for batch in wrapped] == [3, 2] and len(wrapped) == 2
    assert wrapped.batch_size == 3 and wrapped.sampler.epoch == 3
    augmented = cache.wrap(folder_loader(tmp_path / "images", 2, SIZE, 0))
    with pytest.raises(DataError, match=r"batch 0, sample 0 \(id \d+\): .* or its pixels are not those"):
        next(iter(augmented))


def test_a_cache_keeps_its_loaders_accounting_and_tells_equal_names_apart(tmp_path):
    for shard in range(2):
        members = [("0.png", encoded(shard, kind="png")), ("0.json", b"{}")]
        write_tar(tmp_path / f"{shard}.tar", members)
    loader = shard_loader(f"{tmp_path}/{{0,1}}.tar", 4, SIZE, 0, views=Views(crops=2))
    cache = LatentCache.build(loader, Plain(), tmp_path / "latents")
    assert str(LatentCache.open(tmp_path / "latents").accounting) == str(loader.accounting)
    assert (cache.accounting.used, cache.accounting.total, len(cache)) == (2, 4, 4)
    [batch] = cache.wrap(loader)
    assert len(set(batch["ids"].tolist())) == 2 and not torch.equal(*batch["latents"])
    assert LatentCache.build(batches(), Plain(), tmp_path / "plain").accounting.used == 6


def test_images_that_were_never_cached_are_errors(place):
    cache = LatentCache.build(batches(), Plain(), place)
    other = torch.rand(2, 3, SIZE, SIZE)
    mixed = torch.stack([batches()[0]["images"][0], other[0]])
    with pytest.raises(DataError, match=r"batch 0, sample 1 \(id 78\): this image is not in the latent"):
        list(cache.wrap([{"images": mixed, "ids": [77, 78]}]))
    shifted = batches()[0]["images"] + 1e-6
    with pytest.raises(DataError, match=r"sample 0 \(id 0\): .*its pixels are not those that were cached"):
        list(cache.wrap([{"images": shifted, "ids": [0, 1]}]))


def test_another_vae_is_refused_and_the_same_in_bf16_is_not(place):
    teacher = make_teacher()
    LatentCache.build(batches(), teacher, place)
    for same in (make_teacher(), teacher.to_precision("bf16"), teacher.to_precision("fp64")):
        assert len(LatentCache.open(place, same)) == 6
    with pytest.raises(DataError, match=r"made by another VAE \(weights was '.*', is '.*'\): build it again"):
        LatentCache.open(place, make_teacher(seed=1))
    with pytest.raises(DataError, match=r"another VAE \(config .*'shift_factor': None.*'shift_factor': 0.5"):
        LatentCache.open(place, make_teacher(shift_factor=0.5))
    with pytest.raises(DataError, match="another VAE"):
        LatentCache.open(place, Plain())


def test_only_what_matters_is_compared(place):
    LatentCache.build(batches(), Plain(), place)  # no image was resampled
    LatentCache.open(place, recipe=Recipe(resize="bilinear", antialias=False), mean=(0.5, 0.5, 0.5))
    LatentCache.build(batches(size=20), Plain(), place, Recipe(image_size=SIZE), overwrite=True)
    with pytest.raises(DataError, match="resize was 'bicubic', is 'bilinear'"):
        LatentCache.open(place, recipe=Recipe(image_size=SIZE, resize="bilinear"))
    with pytest.raises(DataError, match=r"image_size was \[16, 16\], is \[32, 32\]"):
        LatentCache.open(place, recipe=Recipe(image_size=32))


# Damage


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["missing", "empty", "cut", "flip", "longer"])
def test_no_damage_goes_unseen(place, name, harm):
    loader = batches()
    LatentCache.build(loader, Plain(), place)
    path = place / name
    data = bytearray(path.read_bytes())
    if harm == "missing":
        path.unlink()
    else:
        data[-9] ^= 1 if harm == "flip" else 0
        end = {"empty": 0, "cut": len(data) - 7}.get(harm, len(data))
        path.write_bytes(bytes(data[:end]) + (b"\0" * 8 if harm == "longer" else b""))
    with pytest.raises(DataError, match=rf"cannot be used: .*{name}.*: build it again with overwrite=True"):
        list(LatentCache.open(place).wrap(loader))
    assert len(list(LatentCache.build(loader, Plain(), place, overwrite=True).wrap(loader))) == 3


def test_files_of_two_caches_do_not_mix(place, tmp_path):
    LatentCache.build(batches(), Plain(), place)
    LatentCache.build(batches()[::-1], Plain(), tmp_path / "other")
    shutil.copy(tmp_path / "other" / LATENTS, place / LATENTS)
    with pytest.raises(DataError, match=rf"row \d, in {LATENTS}, does not match its checksum"):
        list(LatentCache.open(place).wrap(batches()))
    shutil.copy(tmp_path / "other" / "index.safetensors", place / "index.safetensors")
    with pytest.raises(DataError, match=r"index.safetensors is damaged: its size or checksum differs"):
        LatentCache.open(place)


def test_an_unknown_format_is_refused(place):
    LatentCache.build(batches(), Plain(), place)
    facts = json.loads((place / "facts.json").read_text()) | {"format": "diva-rs latents 9"}
    (place / "facts.json").write_text(json.dumps(facts))
    write_manifest(place, ["facts.json", "index.safetensors"])
    with pytest.raises(DataError, match=r"facts.json: .*'diva-rs latents 2'.*'diva-rs latents 9'"):
        LatentCache.open(place)


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("out of memory")])
@pytest.mark.parametrize("existing", [True, False])
def test_a_build_that_ends_early_leaves_nothing_behind(place, failure, existing):
    if existing:
        LatentCache.build(batches(count=1), Plain(), place)

    def loader():
        yield from batches()
        raise failure

    with pytest.raises(type(failure)):
        LatentCache.build(loader(), Plain(), place, overwrite=True)
    assert os.listdir(place.parent) == (["cache"] if existing else [])
    if existing:
        assert len(LatentCache.open(place)) == 2
    else:
        with pytest.raises(DataError, match=r"does not exist: LatentCache.build"):
            LatentCache.open(place)


def test_a_failure_while_finishing_keeps_the_old_cache(place, monkeypatch):
    LatentCache.build(batches(count=1), Plain(), place)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DataError, match=r"No space left"):
        LatentCache.build(batches(), Plain(), place, overwrite=True)
    assert os.listdir(place.parent) == ["cache"] and len(LatentCache.open(place)) == 2


def test_nothing_else_is_ever_overwritten(place, tmp_path):
    LatentCache.build(batches(), Plain(), place)
    with pytest.raises(DataError, match=r"holds a latent cache already: open it, .* with overwrite=True"):
        LatentCache.build(batches(), Plain(), place)
    (place / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds 'notes\.txt', which is not part of a latent cache"):
        LatentCache.build(batches(), Plain(), place, overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="file is a file: a folder is written"):
        LatentCache.build(batches(), Plain(), tmp_path / "file", overwrite=True)
    (tmp_path / "empty").mkdir()
    assert len(LatentCache.build(batches(), Plain(), tmp_path / "empty")) == 6


MIXED = [{"images": batches()[0]["images"]}, {"pixel_values": batches()[1]["images"]}]


@pytest.mark.parametrize(
    ("loader", "encode", "match"),
    [
        ([], lambda x: x, "the loader gave no image"),
        ([torch.full((1, 3, 8, 8), 9.0)], lambda x: x, "images of batch 0, sample 0, channel 0: value 9 is"),
        (batches(), lambda x: x * float("nan"), "latents of batch 0, sample 0: not finite"),
        (MIXED, lambda x: x, "batch 1 holds pixel_values"),
    ],
)
def test_bad_batches_are_named(place, loader, encode, match):
    with pytest.raises(DataError, match=match):
        LatentCache.build(loader, Plain(encode), place)
    assert not place.exists()


def test_latents_of_the_wrong_shape_are_named(place):
    with pytest.raises(ShapeError, match=r"batch 0: encode gave \(2, 768\) for 2 images"):
        LatentCache.build(batches(), Plain(lambda x: x.flatten(1)), place)
    steps = iter([1, 2])
    shrinking = Plain(lambda x: x[:, :, :: (step := next(steps)), ::step])
    with pytest.raises(ShapeError, match=r"batch 1, sample 0: the latent is \(3, 8, 8\), those before"):
        LatentCache.build(batches(), shrinking, place)


def test_settings_that_cannot_be_cached(place):
    with pytest.raises(ConfigError, match="dtype='bfloat16' is unknown"):
        LatentCache.build(batches(), Plain(), place, dtype="bfloat16")
    with pytest.raises(ConfigError, match="latent='sample' draws new latents each time"):
        LatentCache.build(batches(), Plain(), place, Recipe(latent="sample"))


def test_a_cache_is_reopened_in_another_process(place):
    cache = LatentCache.build(batches(), Plain(), place)
    data = pickle.dumps(cache)
    assert len(data) < 1000 and len(pickle.loads(data)) == 6
    assert "6 latents (3, 8, 8)" in cache.describe() and "every other pixel" in cache.describe()


def test_lookup_compares_all_128_bits(tmp_path):
    known = [bytes([7] * 15 + [last]) for last in (0, 3, 1)] + [bytes(16)]
    writer = StoreWriter(tmp_path)
    for content in known:
        writer.add(content, torch.zeros(1, 2, 2), "")
    writer.finish(Facts(describe="", teacher={}, view={}, views=None))
    wanted = [*known, bytes([7] * 15 + [2]), bytes([7] * 16), bytes([0] * 15 + [1]), bytes([255] * 16)]
    assert Store(tmp_path).rows(wanted).tolist() == [0, 1, 2, 3, -1, -1, -1, -1]


def test_latents_of_several_files_are_found(place, monkeypatch):
    monkeypatch.setattr(latent_store, "_FILE_BYTES", 1536)  # bytes: two latents in a file
    loader = batches()
    LatentCache.build(loader, Plain(), place)
    assert len(list(place.glob("latents-*.safetensors"))) == 3
    for batch in LatentCache.open(place).wrap(loader[::-1]):
        assert torch.equal(batch["latents"], (batch["images"] * 2 - 1)[:, :, ::2, ::2] * 2)
    (place / "latents-00001.safetensors").unlink()
    with pytest.raises(DataError, match=r"cannot be used: .*latents-00001.safetensors"):
        LatentCache.open(place)


def test_content_hashes_see_values_and_shape():
    image = np.zeros((3, 4, 6), np.float32)
    others = [image.reshape(3, 6, 4), image + 1e-7, np.zeros((3, 4, 7), np.float32)]
    assert len({content_hash(one) for one in (image, *others)}) == 4
    assert content_hash(np.asfortranarray(image)) == content_hash(image)
