"""The native optimizer under bad input: every mistake is a diva_rs exception and changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from diva_rs import ConfigError, ShapeError, WeightsError, _native

pytestmark = pytest.mark.hostile

NAN, INF = float("nan"), float("inf")


def one(
    method: str = "adamw", lr: float = 0.1, param: torch.Tensor | None = None, **options
) -> "_native.Optimizer":
    weight = Parameter(torch.ones(2, 3)) if param is None else param
    decay = options.pop("weight_decay", 0.0)
    return _native.Optimizer(method, [("clip", lr, decay, {"w": weight})], **options)


@pytest.mark.parametrize(
    ("method", "options", "match"),
    [
        ("lion", {}, r'unknown method "lion": use one of sgd, adamw'),
        ("sgd", {"momentum": -0.1}, "momentum is -0.1"),
        ("sgd", {"momentum": NAN}, "momentum is NaN"),
        (
            "sgd",
            {"weight_decay": -1.0},
            "the weight decay of group `clip` is -1: it must lie between 0 and 1e9",
        ),
        ("adamw", {"weight_decay": INF}, "the weight decay of group `clip` is inf"),
        ("adamw", {"eps": -1e-8}, "eps is -0.00000001"),
        ("adamw", {"eps": NAN}, "eps is NaN"),
        ("adamw", {"betas": (1.0, 0.9)}, r"betas\[0\] is 1: it must be at least 0 and less than 1"),
        ("adamw", {"betas": (0.9, -0.1)}, r"betas\[1\] is -0.1"),
        ("adamw", {"betas": (0.9, NAN)}, r"betas\[1\] is NaN"),
        ("sgd", {"lr": -1e-3}, "the learning rate of group `clip` is -0.001"),
        ("adamw", {"lr": NAN}, "the learning rate of group `clip` is NaN"),
    ],
)
def test_options_outside_their_range(method, options, match):
    with pytest.raises(ConfigError, match=match):
        one(method, **options)


class Endless:
    """A sequence whose length is a lie."""

    def __len__(self):
        return 2**62

    def __getitem__(self, place):
        return True


def test_a_sequence_that_claims_to_be_endless():
    optimizer = one()
    for call in (
        lambda: optimizer.step(Endless()),
        lambda: optimizer.update(None, Endless()),
        lambda: _native.Optimizer("sgd", Endless()),
    ):
        with pytest.raises(TypeError, match="expected a list or a tuple, not Endless"):
            call()


def test_groups_that_cannot_be_trained():
    weight = Parameter(torch.ones(2))
    with pytest.raises(ConfigError, match="no parameter group was given"):
        _native.Optimizer("sgd", [])
    with pytest.raises(ConfigError, match="group `clip` has no parameters"):
        _native.Optimizer("sgd", [("clip", 0.1, 0.0, {})])
    with pytest.raises(ConfigError, match=r"two parameters have the name `w`"):
        _native.Optimizer(
            "sgd", [("clip", 0.1, 0.0, {"w": weight}), ("clip", 0.1, 0.0, {"w": Parameter(torch.ones(2))})]
        )
    with pytest.raises(ConfigError, match=r"`w` and `v` are the same tensor: pass a shared parameter once"):
        _native.Optimizer("sgd", [("clip", 0.1, 0.0, {"w": weight}), ("projector", 0.1, 0.0, {"v": weight})])
    with pytest.raises(ConfigError, match=r"`w` and `v` are the same tensor"):
        _native.Optimizer("sgd", [("clip", 0.1, 0.0, {"w": weight, "v": weight.detach()})])
    with pytest.raises(ConfigError, match=r"`w` is of type .*float.*, expected a torch\.Tensor"):
        one(param=0.5)
    with pytest.raises(ConfigError, match=r"`w` is not a leaf"):
        one(param=weight * 2)
    with pytest.raises(ConfigError, match=r"`w` is an expanded view whose elements share memory"):
        one(param=torch.ones(1).expand(3))
    with torch.inference_mode():
        frozen = torch.ones(2)
    with pytest.raises(ConfigError, match=r"`w` was made under torch\.inference_mode"):
        one(param=frozen)
    with pytest.raises(ConfigError, match=r"`w` is a sparse tensor"):
        one(param=torch.eye(2).to_sparse())


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.complex64, torch.int64, torch.float8_e4m3fn]
)
def test_parameters_need_full_precision(dtype):
    with pytest.raises((ShapeError, ConfigError), match=r"`w`") as caught:
        one(param=torch.ones(2).to(dtype))
    if dtype != torch.float8_e4m3fn:  # a dtype that libtorch's Rust binding does not know has its own message
        assert caught.type is ShapeError and "float32 or float64 master weights" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda p: p.bfloat16(), "is BFloat16, expected Float as when the optimizer was built"),
        (lambda p: p.repeat(2), r"has shape \[4\], expected \[2\] as when the optimizer was built"),
    ],
)
@pytest.mark.parametrize("method", ["sgd", "adamw"])
def test_a_model_changed_after_construction_is_refused(method, change, match):
    weight = Parameter(torch.ones(2))
    optimizer = one(method, param=weight)
    weight.data = change(weight.detach())
    weight.grad = torch.ones_like(weight)
    for call in (lambda: optimizer.step([1.0]), lambda: optimizer.clip_grad_norm(1.0)):
        with pytest.raises(ShapeError, match=rf"`w` {match}"):
            call()


def test_a_refused_step_changes_nothing():
    first, second = Parameter(torch.ones(2)), Parameter(torch.ones(3))
    optimizer = _native.Optimizer("sgd", [("clip", 0.1, 0.0, {"a": first, "b": second})])
    first.grad, second.grad = torch.ones(2), torch.ones(3).to_sparse()
    with pytest.raises(ConfigError, match=r"`b` has a sparse gradient"):
        optimizer.step([1.0])
    second.grad = torch.ones(3)
    for factors in ([], [1.0, 1.0]):
        with pytest.raises(ConfigError, match=rf"`factors` has {len(factors)} entries for 1 groups \(clip\)"):
            optimizer.step(factors)
    for factor in (-1.0, NAN, INF):
        with pytest.raises(ConfigError, match="learning-rate factor is"):
            optimizer.step([factor])
        with pytest.raises(ConfigError, match=r"maximal norm \(None: no clipping\) is"):
            optimizer.clip_grad_norm(factor)
    with pytest.raises(ConfigError, match="the factor is NaN"):
        optimizer.scale_grads(NAN)
    assert first.tolist() == [1.0, 1.0] and first.grad.tolist() == [1.0, 1.0]
    assert not any(value.any() for value in optimizer.state().values())


def test_loading_a_state_is_strict_and_all_or_nothing():
    optimizer = one()
    good = {key: value.clone() for key, value in one().state().items()}
    good["w.exp_avg"] += 1
    bad = [
        (
            {"w.exp_avg": None},
            r"`w\.exp_avg` is missing from the state \(expected shape \[2, 3\]\)",
        ),
        (
            {"w.exp_avg_sq": torch.ones(3, 2)},
            r"`w\.exp_avg_sq` has shape \[3, 2\], expected \[2, 3\]",
        ),
        ({"w.exp_avg_sq": torch.ones(2, 3).double()}, r"`w\.exp_avg_sq` is Double, expected"),
        ({"w.step": torch.ones(1)}, r"`w\.step` has shape \[1\], expected \[\]"),
        ({"w.step": torch.tensor(-1.0)}, r"`w\.step` is -1, expected a number of updates"),
        ({"w.step": torch.tensor(NAN)}, r"`w\.step` is NaN"),
        ({"w.step": torch.tensor(1.5)}, r"`w\.step` is 1\.5"),
        ({"w.step": torch.tensor(1.0, device="meta")}, r"`w\.step` cannot be read"),
        ({"v.step": torch.tensor(0.0)}, r"`v\.step` is not a state of this optimizer: method"),
        ({"b": torch.ones(1), "a": torch.ones(1)}, r"`a` is not a state of this optimizer \(and 1 more\)"),
        ({"w.exp_avg": 3}, r"`w\.exp_avg` is of type .*int.*, expected a torch\.Tensor"),
    ]
    for change, match in bad:
        state = {key: value for key, value in {**good, **change}.items() if value is not None}
        with pytest.raises(WeightsError, match=match):
            optimizer.load_state(state)
    assert not any(value.any() for value in optimizer.state().values())
    with pytest.raises(WeightsError, match=r"`w\.momentum_buffer` is missing"):
        one("sgd").load_state(good)
    optimizer.load_state({**good, "w.step": torch.tensor(7)})
    assert optimizer.state()["w.step"].item() == 7.0
    assert torch.equal(optimizer.state()["w.exp_avg"], torch.ones(2, 3))


def test_schedule_arguments():
    for arguments, match in [
        (("linear", 0, 0, 10), r'unknown schedule "linear": use one of constant, cosine'),
        (("cosine", -1, 0, 10), "step is -1"),
        (("cosine", 0, -1, 10), "warmup is -1"),
        (("cosine", 0, 0, 0), r'steps is 0: "cosine" needs the length of the run'),
    ]:
        with pytest.raises(ConfigError, match=match):
            _native.lr_factor(*arguments)


# Beyond the bound each number alone, or a product of two, would not fit float32.
sizes = st.one_of(st.floats(0.0, 1e9), st.sampled_from([0.0, 1e-300, 1e9]))


@pytest.mark.parametrize("method", ["sgd", "adamw"])
@settings(max_examples=150, deadline=None)
@given(
    lr=sizes, factor=sizes, decay=sizes, eps=st.floats(1e-12, 1e9), beta=st.floats(0.0, 1.0, exclude_max=True)
)
def test_every_setting_within_the_range_reaches_the_update(method, lr, factor, decay, eps, beta):
    param = Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    settings = {"momentum": decay, "betas": (beta, beta), "eps": eps}
    optimizer = _native.Optimizer(method, [("clip", lr, decay, {"w": param})], **settings)
    optimizer.clip_grad_norm(factor)
    optimizer.step([factor])
    assert lr * factor > 1e-9 or lr * factor * decay > 1e-9 or param.allclose(torch.ones(2))
