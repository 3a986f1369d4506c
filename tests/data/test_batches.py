"""What loaders yield: every accepted form, and what is read from it."""

import numpy as np
import pytest
import torch
from transformers import BatchEncoding, BatchFeature

from diva_rs.data.batches import Batch, read_batch
from diva_rs.errors import DataError, ShapeError

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LATENTS = torch.zeros(4, 4, 2, 2)


@pytest.mark.parametrize(
    "item",
    [
        IMAGES,
        IMAGES.numpy(),
        (IMAGES,),
        [IMAGES, torch.arange(4)],
        (IMAGES.numpy(), ["a", "b", "c", "d"]),
        {"images": IMAGES, "caption": ["a"] * 4},
        {"images": IMAGES.numpy()},
        Batch(images=IMAGES),
    ],
)
def test_images_are_found_in_every_form(item):
    batch = read_batch(item)
    assert torch.equal(batch.images, IMAGES)
    assert batch.pixel_values is batch.latents is batch.ids is None
    assert len(batch) == 4


@pytest.mark.parametrize("kind", [dict, BatchEncoding, BatchFeature])
def test_mappings_hold_all_parts(kind):
    item = kind(
        {"images": IMAGES, "pixel_values": IMAGES * 2, "latents": LATENTS, "ids": torch.tensor([5, 6, 7, 8])}
    )
    batch = read_batch(item)
    assert torch.equal(batch.images, IMAGES) and torch.equal(batch.pixel_values, IMAGES * 2)
    assert torch.equal(batch.latents, LATENTS) and batch.ids.tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize(
    "ids", [[1, 2, 3, 4], ["a", "b", "c", "d"], np.arange(4), torch.arange(4), (9, 8, 7, 6)]
)
def test_ids_are_kept_as_they_come(ids):
    assert read_batch({"pixel_values": IMAGES, "ids": ids}).ids is ids


def test_a_part_that_is_none_counts_as_absent():
    batch = read_batch({"images": IMAGES, "pixel_values": None, "latents": None, "ids": None})
    assert batch.pixel_values is batch.latents is batch.ids is None


def test_source_prefers_images_and_declares_pixel_values_normalised():
    assert Batch(images=IMAGES, pixel_values=IMAGES * 2).source("symmetric") == (IMAGES, "symmetric")
    values = IMAGES * 2
    assert Batch(pixel_values=values).source("unit") == (values, "clip")
    with pytest.raises(DataError, match="neither images nor pixel_values"):
        Batch(latents=LATENTS).source("unit")


def test_slices_cut_every_part():
    part = Batch(IMAGES, IMAGES, LATENTS, ["a", "b", "c", "d"])[1:3]
    assert len(part) == 2 and part.ids == ["b", "c"]
    assert torch.equal(part.images, IMAGES[1:3]) and part.latents.shape == (2, 4, 2, 2)


def test_to_moves_tensors_and_leaves_ids():
    batch = Batch(IMAGES, None, LATENTS, [1, 2, 3, 4]).to("meta", torch.float64)
    assert batch.images.is_meta and batch.images.dtype == batch.latents.dtype == torch.float64
    assert batch.pixel_values is None and batch.ids == [1, 2, 3, 4]
    assert Batch(images=IMAGES).to("cpu").images is IMAGES


def test_arrays_that_torch_cannot_share_are_copied():
    array = IMAGES.numpy()[:, :, ::-1]
    assert torch.equal(read_batch(array).images, IMAGES.flip(2))
    frozen = IMAGES.numpy().copy()
    frozen.flags.writeable = False
    tensor = read_batch(frozen).images
    tensor.zero_()
    assert frozen.max() > 0


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"ids": [1, 2]}, "2 ids for 4 samples"),
        ({"ids": "abcd"}, "ids must be a sequence of one integer or string per sample"),
        ({"ids": 7}, "ids must be a sequence"),
        ({"ids": torch.zeros(4, 1)}, "ids must be a sequence"),
        ({"latents": LATENTS[:3]}, "3 latents for 4 samples"),
        ({"pixel_values": IMAGES[:2]}, "2 pixel_values for 4 samples"),
        ({"latents": LATENTS[0]}, r"latents is <torch.float32 \(4, 2, 2\)>, floating \(B, C, h, w\)"),
        ({"latents": LATENTS.int()}, "latents is <torch.int32"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_shape_errors(parts, match):
    with pytest.raises(ShapeError, match=rf"batch 3: {match}"):
        read_batch({"images": IMAGES, **parts}, number=3)
