"""Only its pixels decide whether a picture is used: damaged metadata and Pillow's own limits do not."""

import io
import random
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import to_tensor

from builders.pictures import picture, write_tar
from diva_rs import ConfigError, DataError
from diva_rs.data import ImageFolder, folder_loader, keyed, shard_loader, train_transform
from diva_rs.data.decode import decode, load

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged metadata

SIZE = (32, 24)
PROFILE = b"\0\0\2\0" + bytes(range(256))
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"


def exif(orientation=6, *entries):
    """An EXIF block with an orientation, and further entries as (tag, type, count, value)."""
    rows = sorted([(0x0112, 3, 1, struct.pack("<HH", orientation, 0)), *entries])
    packed = b"".join(struct.pack("<HHI", *row[:3]) + row[3] for row in rows)
    head = b"II*\0" + struct.pack("<IH", 8, len(rows)) + packed + bytes(4)
    return b"Exif\0\0" + head + struct.pack("<iI", -1, 0)


def saved(kind, orientation=None, **given):
    """A picture with every kind of metadata that Pillow writes into a format."""
    blob = io.BytesIO()
    data = exif(orientation or 1, (0x010F, 2, 4, b"abc\0"))
    if kind == "PNG":
        given["pnginfo"] = info = PngImagePlugin.PngInfo()
        info.add_text("Comment", "words" * 9, zip=True)
        info.add(b"gAMA", struct.pack(">I", 45455))
        info.add(b"cHRM", struct.pack(">8I", *range(8)))
    if kind == "TIFF":
        given |= {"software": "words", "description": "more words", "dpi": (72, 72)}
    elif kind in ("PNG", "JPEG", "WEBP", "AVIF"):
        given |= {"exif": data, "icc_profile": PROFILE}
    if kind in ("JPEG", "WEBP", "AVIF"):
        given["xmp"] = XMP
    picture(3, SIZE).save(blob, kind, **given)
    return blob.getvalue()


def jpeg_parts(data):
    place = 2
    while data[place + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, place + 2)
        if data[place + 1] >= 0xE0 and data[place + 1] != 0xEE:
            yield place + 4, place + 2 + length
        place += 2 + length


def png_parts(data):
    place = 8
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        if data[place + 4 : place + 5].islower():
            yield place + 8, place + 12 + length  # with the checksum
        place += 12 + length


def webp_parts(data):
    place = 12
    while place < len(data):
        (length,) = struct.unpack_from("<I", data, place + 4)
        if data[place : place + 4] in (b"EXIF", b"XMP ", b"ICCP"):
            yield place + 8, place + 8 + length
        place += 8 + length + length % 2


def tiff_parts(data):
    (start,) = struct.unpack_from("<I", data, 4)
    for place in range(start + 2, start + 2 + 12 * data[start], 12):
        tag, _, count, where = struct.unpack_from("<HHII", data, place)
        if tag in (270, 282, 283, 296, 305):
            yield place + 2, place + 12
            if count > 4:
                yield where, where + count


def avif_parts(data):
    yield data.index(PROFILE), data.index(PROFILE) + len(PROFILE)
    head = max(data.find(b"II*\0"), data.find(b"MM\0*"))  # Pillow writes the block again
    yield head, head + 38


PARTS = {"JPEG": jpeg_parts, "PNG": png_parts, "WEBP": webp_parts, "TIFF": tiff_parts, "AVIF": avif_parts}


@pytest.mark.hostile
@pytest.mark.parametrize("kind", PARTS)
def test_no_damage_to_metadata_condemns_a_picture_or_changes_a_pixel(kind):
    whole = saved(kind)
    upright = Image.open(io.BytesIO(whole)).convert("RGB")
    turns = [np.array(upright), *(np.array(upright.transpose(turn)) for turn in Image.Transpose)]
    spans, draw = list(PARTS[kind](whole)), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            start, end = draw.choice(spans)
            damaged[draw.randrange(start, end)] = draw.choice([0, 1, 2, 5, 127, 128, 255])
        found = np.array(decode(bytes(damaged), "x"))
        # Damage may by chance be another valid orientation.
        assert any(np.array_equal(found, turn) for turn in turns)


DAMAGED = {
    "a pointer that is text": (0xA005, 2, 4, b"abc\0"),
    "a resolution of -1/0": (0x011A, 5, 1, struct.pack("<I", 38)),
    "a maker's note of a gigabyte": (0x927C, 7, 1 << 30, struct.pack("<I", 8)),
    "a pointer out of the file": (0x8769, 4, 1, struct.pack("<I", 1 << 31)),
    "an unknown type": (0x0132, 99, 1, bytes(4)),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("entry", DAMAGED.values(), ids=DAMAGED)
def test_a_readable_orientation_is_applied_beside_damage(entry, kind):
    blob = io.BytesIO()
    picture(3, SIZE).save(blob, kind, exif=exif(6, entry))
    assert decode(blob.getvalue(), "x").size == SIZE[::-1]


@pytest.mark.parametrize("orientation", range(12))
def test_every_valid_orientation_is_applied_and_no_other(orientation):
    image = Image.open(io.BytesIO(saved("PNG", orientation)))
    turns = dict(zip(range(2, 9), (0, 3, 1, 5, 4, 6, 2), strict=True))  # the EXIF standard, in Pillow's words
    want = image.transpose(Image.Transpose(turns[orientation])) if orientation in turns else image
    assert np.array_equal(np.array(decode(saved("PNG", orientation), "x")), np.array(want))
    assert load(saved("PNG", orientation), "x").size == SIZE


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    "kind", ["gAMA", "cHRM", "pHYs", "tIME", "iCCP", "zTXt", "iTXt", "eXIf", "acTL", "tRNS"]
)
def test_a_chunk_of_png_that_is_too_short_is_ignored(kind):
    plain = saved("PNG", 6)
    data = plain[:33] + chunk(kind.encode(), b"\1") + plain[33:]
    assert np.array_equal(np.array(decode(data, "x")), np.array(decode(plain, "x")))


def test_a_header_of_jpeg_that_is_too_short_is_ignored():
    plain = saved("JPEG", 6)
    for marker in (b"\xff\xe0\x00\x09JFIF\0\1\1", b"\xff\xee\x00\x08Adobe\0"):
        data = plain[:2] + marker + plain[2:]
        assert np.array_equal(np.array(decode(data, "x")), np.array(decode(plain, "x")))


def test_metadata_behind_the_pixels_may_be_cut_off_but_no_pixel():
    webp = saved("WEBP", 6, lossless=True)
    assert np.array_equal(np.array(decode(webp[:-5], "x")), np.array(decode(webp, "x")))  # amid XMP data
    unturned = decode(webp[: webp.index(b"EXIF") + 12], "x")
    assert np.array_equal(np.array(unturned), np.array(load(webp, "x")))
    for data in (
        webp[: webp.index(b"VP8L") + 400],
        saved("PNG")[:-300],
        saved("JPEG")[:-300],
        saved("TIFF")[:-900],
    ):
        with pytest.raises(DataError, match=r"^x: "):
            decode(data, "x")


@pytest.fixture
def scan(tmp_path, monkeypatch):
    """A picture beyond Pillow's limit, in a folder and in a shard beside it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    (tmp_path / "images").mkdir()
    Image.new("1", (60, 50), 1).save(tmp_path / "images" / "scan.png")
    write_tar(tmp_path / "0.tar", [("scan.png", (tmp_path / "images" / "scan.png").read_bytes())])
    return tmp_path / "images" / "scan.png"


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("reader", [folder_loader, shard_loader])
def test_max_pixels_replaces_pillows_limit(scan, reader):
    source = scan.parent if reader is folder_loader else scan.parent.parent / "0.tar"
    with pytest.raises(DataError, match=r"scan.png.*: 60 x 50 pixels are more than max_pixels=2999"):
        list(reader(source, size=8, workers=0, max_pixels=2999))
    for allowed in ({"max_pixels": 3000}, {}):
        [batch] = reader(source, size=8, workers=0, **allowed)
        assert batch["images"].shape == (1, 3, 8, 8) and batch["images"].min() > 0.99
    with pytest.raises(ConfigError, match="max_pixels=0: a whole number from 1"):
        reader(source, max_pixels=0)


def test_threads_have_limits_of_their_own_and_pillows_settings_stay(scan, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    results = {2000: [], 4000: []}

    def read(limit):
        for _ in range(100):
            try:
                results[limit].append(ImageFolder(scan.parent, size=8, max_pixels=limit)[0]["ids"])
            except DataError:
                results[limit].append("refused")

    threads = [threading.Thread(target=read, args=[limit]) for limit in results]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with pytest.raises(Image.DecompressionBombError):
            Image.open(scan)
    assert results == {2000: ["refused"] * 100, 4000: [ImageFolder(scan.parent).ids[0]] * 100}
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True and Image.MAX_IMAGE_PIXELS == 1000


def test_crops_beyond_pillows_limit_are_those_of_torchvision(monkeypatch):
    image, key = picture(2, (60, 50)), (0, 1, 2)
    bicubic = InterpolationMode.BICUBIC
    want = keyed(RandomResizedCrop(24, scale=(0.9, 1.0), interpolation=bicubic), image, key)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert np.array_equal(to_tensor(want), keyed(train_transform(24), image, key))
