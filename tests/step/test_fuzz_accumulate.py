"""Trainer.accumulate under random batches: a loss, or a diva_rs exception that names the fault."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders.small import small_clip, small_teacher
from diva_rs import Recipe, Trainer
from diva_rs.errors import DivaError

pytestmark = pytest.mark.hostile

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.uint8,
    torch.int64,
    torch.bool,
    torch.complex64,
]
VALUES = [0.0, 0.5, 1.0, -1.0, 255.0, 1e-40, 1e30, -1e300, float("nan"), float("inf"), float("-inf")]
NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 5, 8, 16, 32])
FITTING = st.tuples(st.integers(1, 3), st.just(3), st.just(32), st.just(32))
SHAPES = st.one_of(
    st.lists(NUMBERS, max_size=5).map(tuple),
    st.tuples(st.integers(0, 3), st.just(3), st.integers(0, 40), st.integers(0, 40)),
    FITTING,
)
LATENTS = st.one_of(SHAPES, st.tuples(st.integers(1, 3), st.just(4), st.integers(1, 9), st.integers(1, 9)))


@st.composite
def tensors(draw, shapes=SHAPES):
    """A tensor, mostly of harmless values, with at most one odd one; sometimes strided, sparse or on meta."""
    shape, dtype = draw(shapes), draw(st.one_of(st.just(torch.float32), st.sampled_from(DTYPES)))
    tensor = torch.full(shape, draw(st.sampled_from([0.0, 0.25, 1.0])), dtype=torch.float64)
    if tensor.numel() and draw(st.booleans()):
        tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = draw(st.sampled_from(VALUES))
    tensor = tensor.to(dtype)
    form = draw(st.sampled_from(["plain"] * 5 + ["flipped", "expanded", "grad", "sparse", "meta", "array"]))
    if form == "flipped" and tensor.ndim > 1:
        tensor = tensor.transpose(0, -1).contiguous().transpose(0, -1)
    elif form == "expanded" and tensor.ndim and len(tensor):
        tensor = tensor[:1].expand(2, *tensor.shape[1:])
    elif form == "grad" and tensor.is_floating_point():
        tensor.requires_grad_()
    elif form == "sparse" and tensor.ndim and dtype == torch.float32:
        tensor = tensor.to_sparse()
    elif form == "meta":
        tensor = tensor.to("meta")
    elif form == "array" and dtype in (torch.float32, torch.float64, torch.uint8, torch.bool):
        return tensor.numpy()[..., ::-1] if tensor.ndim else tensor.numpy()
    return tensor


IDS = st.one_of(
    st.none(),
    st.lists(st.one_of(st.integers(-1, 2**64), st.text(max_size=3), st.floats(), st.none()), max_size=4),
    st.integers(0, 3).map(torch.arange),
    st.integers(0, 3).map(lambda n: np.arange(n, dtype=np.float32)),
    st.sampled_from(["ab", b"ab", 3, {1, 2}, range(2), torch.zeros(2, 2)]),
)
JUNK = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2))
BATCHES = st.one_of(
    tensors(),
    tensors().map(lambda t: (t, [1, 2])),
    st.lists(tensors(), max_size=2),
    st.fixed_dictionaries(
        {},
        optional={
            "images": st.one_of(tensors(), JUNK),
            "pixel_values": st.one_of(tensors(), JUNK),
            "latents": st.one_of(tensors(LATENTS), JUNK),
            "ids": IDS,
        },
    ),
    st.fixed_dictionaries({"images": tensors(FITTING), "latents": tensors(LATENTS)}),
    st.fixed_dictionaries({"pixel_values": tensors(FITTING)}, optional={"ids": IDS}),
    JUNK,
)


@pytest.fixture(scope="module")
def trainers():
    teacher = small_teacher()
    recipes = [
        Recipe(draws=1, choose=3),
        Recipe(draws=2, micro_batch=1, text="add", bernoulli=True, density=0.5, timesteps="stratified"),
        Recipe(draws=1, condition="all", pixels="symmetric", latent="sample", anchor=0.1, min_snr=5.0),
    ]
    return [Trainer(small_clip(), teacher, recipe) for recipe in recipes]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(which=st.integers(0, 2), batch=BATCHES, ids=st.one_of(st.none(), IDS))
def test_any_batch_gives_a_loss_or_names_its_fault(trainers, which, batch, ids):
    trainer = trainers[which]
    weights = [parameter.detach().clone() for parameter in trainer.parameters().values()]
    try:
        loss = trainer.accumulate(batch, ids=ids)
    except DivaError as err:
        # The bare root is for what no class of diva_rs expected: libtorch's own complaints and panics.
        assert type(err) is not DivaError, err
        assert len(str(err)) > 20 and "please report it" not in str(err)
        assert trainer.pending == 0
        assert all(parameter.grad is None for parameter in trainer.parameters().values())
    else:
        assert loss.shape == () and loss.dtype == torch.float32 and not loss.requires_grad
        assert trainer.pending > 0
        trainer.discard()
    assert all(map(torch.equal, weights, trainer.parameters().values()))
