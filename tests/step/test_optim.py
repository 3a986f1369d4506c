"""The native optimizer against torch.optim, torch.nn.utils.clip_grad_norm_ and transformers' schedules."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from diva_rs import ConfigError, _native

pytestmark = pytest.mark.parity

STEPS = 20
LR = {"clip": 1e-2, "projector": 3e-2}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
METHODS = [
    ("sgd", {"momentum": 0.9}),
    ("sgd", {"momentum": 0.9, "weight_decay": 0.05}),
    ("sgd", {"momentum": 0.0}),
    ("sgd", {"momentum": 0.0, "weight_decay": 0.05}),
    ("adamw", {}),
    ("adamw", {"weight_decay": 0.05}),
    ("adamw", {"betas": (0.0, 0.3), "eps": 1e-3, "weight_decay": 0.1}),
]
Groups = dict[str, dict[str, Parameter]]


def make(dtype: torch.dtype = torch.float64, device: str = "cpu") -> Groups:
    """Two groups: with 0-dim, empty and non-contiguous parameters, and one that never gets a gradient."""
    generator = torch.Generator().manual_seed(1)

    def param(*shape: int) -> Parameter:
        return Parameter(torch.randn(shape, generator=generator, dtype=dtype).to(device))

    strided = Parameter(torch.randn(6, 10, generator=generator, dtype=dtype).to(device).t()[:, ::2])
    assert not strided.is_contiguous()
    clip = {
        "conv1.weight": param(5, 3, 2, 2),
        "ln.bias": param(17),
        "scale": param(),
        "proj": strided,
        "empty": param(0, 3),
        "unused": param(4),
    }
    return {"clip": clip, "projector": {"weight": param(9, 7), "bias": param(9)}}


def fill(groups: Groups, step: int, scale: float = 1.0) -> None:
    """The same random gradients for every copy of the groups; every third one is not contiguous."""
    generator = torch.Generator().manual_seed(100 + step)
    for name, params in groups.items():
        for i, (key, param) in enumerate(params.items()):
            grad = scale * torch.randn(param.shape, generator=generator, dtype=torch.float64)
            if i % 3 == 0 and grad.dim() > 1:
                grad = grad.transpose(0, 1).contiguous().transpose(0, 1)
            # One never has a gradient and one comes and goes: AdamW counts the updates of each parameter.
            if key == "unused" or (name, key, step % 4) == ("clip", "ln.bias", 2):
                param.grad = None
            else:
                param.grad = grad.to(dtype=param.dtype, device=param.device)


def native(groups: Groups, method: str, options: dict) -> "_native.Optimizer":
    decay, rest = options.get("weight_decay", 0.0), {k: v for k, v in options.items() if k != "weight_decay"}
    named = {group: {f"{group}.{key}": p for key, p in params.items()} for group, params in groups.items()}
    return _native.Optimizer(
        method, [(name, LR[name], decay, params) for name, params in named.items()], **rest
    )


def reference(groups: Groups, method: str, options: dict, foreach: bool | None) -> torch.optim.Optimizer:
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[method]
    lists = [{"params": list(params.values()), "lr": LR[name]} for name, params in groups.items()]
    return kind(lists, foreach=foreach, **{"weight_decay": 0.0, **options})


def pairs(a: Groups, b: Groups) -> Iterator[tuple[str, Parameter, Parameter]]:
    for name, params in a.items():
        for key, param in params.items():
            yield f"{name}.{key}", param, b[name][key]


def assert_close(got: torch.Tensor, expected: torch.Tensor, key: str = "") -> None:
    assert (got.shape, got.dtype, got.device) == (expected.shape, expected.dtype, expected.device), key
    if expected.numel() == 0:
        return
    scale = expected.abs().max().item()
    assert (got - expected).abs().max().item() <= TOLERANCE[expected.dtype] * scale, key


def assert_same_weights(a: Groups, b: Groups) -> None:
    for key, got, expected in pairs(a, b):
        assert_close(got.detach(), expected.detach(), key)


@pytest.mark.parametrize("foreach", [False, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("method", "options"), METHODS)
def test_steps_equal_torch_optim(method, options, dtype, foreach):
    ours, theirs = make(dtype), make(dtype)
    optimizer, torch_optimizer = native(ours, method, options), reference(theirs, method, options, foreach)
    schedule = get_cosine_schedule_with_warmup(torch_optimizer, 4, STEPS)
    start = make(dtype)
    for step in range(STEPS):
        fill(ours, step)
        fill(theirs, step)
        grads = [None if p.grad is None else p.grad.clone() for _, p, _ in pairs(ours, ours)]
        optimizer.step([_native.lr_factor("cosine", step, 4, STEPS)] * 2)
        torch_optimizer.step()
        schedule.step()
        assert_same_weights(ours, theirs)
        for (key, param, _), grad in zip(pairs(ours, ours), grads, strict=True):
            assert (param.grad is None and grad is None) or torch.equal(param.grad, grad), key
    for key, param, before in pairs(ours, start):
        assert torch.equal(param, before) == (key in ("clip.unused", "clip.empty")), key
    state = optimizer.state()
    compared = 0
    for key, _, param in pairs(ours, theirs):
        for buffer, expected in torch_optimizer.state.get(param, {}).items():
            if expected is not None:
                assert_close(state[f"{key}.{buffer}"], expected, f"{key}.{buffer}")
                compared += 1
    assert compared == len(state) - sum(key.startswith("clip.unused.") for key in state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("limit", [0.0, 0.3, 1e6])
def test_clipping_equals_torch(dtype, limit):
    ours, theirs = make(dtype), make(dtype)
    optimizer = native(ours, "sgd", {})
    for step in range(STEPS):
        fill(ours, step, scale=0.1)
        fill(theirs, step, scale=0.1)
        everyone = [param for params in theirs.values() for param in params.values()]
        expected = torch.nn.utils.clip_grad_norm_(everyone, limit, foreach=False)
        assert_close(optimizer.clip_grad_norm(None), expected)
        assert_close(optimizer.clip_grad_norm(limit), expected)
        for key, a, b in pairs(ours, theirs):
            assert (a.grad is None) == (b.grad is None), key
            if a.grad is not None:
                assert_close(a.grad, b.grad, key)


def test_clipping_without_and_with_bad_gradients():
    param = Parameter(torch.zeros(2))
    optimizer = _native.Optimizer("sgd", [("clip", 0.1, 0.0, {"w": param})])
    assert optimizer.clip_grad_norm(1.0).item() == 0.0
    assert param.grad is None
    param.grad = torch.tensor([float("inf"), 1.0])
    other = Parameter(torch.zeros(2))
    other.grad = param.grad.clone()
    expected = torch.nn.utils.clip_grad_norm_([other], 1.0)
    assert optimizer.clip_grad_norm(1.0).item() == expected.item() == float("inf")
    torch.testing.assert_close(param.grad, other.grad, equal_nan=True)


def test_float32_and_float64_groups_together():
    ours, theirs = make(), make()
    for groups in (ours, theirs):
        groups["projector"] = make(torch.float32)["projector"]
    optimizer, torch_optimizer = native(ours, "adamw", {}), reference(theirs, "adamw", {}, False)
    for step in range(STEPS):
        fill(ours, step)
        fill(theirs, step)
        total = torch.nn.utils.clip_grad_norm_([p for _, p, _ in pairs(theirs, theirs)], 0.5, foreach=False)
        torch.testing.assert_close(optimizer.clip_grad_norm(0.5), total, rtol=1e-6, atol=0.0)
        optimizer.step([1.0] * 2)
        torch_optimizer.step()
    for key, a, b in pairs(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.parametrize("method", ["sgd", "adamw"])
def test_gradients_of_lower_precision_are_cast(method):
    ours, theirs = Parameter(torch.ones(5)), Parameter(torch.ones(5))
    ours.grad_dtype = torch.bfloat16
    ours.grad = torch.linspace(-1, 1, 5).bfloat16()
    theirs.grad = ours.grad.float()
    _native.Optimizer(method, [("clip", 0.1, 0.0, {"w": ours})]).step([0.1])
    reference({"clip": {"w": theirs}}, method, {}, False).step()
    assert ours.grad.dtype == torch.bfloat16
    assert_close(ours.detach(), theirs.detach())


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_a_reloaded_state_continues_bit_identically(method, options):
    straight, resumed = make(torch.float32), make(torch.float32)
    optimizer, first = native(straight, method, options), native(resumed, method, options)
    for step in range(STEPS):
        if step == STEPS // 2:
            saved = {key: value.clone() for key, value in first.state().items()}
            resumed = {
                n: {k: Parameter(p.detach().clone()) for k, p in g.items()} for n, g in resumed.items()
            }
            first = native(resumed, method, options)
            first.load_state(saved)
        fill(straight, step)
        fill(resumed, step)
        optimizer.step([0.7] * 2)
        first.step([0.7] * 2)
    for key, a, b in pairs(straight, resumed):
        assert torch.equal(a, b), key
    state = first.state()
    assert all(torch.equal(value, state[key]) for key, value in optimizer.state().items())


@pytest.mark.parametrize("method", ["sgd", "adamw"])
def test_the_callers_own_parameters_move(method):
    layer = torch.nn.Linear(3, 2).double()
    weight, view, version = layer.weight, layer.weight.detach(), layer.weight._version
    optimizer = _native.Optimizer(method, [("clip", 0.1, 0.0, dict(layer.named_parameters()))])
    for _ in range(3):
        layer.zero_grad(set_to_none=False)
        layer(torch.ones(4, 3, dtype=torch.float64)).square().sum().backward()
        grad, kept = weight.grad, weight.grad.clone()
        before = weight.detach().clone()
        optimizer.step([1.0])
        assert layer.weight is weight and weight.is_leaf and weight.requires_grad
        assert not torch.equal(weight, before) and torch.equal(weight, view)
        assert weight.grad is grad and torch.equal(grad, kept)
    assert weight._version > version, "autograd must see that the weight was changed in place"
    assert torch.is_grad_enabled()
    assert all(not value.requires_grad for value in optimizer.state().values())


def test_a_graph_from_before_the_step_is_refused_by_autograd():
    weight = Parameter(torch.ones(2))
    loss = weight.square().sum()
    weight.grad = torch.ones(2)
    _native.Optimizer("sgd", [("clip", 0.1, 0.0, {"w": weight})]).step([1.0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_are_scaled():
    groups = make()
    fill(groups, 0)
    fill(other := make(), 0)
    optimizer = native(groups, "sgd", {})
    optimizer.scale_grads(-0.25)
    for key, a, b in pairs(groups, other):
        assert a.grad is None if b.grad is None else torch.equal(a.grad, -0.25 * b.grad), key


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_the_step_runs_on_the_meta_device(method, options):
    groups = make(torch.float32, device="meta")
    optimizer = native(groups, method, options)
    for step in range(2):
        fill(groups, step)
        total = optimizer.clip_grad_norm(1.0)
        assert total.is_meta and total.shape == () and total.dtype == torch.float32
        optimizer.scale_grads(0.5)
        optimizer.step([0.5] * 2)
    state = optimizer.state()
    assert all(value.is_meta for key, value in state.items() if not key.endswith(".step"))
    optimizer.load_state(state)
    weight = groups["clip"]["ln.bias"]
    with pytest.raises(ConfigError, match=r"`a` and `b` are the same tensor"):
        _native.Optimizer("sgd", [("clip", 0.1, 0.0, {"a": weight, "b": weight})])
    for _, param, _ in pairs(groups, groups):
        param.grad = None
    assert optimizer.clip_grad_norm(1.0).is_meta


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_schedules_equal_transformers(name, warmup):
    optimizer = torch.optim.SGD([Parameter(torch.zeros(1))], lr=1.0)
    build = {
        "constant": lambda: get_constant_schedule_with_warmup(optimizer, warmup),
        "cosine": lambda: get_cosine_schedule_with_warmup(optimizer, warmup, STEPS),
    }
    schedule = build[name]()
    assert isinstance(schedule, LambdaLR)
    seen = []
    for step in range(STEPS + 5):
        seen.append(_native.lr_factor(name, step, warmup, STEPS))
        assert seen[-1] == schedule.get_last_lr()[0], step
        optimizer.step()
        schedule.step()
    assert len(set(seen)) > (5 if name == "cosine" or warmup > 5 else 0)
