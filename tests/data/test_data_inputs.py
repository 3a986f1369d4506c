"""Bad batches, bad pixels, bad files: each a clear exception that says what, where and what to do."""

import struct
import sys
import tarfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from builders.pictures import encoded, write_tar
from diva_rs.data import (
    ImageFolder,
    ImageShards,
    check_images,
    collate,
    folder_loader,
    read_batch,
    shard_loader,
)
from diva_rs.data.decode import decode
from diva_rs.errors import ConfigError, DataError, DependencyError, ShapeError

pytestmark = pytest.mark.hostile

GOOD = torch.full((2, 3, 8, 8), 0.5)


@pytest.mark.parametrize(
    ("item", "match"),
    [
        (None, "batch 4 is a NoneType: a loader yields a tensor"),
        ("cat.jpg", "batch 4 is a str: .* diva_rs.data.folder_loader reads files"),
        (iter([GOOD]), "batch 4 is a list_iterator"),
        ([], "batch 4 is a list of nothing"),
        ({}, "batch 4 is a dict with the keys none: 'images' or 'pixel_values' is needed"),
        ({"image": GOOD, "label": 1}, "keys 'image', 'label': .* is needed; rename 'image' in the collate"),
        ({"latents": GOOD}, "batch 4 holds latents alone, which cannot feed CLIP"),
        ([GOOD[0], GOOD[1]], "batch 4 is a list of Tensor: .*default_collate stacks samples"),
        ({"images": [GOOD[0], GOOD[1]]}, "'images' is a list of Tensor: a loader yields"),
        ([Image.new("RGB", (4, 4))], "a list of Image: .*unit_tensor converts a PIL image"),
        ((None, 1), "a tuple of NoneType: a loader yields"),
    ],
)
def test_batches_of_the_wrong_kind_say_what_is_wanted(item, match):
    with pytest.raises(DataError, match=match):
        read_batch(item, number=4)


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (GOOD[0], r"images of batch 0 has shape \(3, 8, 8\), \(B, 3, H, W\) .* images\[None\]"),
        (GOOD[:0], r"has shape \(0, 3, 8, 8\), .*: drop empty batches"),
        (GOOD[:, :1], r"\(2, 1, 8, 8\), .* convert the files to RGB"),
        (torch.zeros(2, 4, 8, 8), r"\(2, 4, 8, 8\), .* convert the files to RGB"),
        (torch.zeros(2, 8, 8, 3), r"\(2, 8, 8, 3\), .* images.permute\(0, 3, 1, 2\)"),
        (GOOD[:, :, :0], "no empty dimension is needed"),
        ((GOOD * 255).to(torch.uint8), r"dtype torch.uint8, .* images.float\(\) / 255"),
        (GOOD.to(torch.complex64), "dtype torch.complex64, a floating dtype is needed"),
        (np.array([["a"]]), "'images' is an array of <U1, floating numbers are needed"),
    ],
)
def test_wrong_shapes_and_dtypes_are_shape_errors(images, match):
    with pytest.raises(ShapeError, match=match):
        read_batch({"images": images}, number=0)


@pytest.mark.parametrize(
    ("value", "convention", "match"),
    [
        (float("nan"), "unit", "value nan is not finite"),
        (float("inf"), "clip", "value inf is not finite"),
        (float("-inf"), "symmetric", "value -inf is not finite"),
        (
            255.0,
            "unit",
            r"value 255 is outside \[0, 1\], the range of 'unit' pixels: divide the images by 255",
        ),
        (-1.0, "unit", "value -1 is outside .* declare pixels='symmetric'"),
        (-2.0, "symmetric", "value -2 is outside .* declare pixels='clip'"),
        (2.9, "clip", r"value 2.9 is outside \[-1.752, 2.075\].*clip_mean"),
        (255.0, "clip", "value 255 .*divide the images by 255 before normalising"),
    ],
)
def test_bad_pixels_name_batch_sample_and_id(value, convention, match):
    images = torch.zeros(4, 3, 8, 8)
    images[2, 1, 7, 0] = value
    with pytest.raises(DataError, match=rf"images of batch 6, sample 2 \(id 30\), channel 1: {match}"):
        check_images(images, convention, batch=6, ids=[10, 20, 30, 40])


@pytest.mark.parametrize("on_bad_image", ["raise", "skip"])
@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_named_and_skipped_only_on_request(tmp_path, on_bad_image, workers, caplog):
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(i))
    (tmp_path / "cut.jpg").write_bytes(encoded(9)[:400])
    (tmp_path / "text.png").write_bytes(b"<html>not found</html>")
    (tmp_path / "empty.webp").write_bytes(b"")
    loader = folder_loader(tmp_path, 2, 16, workers, on_bad_image=on_bad_image, shuffle=False)
    if on_bad_image == "raise":
        with pytest.raises(DataError, match=r"cut.jpg: .*truncated image; .*on_bad_image='skip'"):
            list(loader)
        return
    for _ in range(2):  # the second pass does not count them again
        assert sum(len(batch["ids"]) for batch in loader) == 5
    assert sorted(name.rsplit("/", 1)[1] for name in loader.bad) == ["cut.jpg", "empty.webp", "text.png"]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert "truncated" in caplog.text and "3 so far" in caplog.text


def test_a_whole_batch_of_bad_images_is_passed_over(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(i) if i in (0, 5) else b"")
    batches = list(folder_loader(tmp_path, 2, 16, 0, on_bad_image="skip", shuffle=False))
    assert [len(batch["ids"]) for batch in batches] == [1, 1]
    assert all("bad" not in batch for batch in batches)


def test_nothing_but_bad_images_is_an_error_not_an_empty_run(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"gave no image: all 1 were bad, .*a.jpg \(.*\) the first"):
        list(folder_loader(tmp_path, workers=0, on_bad_image="skip"))
    with pytest.raises(DataError, match=r"batch 0 is empty: every image of it is bad: .*a.jpg"):
        read_batch(collate([ImageFolder(tmp_path, size=8, on_bad_image="skip")[0]]), number=0)


def test_folders_without_images(tmp_path):
    with pytest.raises(DataError, match="none cannot be listed: No such file"):
        ImageFolder(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "._a.jpg").write_bytes(b"metadata that macOS leaves")
    with pytest.raises(DataError, match="holds no image"):
        folder_loader(tmp_path)
    with pytest.raises(DataError, match=r"notes.txt cannot be listed: Not a directory"):
        ImageFolder(tmp_path / "notes.txt")


def test_a_transform_that_gives_no_tensor_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded())
    with pytest.raises(DataError, match=r"a.jpg: the transform gave an Image, a floating tensor \(3, H, W\)"):
        ImageFolder(tmp_path, transform=lambda image: image)[0]


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "bomb.png"
    header = struct.pack(">4sIIBBBBB", b"IHDR", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT")
    with pytest.raises(DataError, match=r"bomb.png: .*(decompression bomb|pixels are more than)"):
        ImageFolder(tmp_path)[0]
    with pytest.raises(DataError, match=r"x.jpg: 40 x 32 pixels are more than max_pixels=100"):
        decode(encoded(), "x.jpg", max_pixels=100)


def test_truncation_is_seen_even_where_pillow_is_set_to_ignore_it(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataError, match=r"x.jpg: truncated image"):
        decode(encoded()[:-200], "x.jpg")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True  # the caller's setting stays


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("cut", ["data", "header", "between", "damaged header"])
def test_a_damaged_shard_is_named_and_its_good_part_used_on_request(tmp_path, cut, workers):
    path = write_tar(tmp_path / "0.tar", [(f"{i}.jpg", encoded(i)) for i in range(4)])
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2]
    whole = bytearray(path.read_bytes())
    if cut == "damaged header":
        whole[third.offset : third.offset + 300] = b"\xff" * 300
    else:
        ends = {"data": third.offset_data + 100, "header": third.offset + 200, "between": third.offset}
        del whole[ends[cut] :]
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"0.tar: truncated or damaged shard.*on_bad_image='skip'"):
        list(shard_loader(str(path), 2, 16, workers, shuffle=False))
    loader = shard_loader(str(path), 2, 16, workers, on_bad_image="skip", shuffle=False)
    assert sum(len(batch["ids"]) for batch in loader) == 2
    assert list(loader.bad) == [str(path)]


def test_bad_samples_of_a_shard_are_named_by_shard_and_member(tmp_path):
    members = [("a.jpg", encoded()), ("b.jpg", encoded()[:300]), ("d.jpg", b"")]
    path = str(write_tar(tmp_path / "0.tar", members))
    loader = shard_loader(path, 4, 16, 0, on_bad_image="skip", shuffle=False)
    assert sum(len(batch["ids"]) for batch in loader) == 1
    assert list(loader.bad) == [f"{path}, '{key}.jpg'" for key in "bd"]
    with pytest.raises(DataError, match=r"0.tar, 'b.jpg': .*truncated"):
        list(ImageShards(path, size=8, shuffle=False))


def test_a_picture_that_git_lfs_did_not_fetch(tmp_path):
    (tmp_path / "a.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(DataError, match=r"a\.jpg: a pointer of Git LFS, not the image: run git lfs pull"):
        ImageFolder(tmp_path)[0]


def test_shards_that_are_no_shards(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"x" * 2000)
    (tmp_path / "1.tar").write_bytes(b"")
    for i in range(2):
        with pytest.raises(DataError, match=rf"{i}.tar: truncated or damaged shard"):
            list(shard_loader(f"{tmp_path}/{i}.tar", workers=0))
    with pytest.raises(DataError, match=r"/7.tar' does not exist: looked for it as part of .*\{1,7\}.tar"):
        shard_loader(f"{tmp_path}/{{1,7}}.tar")
    with pytest.raises(DataError, match=r"\*.zip' does not exist"):
        shard_loader(f"{tmp_path}/*.zip")
    with pytest.raises(DataError, match=r"is a folder: give its files, such as .*/\*\.tar"):
        shard_loader(tmp_path)
    with pytest.raises(DataError, match="no shards"):
        ImageShards([])
    for remote in ("pipe:rm -rf x", "s3://bucket/0.tar", "-"):
        with pytest.raises(ConfigError, match="only local files are read"):
            ImageShards(remote)
    with pytest.raises(ConfigError, match=r"\{0..3.tar"):
        ImageShards(f"{tmp_path}/{{0..3.tar")
    empty = write_tar(tmp_path / "empty.tar", [])
    with pytest.raises(DataError, match="gave no image"):
        list(shard_loader(str(empty), workers=0))


def test_settings_out_of_range(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded())
    for scale in ((0.0, 1.0), (1.0, 0.9)):
        with pytest.raises(ConfigError, match=r"scale=.* must be 0 < low <= high <= 1"):
            folder_loader(tmp_path, scale=scale)
    with pytest.raises(ConfigError, match="on_bad_image='ignore' is unknown"):
        folder_loader(tmp_path, on_bad_image="ignore")


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("PIL.Image", lambda path: decode(encoded(), "x")),
        ("torchvision.transforms", lambda path: folder_loader(path)),
        ("webdataset.shardlists", lambda path: ImageShards(f"{path}/0.tar", transform=lambda image: image)),
    ],
)
def test_missing_libraries_name_the_extra(tmp_path, monkeypatch, module, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError, match=r"pip install 'diva-rs\[data\]'"):
        call(tmp_path)
