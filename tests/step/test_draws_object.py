"""`Draws` as the step sees them: tensors on the device and in the dtype of the inputs, slices, keys."""

import copy
import dataclasses
import hashlib
import pickle

import numpy as np
import pytest
import torch

from diva_rs import DataError, ShapeError
from diva_rs.step.draws import DrawPlan, Draws, augment_seed, draw, sample_keys


def some() -> Draws:
    return draw(seed=0, ids=[1, 2, 3], draws=2, latent_shape=(4, 8, 8), patches=16, choose=5)


def test_shapes_and_dtypes():
    draws = some()
    assert (draws.timesteps.shape, draws.timesteps.dtype) == ((3, 2), np.int64)
    assert (draws.noise.shape, draws.noise.dtype) == ((3, 2, 4, 8, 8), np.float32)
    assert (draws.tokens.shape, draws.tokens.dtype) == ((3, 2, 5), np.int64)
    assert draw(0, [1], 2, (4,)).tokens.shape == (1, 2, 0)
    assert len(draws) == 3
    assert all(array.flags.c_contiguous and array.flags.writeable for array in (draws.noise, draws.tokens))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_take_the_dtype_of_like(dtype):
    draws = some()
    timesteps, noise, tokens = draws.tensors(torch.zeros(1, dtype=dtype))
    assert (timesteps.dtype, noise.dtype, tokens.dtype) == (torch.int64, dtype, torch.int64)
    assert torch.equal(noise, torch.from_numpy(draws.noise).to(dtype))
    assert timesteps.tolist() == draws.timesteps.tolist() and tokens.tolist() == draws.tokens.tolist()


def test_tensors_on_the_cpu_share_the_memory():
    draws = some()
    _, noise, _ = draws.tensors(torch.zeros(1))
    noise[0, 0, 0, 0, 0] = 42.0
    assert draws.noise[0, 0, 0, 0, 0] == 42.0


def test_tensors_on_meta():
    placed = some().tensors(torch.zeros(1, dtype=torch.float64, device="meta"))
    assert [(tuple(t.shape), t.device.type) for t in placed] == [
        ((3, 2), "meta"),
        ((3, 2, 4, 8, 8), "meta"),
        ((3, 2, 5), "meta"),
    ]
    assert placed[1].dtype == torch.float64


def test_fields_may_be_tensors():
    own = Draws(*some().tensors(torch.zeros(1)))
    again = own.tensors(torch.zeros(1))
    assert all(a is b for a, b in zip(again, (own.timesteps, own.noise, own.tokens), strict=True))
    meta = Draws(*own.tensors(torch.zeros(1, device="meta")))
    assert meta[1:].tensors(torch.zeros(1, device="meta"))[1].shape == (2, 2, 4, 8, 8)


def test_towards_cuda_memory_is_pinned_and_nothing_waits(monkeypatch):
    calls = []

    class OnCuda(torch.Tensor):
        device = torch.device("cuda:0")  # what a machine without one says of a tensor that it cannot have

    def pin(tensor):
        calls.append("pin")
        return tensor

    def to(tensor, target, non_blocking=False):
        calls.append((target, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    some().tensors(torch.zeros(1, dtype=torch.bfloat16).as_subclass(OnCuda))
    copy_to_device = ["pin", (torch.device("cuda:0"), True)]
    assert calls == [
        *copy_to_device,
        (torch.int64, False),
        *copy_to_device,
        (torch.bfloat16, False),
        *copy_to_device,
        (torch.int64, False),
    ]


def test_foreign_arrays_are_taken():
    noise = some().noise
    frozen = noise.copy()
    frozen.flags.writeable = False
    foreign = [
        noise[::-1],
        noise.astype(">f4"),
        noise.astype(np.longdouble),
        np.asfortranarray(noise),
        frozen,
    ]
    for array in foreign:
        steps = np.zeros((3, 2), np.uint8)
        placed = Draws(steps, array, np.zeros((3, 2, 0), ">i4")).tensors(torch.zeros(1, dtype=torch.float64))
        assert np.array_equal(placed[1].numpy(), array.astype(np.float64))


def test_slices_are_views_of_the_batch():
    draws = some()
    part = draws[1:]
    assert len(part) == 2
    assert np.shares_memory(part.noise, draws.noise)
    assert np.array_equal(part.tokens, draws.tokens[1:])
    with pytest.raises(DataError, match=r"slices of the batch, such as draws\[0:4\], not by 1"):
        draws[1]


def test_draws_of_ones_own_are_checked():
    steps, noise, tokens = (
        np.zeros((3, 2), np.int64),
        np.zeros((3, 2, 4), np.float32),
        np.zeros((3, 2, 0), np.int64),
    )
    wrong = [
        ((steps[0], noise, tokens), r"`timesteps` has shape \(2,\), expected \(B, N\)"),
        ((steps, noise[:2], tokens), r"`noise` has shape \(2, 2, 4\), .* `timesteps`, \(3, 2\)"),
        ((steps, noise[:, :, 0], tokens), r"`noise` has shape \(3, 2\), expected \(B, N, \*latent\)"),
        ((steps, noise, tokens[:, 0]), r"`tokens` has shape \(3, 0\), expected \(B, N, k\)"),
        ((steps.astype(float), noise, tokens), "`timesteps` is float64, expected whole numbers"),
        ((steps, noise.astype(int), tokens), "`noise` is int64, expected floating point"),
        ((steps, noise, torch.zeros(3, 2, 1, dtype=torch.bool)), "`tokens` is torch.bool, expected whole"),
        ((steps, torch.zeros(3, 2, 1, dtype=torch.complex64), tokens), "`noise` is torch.complex64"),
        ((steps.tolist(), noise, tokens), "`timesteps` is a list, expected a NumPy array or a tensor"),
    ]
    for fields, message in wrong:
        with pytest.raises(ShapeError, match=message):
            Draws(*fields)
    with pytest.raises(ShapeError, match=r"`like` is torch.int64, expected floating point"):
        some().tensors(torch.zeros(1, dtype=torch.int64))


def test_plans_compare_copy_and_travel():
    plan = DrawPlan(3, 2, [4, 8, 8], patches=9, choose=4, timestep_range=[0, 500])
    assert plan == DrawPlan(3, 2, (4, 8, 8), patches=9, choose=4, timestep_range=(0, 500))
    assert plan.latent_shape == (4, 8, 8) and plan.timestep_range == (0, 500)
    assert DrawPlan(3, 2, torch.Size([4, 8])) == DrawPlan(3, 2, np.array([4, 8]))
    for twin in (pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan), dataclasses.replace(plan)):
        assert twin == plan and hash(twin) == hash(plan)
        assert np.array_equal(twin.draw([1]).noise, plan.draw([1]).noise)
    assert not np.array_equal(dataclasses.replace(plan, seed=4).draw([1]).noise, plan.draw([1]).noise)


def test_numbers_are_their_own_keys():
    largest = 2**64 - 1
    assert sample_keys([0, 5, largest]).tolist() == [0, 5, largest]
    for ids in (
        np.array([0, 5]),
        np.array([0, 5], np.uint64),
        torch.tensor([0, 5]),
        (0, np.int8(5)),
        range(0, 6, 5),
    ):
        keys = sample_keys(ids)
        assert (keys.dtype, keys.tolist()) == (np.uint64, [0, 5])
    assert sample_keys([torch.tensor(5), np.uint64(largest)]).tolist() == [5, largest]
    assert sample_keys(np.arange(6, dtype=np.uint64)[::-2]).tolist() == [5, 3, 1]


def test_strings_are_hashed():
    names = ["a.png", "ü.png", "lone \udcff surrogate"]
    digests = [
        hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in names
    ]
    assert sample_keys(names).tolist() == [int.from_bytes(digest, "little") for digest in digests]
    assert sample_keys(np.array(["a.png", "b"])).tolist()[0] == int.from_bytes(digests[0], "little")
    assert augment_seed(0, "a.png") == augment_seed(0, int(sample_keys(["a.png"])[0]))
