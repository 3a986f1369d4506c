"""Image folders and shards: what is read, in which order, and that pixels are keyed by (seed, id, epoch)."""

import io
import pickle

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import center_crop, resize, to_tensor

from builders.pictures import encoded, picture, write_tar
from diva_rs.data import (
    ImageFolder,
    ImageShards,
    center_transform,
    collate,
    folder_loader,
    keyed,
    shard_loader,
    train_transform,
    unit_tensor,
)
from diva_rs.data.decode import decode, decode_pixels
from diva_rs.data.keys import name_key, scramble
from diva_rs.data.loader import KeyedSampler


def png(seed):
    return encoded(seed, kind="png")


@pytest.fixture
def folder(tmp_path):
    for i in range(10):
        path = tmp_path / "images" / ("ab"[i % 2]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    return tmp_path / "images"


@pytest.fixture
def shards(tmp_path):
    for shard in range(4):
        with webdataset.TarWriter(str(tmp_path / f"{shard:02d}.tar")) as writer:
            for i in range(3):
                key = f"{shard:02d}{i:03d}"
                writer.write({"__key__": key, "png": png(10 * shard + i), "txt": b"a caption", "json": b"{}"})
    return str(tmp_path / "{00..03}.tar")


def by_id(loader):
    return {int(i): image for batch in loader for i, image in zip(batch["ids"], batch["images"], strict=True)}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[i], other[i]) for i in one)


def test_a_folder_yields_unit_pixels_and_stable_ids(folder):
    dataset = ImageFolder(folder, center_transform(32))
    assert dataset.names == sorted(f"{'ab'[i % 2]}/{i}.png" for i in range(10))
    item = dataset[0]
    assert item["ids"] == name_key("a/0.png") == 1615431527792962283
    assert dataset.ids.tolist() == [name_key(name) for name in dataset.names]
    assert torch.equal(item["images"], center_crop(to_tensor(picture(0)), 32))
    assert "10 images" in repr(dataset)


@pytest.mark.parametrize("workers", [1, 2])
def test_folder_pixels_and_order_do_not_depend_on_workers(folder, workers):
    for epoch in (0, 1):
        runs = []
        for count in (0, workers):
            loader = folder_loader(folder, 3, 16, count, seed=7)
            loader.set_epoch(epoch)
            runs.append(list(loader))
        for one, other in zip(*runs, strict=True):
            assert torch.equal(one["ids"], other["ids"]) and torch.equal(one["images"], other["images"])


def test_folder_pixels_do_not_depend_on_order_or_batch(folder):
    loaders = [folder_loader(folder, 3, 16, 0), folder_loader(folder, 10, 16, 0, shuffle=False)]
    assert same(by_id(loaders[0]), by_id(loaders[1]))


@pytest.mark.parametrize("workers", [1, 2])
def test_shard_pixels_do_not_depend_on_workers(shards, workers):
    for epoch in (0, 5):
        runs = []
        for count in (0, workers):
            loader = shard_loader(shards, 2, 16, count, seed=3)
            loader.set_epoch(epoch)
            runs.append(by_id(loader))
        assert len(runs[0]) == 12 and same(*runs)


def test_ids_of_shards_hold_the_file_name_and_not_its_place(tmp_path):
    def ids(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            write_tar(tmp_path / name, [(f"{i:06}.png", png(i)) for i in range(2)])
        loader = shard_loader([tmp_path / name for name in names], 2, 16, 0, shuffle=False)
        return [number for batch in loader for number in batch["ids"].tolist()]

    here = ids("a.tar", "b.tar")
    assert here == [name_key(f"{shard}.tar/00000{i}.png") for shard in "ab" for i in range(2)]
    assert ids("elsewhere/b.tar") == here[2:]
    both = ids("a.tar", "x/0.tar", "y/0.tar")
    assert both[:2] == here[:2] and len(set(both)) == 6
    assert ids("x/0.tar", "y/0.tar") == both[2:]


def test_a_shard_named_twice_is_read_once(tmp_path, caplog):
    write_tar(tmp_path / "a.tar", [("0.png", png(0))])
    loader = shard_loader([tmp_path / "a.tar", f"{tmp_path}/*.tar"], 2, 16, 0)
    assert len(by_id(loader)) == 1 and "2 names stand for 1 shards" in caplog.text


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_seed_and_epoch_change_crops_and_order(kind, request):
    source, make = request.getfixturevalue(kind), {"folder": folder_loader, "shards": shard_loader}[kind]

    def run(seed, epoch):
        loader = make(source, 3, 16, 0, seed)
        loader.set_epoch(epoch)
        return loader

    first = run(0, 0)
    order = [i for batch in first for i in batch["ids"].tolist()]
    assert order == [i for batch in run(0, 0) for i in batch["ids"].tolist()]
    for other in (run(0, 1), run(1, 0)):
        assert [i for batch in other for i in batch["ids"].tolist()] != order
        one, two = by_id(first), by_id(other)
        assert one.keys() == two.keys()
        assert sum(torch.equal(one[i], two[i]) for i in one) < len(one) / 2  # chance repeats a few crops


def test_lengths(folder, shards):
    loader = folder_loader(folder, 4, 16, 0)
    assert len(loader) == len(list(loader)) == 3 and loader.batch_size == 4
    with pytest.raises(TypeError, match="not known"):
        len(shard_loader(shards, 4, 16, 0))


def test_scale_none_is_one_fixed_view(folder):
    first, second = (folder_loader(folder, 4, 16, 0, seed, scale=None) for seed in (0, 9))
    second.set_epoch(3)
    assert same(by_id(first), by_id(second))


def test_datasets_work_in_a_plain_dataloader(folder, shards):
    for dataset, count in ((ImageFolder(folder, size=16), 10), (ImageShards(shards, size=16), 12)):
        assert len(by_id(DataLoader(dataset, batch_size=4, collate_fn=collate, num_workers=2))) == count
        assert len(by_id(DataLoader(dataset, batch_size=4))) == count


def test_datasets_can_be_sent_to_spawned_workers(folder, shards):
    for dataset in (ImageFolder(folder, size=16), ImageShards(shards, size=16)):
        again = pickle.loads(pickle.dumps(dataset))
        assert torch.equal(next(iter(again))["images"], next(iter(dataset))["images"])


def test_the_order_of_an_epoch_is_keyed_by_the_samples():
    ids = np.array([name_key(str(i)) for i in range(200)])
    sampler = KeyedSampler(ids, seed=1)
    order = ids[list(sampler)]
    fewer = np.delete(ids, 17)
    assert [i for i in order if i != ids[17]] == fewer[list(KeyedSampler(fewer, seed=1))].tolist()
    sampler.set_epoch(1)
    assert ids[list(sampler)].tolist() != order.tolist()


def test_orders_of_epochs_are_uniform():
    # Sample 0's place over 4,000 epochs in 8 bins: chi-square with 7 degrees of freedom, 24.3 is p = 0.001.
    ids = np.arange(8)
    places = [int(np.argsort(scramble(ids, 0, epoch), kind="stable").argmin()) for epoch in range(4000)]
    counts = np.bincount(places, minlength=8)
    assert float(((counts - 500) ** 2 / 500).sum()) < 24.3


def joined(monkeypatch, rank, world):
    """As torch.distributed tells it to a process that has joined its ranks."""
    for name, value in (("is_initialized", True), ("get_rank", rank), ("get_world_size", world)):
        monkeypatch.setattr(torch.distributed, name, lambda *_, value=value, **__: value)


def test_ranks_share_an_epoch_without_overlap(folder, shards, monkeypatch):
    seen = []
    for rank in range(3):
        joined(monkeypatch, rank, 3)
        loader = folder_loader(folder, 2, 16, 0)
        seen.append(list(by_id(loader)))
        assert len(loader) == 2
    assert [len(ids) for ids in seen] == [3, 3, 3] and len({i for ids in seen for i in ids}) == 9


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_share_shards_without_overlap(shards, monkeypatch, workers):
    seen = []
    for rank in range(2):
        joined(monkeypatch, rank, 2)
        seen.append(set(by_id(shard_loader(shards, 2, 16, workers))))
    assert len(seen[0]) == len(seen[1]) == 6 and not seen[0] & seen[1]


@pytest.mark.parametrize("reader", [folder_loader, shard_loader])
def test_a_launchers_variables_alone_divide_nothing(folder, shards, monkeypatch, reader):
    """A process that has joined nobody sees all images: those of a rank that does not exist would be lost."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    place, samples = (folder, 10) if reader is folder_loader else (shards, 12)
    assert len(by_id(reader(place, 2, 16, 0))) == samples


def test_train_transform_is_the_papers_crop():
    torch.manual_seed(5)
    want = to_tensor(
        RandomResizedCrop(24, scale=(0.9, 1.0), interpolation=InterpolationMode.BICUBIC)(picture(0))
    )
    torch.manual_seed(5)
    assert torch.equal(train_transform(24)(picture(0)), want)


@pytest.mark.parametrize("size", [(90, 50), (50, 90), (31, 20), (7, 200), (24, 24)], ids=str)
def test_a_crop_is_pillows_along_rows_and_then_along_columns(size):
    """In one call Pillow 13 takes the other order for some sizes."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    image, bicubic = Image.fromarray(pixels), Image.Resampling.BICUBIC
    torch.manual_seed(2)
    top, left, height, width = RandomResizedCrop.get_params(image, (0.9, 1.0), (3 / 4, 4 / 3))
    crop = image.crop((left, top, left + width, top + height))
    want = crop.resize((24, height), bicubic).resize((24, 24), bicubic)
    torch.manual_seed(2)
    assert torch.equal(train_transform(24)(image), to_tensor(want))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2, "progressive": True}], ids=str)
def test_the_bytes_of_a_jpeg_are_pillows(mode, options):
    file = io.BytesIO()
    picture(0).convert(mode).save(file, "JPEG", quality=80, **options)
    want = np.array(decode(file.getvalue(), "a.jpg"))
    assert np.array_equal(decode_pixels(file.getvalue(), "a.jpg").permute(1, 2, 0), want)


def test_center_transform_is_resize_and_center_crop():
    want = to_tensor(center_crop(resize(picture(0), 24, InterpolationMode.BICUBIC), 24))
    assert torch.equal(center_transform(24)(picture(0)), want)


def test_keyed_leaves_the_callers_generators_alone():
    torch.manual_seed(1)
    want = torch.rand(3)
    torch.manual_seed(1)
    keyed(lambda _: torch.rand(100), None, (0, 1, 2))
    assert torch.equal(torch.rand(3), want)


def test_decode_turns_upright_and_converts_every_mode(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 270 degrees to show
    picture(0, (40, 20)).save(tmp_path / "turned.png", exif=exif)
    turned = decode(tmp_path / "turned.png", "turned.png")
    assert turned.size == (20, 40)
    assert np.array_equal(np.array(turned), np.rot90(np.array(picture(0, (40, 20))), -1))
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16"):
        path = tmp_path / (f"{mode.replace(';', '')}." + ("tif" if mode in ("CMYK", "I;16") else "png"))
        Image.new(mode, (4, 4)).save(path)
        assert unit_tensor(decode(path, mode)).shape == (3, 4, 4)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    grey = np.array([[0, 256, 32768, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "g.png")
    Image.fromarray(grey.astype(">u2")).save(tmp_path / "big-endian.tif")
    (tmp_path / "g.pgm").write_bytes(b"P5 4 1 65535\n" + grey.astype(">u2").tobytes())
    for name in ("g.png", "big-endian.tif", "g.pgm"):
        assert np.array(decode(tmp_path / name, name))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_shards_as_other_tools_write_them(tmp_path, mode):
    path = tmp_path / "0.tar"
    members = {"x": None, "./x/a.JPG": png(0), "x/._a.jpg": b"junk", "x/b.v2.png": png(1)}
    members |= {"x/b.txt": b"words", "__meta__": b"m"}
    write_tar(path, members.items(), mode)
    loader = shard_loader(str(path), 2, 16, 0, shuffle=False, on_bad_image="skip")
    assert len(by_id(loader)) == 2 and not loader.bad


def test_lists_and_wildcards_of_shards(shards, tmp_path):
    every = [str(tmp_path / f"{i:02d}.tar") for i in range(4)]
    for pattern in (shards, f"{tmp_path}/*.tar", every):
        assert ImageShards(pattern).shards == every
    assert ImageShards(tmp_path / "00.tar").shards == every[:1]
