"""CLIP's and the VAE's inputs against torchvision and the official code's formula; the device guard."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as nn_f
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import normalize, resize

from diva_rs.data.checks import PATIENCE, PixelGuard, Place, _Range, check_images
from diva_rs.data.pixels import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    OPENAI_MEAN,
    OPENAI_STD,
    clip_input,
    to_unit,
    vae_input,
)
from diva_rs.errors import ConfigError, DataError


@dataclass(frozen=True)
class Fields:
    pixels: str = "unit"
    vae_pixels: str = "symmetric"
    resize: str = "bicubic"
    antialias: bool = True


OFFICIAL = Fields(vae_pixels="official", resize="bilinear", antialias=False)
MODES = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}


def picture(size=(40, 56), dtype=torch.float64):
    return torch.rand(2, 3, *size, dtype=dtype, generator=torch.Generator().manual_seed(3))


def in_convention(unit, convention):
    if convention == "clip":
        return normalize(unit, OPENAI_MEAN, OPENAI_STD)
    return unit * 2 - 1 if convention == "symmetric" else unit


def relative(got, want):
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("convention", ["unit", "clip", "symmetric"])
def test_to_unit_undoes_each_convention(convention):
    unit = picture()
    got = to_unit(in_convention(unit, convention), convention, OPENAI_MEAN, OPENAI_STD)
    assert relative(got, unit) <= 1e-14


@pytest.mark.parametrize("convention", ["unit", "clip", "symmetric"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_clip_input_is_torchvision_resize_and_normalize(convention, antialias, mode, dtype, tolerance):
    unit = picture(dtype=dtype)
    want = normalize(resize(unit, [24, 24], MODES[mode], antialias=antialias), OPENAI_MEAN, OPENAI_STD)
    recipe = Fields(pixels=convention, resize=mode, antialias=antialias)
    got = clip_input(in_convention(unit, convention), recipe, (24, 24), OPENAI_MEAN, OPENAI_STD)
    assert got.dtype == dtype
    assert relative(got, want) <= tolerance


def test_official_order_is_bit_equal_to_the_official_pipeline():
    unit = picture((64, 64), torch.float32)
    x = normalize(unit, OPENAI_MEAN, OPENAI_STD)  # what the official data set hands over at 512 pixels
    want_clip = nn_f.interpolate(x, size=(28, 28), mode="bilinear", align_corners=False)
    std, mean = torch.tensor(IMAGENET_STD).view(3, 1, 1), torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    want_vae = (x * std + mean) * 2 - 1
    assert torch.equal(clip_input(unit, OFFICIAL, (28, 28), OPENAI_MEAN, OPENAI_STD), want_clip)
    assert torch.equal(vae_input(unit, OFFICIAL, (64, 64), OPENAI_MEAN, OPENAI_STD), want_vae)


def test_official_vae_pixels_shrink_the_contrast():
    ends = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]).double()
    low, high = vae_input(ends, OFFICIAL, (4, 4), OPENAI_MEAN, OPENAI_STD)[:, :, 0, 0]
    contrast = (high - low) / 2
    want = [0.229 / 0.26862954, 0.224 / 0.26130258, 0.225 / 0.27577711]
    assert contrast.tolist() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("vae_pixels", ["symmetric", "official"])
@pytest.mark.parametrize("size", [(40, 56), (32, 32)])
def test_vae_input_is_the_same_from_every_convention(vae_pixels, size):
    unit = picture()
    inputs = [
        vae_input(
            in_convention(unit, c), Fields(pixels=c, vae_pixels=vae_pixels), size, OPENAI_MEAN, OPENAI_STD
        )
        for c in ("unit", "clip", "symmetric")
    ]
    assert inputs[0].shape == (2, 3, *size)
    assert max(relative(other, inputs[0]) for other in inputs[1:]) <= 1e-12


def test_symmetric_vae_input_is_twice_unit_minus_one():
    unit = picture()
    want = resize(unit, [32, 32], MODES["bicubic"], antialias=True) * 2 - 1
    assert relative(vae_input(unit, Fields(), (32, 32)), want) <= 1e-12
    values = normalize(unit, OPENAI_MEAN, OPENAI_STD)  # pixel_values, un-normalised for the VAE
    got = vae_input(values, Fields(pixels="unit"), (40, 56), OPENAI_MEAN, OPENAI_STD, convention="clip")
    assert relative(got, unit * 2 - 1) <= 1e-12


def test_images_that_fit_are_not_touched():
    values = picture()
    assert clip_input(values, Fields(pixels="clip"), (40, 56)) is values
    assert vae_input(values, Fields(pixels="symmetric"), (40, 56)) is values


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_resampled_in_float32(dtype):
    unit = picture(dtype=torch.float32)
    got = clip_input(unit.to(dtype), Fields(), (24, 24))
    assert got.dtype == dtype
    assert relative(got.float(), clip_input(unit, Fields(), (24, 24))) <= 2e-2


@pytest.mark.parametrize("vae_pixels", ["symmetric", "official"])
@pytest.mark.parametrize("convention", ["unit", "clip", "symmetric"])
@pytest.mark.parametrize(("mode", "antialias"), [("bicubic", True), ("bilinear", False)])
def test_everything_runs_on_the_meta_device(convention, vae_pixels, mode, antialias):
    images = torch.empty(2, 3, 40, 40, device="meta")
    recipe = Fields(convention, vae_pixels, mode, antialias)
    guard = PixelGuard()
    guard.check(images, convention)
    guard.report()
    assert clip_input(images, recipe, (24, 24)).device.type == "meta"
    assert vae_input(images, recipe, (32, 32)).shape == (2, 3, 32, 32)


def test_unknown_names_are_config_errors():
    for check in (to_unit, check_images):
        with pytest.raises(ConfigError, match="pixels='raw' is unknown: one of 'unit', 'clip', 'symmetric'"):
            check(picture(), "raw")


@pytest.mark.parametrize("convention", ["unit", "clip", "symmetric"])
def test_the_ends_of_each_range_and_a_small_overshoot_pass(convention):
    ends = torch.tensor([-0.04, 0.0, 1.0, 1.04]).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    check_images(in_convention(ends, convention), convention)
    for value in (-0.06, 1.06):
        bad = ends.clone()
        bad[2, 1, 0, 1] = value
        with pytest.raises(DataError, match=r"images, sample 2, channel 1: value .* is outside"):
            check_images(in_convention(bad, convention), convention)


# The guard's path for other devices reads no value; its arithmetic is the same on the CPU, where it shows.


def watched(guard, images, number, ids=None):
    guard._keep(images, _Range.of("unit", OPENAI_MEAN, OPENAI_STD), Place("images", number, ids))


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (float("nan"), r"images of batch 1, sample 2 \(id dog\), channel 1: value nan is not finite"),
        (float("inf"), r"images of batch 1, sample 2 \(id dog\), channel 1: value inf is not finite"),
        (float("-inf"), r"sample 2 \(id dog\), channel 1: value -inf is not finite"),
        (200.0, r"sample 2 \(id dog\), channel 1: value 200 is outside \[0, 1\].*divide the images by 255"),
        (-0.9, r"value -0.9 is outside \[0, 1\].*pixels='symmetric'"),
    ],
)
def test_the_guard_reports_the_first_bad_value_later(value, match):
    guard, good = PixelGuard(), picture((4, 4), torch.float32).expand(2, 3, 4, 4).repeat(2, 1, 1, 1)
    bad = good.clone()
    bad[2, 1, 3, 0] = value
    worse = torch.full_like(good, 99.0)
    watched(guard, good, 0)
    watched(guard, bad, 1, ["cat", "ant", "dog", "bee"])
    watched(guard, worse, 2)
    with pytest.raises(DataError, match=match):
        guard.report()
    guard.report()  # told once
    watched(guard, good, 3)
    guard.report()


def test_a_guard_that_nobody_asks_reports_by_itself():
    guard, good = PixelGuard(), torch.zeros(1, 3, 2, 2)
    watched(guard, good - 7, 0)
    for number in range(1, PATIENCE - 1):
        watched(guard, good, number)
    with pytest.raises(DataError, match="images of batch 0, sample 0"):
        watched(guard, good, PATIENCE - 1)


def test_the_guard_numbers_batches_and_raises_at_once_on_the_cpu():
    guard = PixelGuard()
    guard.check(torch.zeros(1, 3, 2, 2), "unit")
    with pytest.raises(DataError, match=r"pixel_values of batch 1, sample 0 \(id 8\), channel 0: value 9 "):
        guard.check(torch.full((1, 3, 2, 2), 9.0), "clip", what="pixel_values", ids=torch.tensor([8]))
