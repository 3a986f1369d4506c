"""The step on another device than the host's: what `benches/gpu.sh` runs where there is a GPU.

Each test also runs on the CPU, so that it is known to work before somebody has a GPU for it.
"""

import contextlib

import pytest
import torch

import diva_rs
from lab.benchmarks.contestants import NAMES, make
from lab.benchmarks.cuda import graphed, on_device
from lab.benchmarks.models import Models, quiet
from lab.benchmarks.sizes import find

GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))
devices = pytest.mark.parametrize("device", ["cpu", GPU])


def built(device):
    """Models with the same weights on any device."""
    models = Models(find("tiny"))
    for name in ("clip", "unet", "vae", "text_encoder", "text", "prompt"):
        setattr(models, name, getattr(models, name).to(device))
    models.device = torch.device(device)
    return models


@pytest.fixture(autouse=True)
def no_warnings():
    with quiet():
        yield


def stepped(name, device, draws):
    models = built(device)
    contestant = make(name, models)
    loss = contestant.step(models.images(), draws)
    return loss.cpu(), {key: p.grad.cpu() for key, p in contestant.parameters().items() if p.grad is not None}


@devices
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_are_the_hosts(name, device):
    draws = Models(find("tiny")).draws()
    want, gradients = stepped("official", "cpu", draws)
    loss, found = stepped(name, device, draws)
    assert abs(loss - want) <= 1e-5 * want and found.keys() == gradients.keys()
    for key, gradient in found.items():
        assert (gradient - gradients[key]).norm() <= 1e-5 * gradients[key].norm(), key


@devices
def test_the_fused_recap_gives_the_same_step(device, monkeypatch):
    """On the CPU the core's own operations run both times."""
    draws = Models(find("tiny")).draws()
    want, gradients = stepped("ours", device, draws)
    monkeypatch.setenv("DIVA_RS_FUSED_RECAP", "1")
    loss, found = stepped("ours", device, draws)
    assert abs(loss - want) <= 1e-5 * want and found.keys() == gradients.keys()
    for key, gradient in found.items():
        assert (gradient - gradients[key]).norm() <= 1e-5 * gradients[key].norm(), key


@devices
def test_a_step_never_waits_for_the_device(device):
    """Draws keyed on the host, copied, and used: with CUDA's own watch for synchronisation on."""
    models = built(device)
    ours, images = make("ours", models), models.images()
    ours.step(images)  # the first one looks at the weights
    with watched(device):
        loss = ours.step(images)
    assert loss.device.type == device and torch.isfinite(loss.cpu())


@contextlib.contextmanager
def watched(device):
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@devices
def test_a_replayed_graph_gives_the_gradient_of_the_step(device):
    models = built(device)
    ours, images = make("ours", models), models.images()
    draws = on_device(models.draws(), models.device)
    ours.step(images, draws)
    want = {key: p.grad.clone() for key, p in ours.parameters().items() if p.grad is not None}
    call, told = graphed(ours, images, draws)
    assert told == ("captured" if device == "cuda" else "not captured: a CUDA graph needs CUDA")
    call()
    for key, gradient in want.items():
        torch.testing.assert_close(dict(ours.parameters())[key].grad, gradient, msg=key)


@devices
def test_twenty_steps_lower_the_loss(device):
    models = built(device)
    recipe = models.recipe.replace(optimizer="adamw", lr=1e-3)
    teacher = diva_rs.Teacher(
        models.unet, vae=models.vae, scheduler=models.scheduler, text_condition=models.text
    )
    trainer = diva_rs.Trainer(models.clip, teacher, recipe)
    batch = {"images": models.images(batch=8), "ids": list(range(8))}
    losses = [float(trainer.step(batch)) for _ in range(20)]
    assert sum(losses[-5:]) < sum(losses[:5])
