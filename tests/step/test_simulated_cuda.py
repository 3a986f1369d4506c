"""The step on CUDA as torch simulates it, for every preset: no mixed devices, no host read, fixed shapes.

The models are small; the recipe is the preset's. PyTorch that was built for CUDA refuses backward passes
without a driver: there the step runs up to the first one, and the meta device covers the rest.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import diva_rs
from builders import simulated
from builders.flows import flow_scheduler, flow_vae, tiny_flux
from builders.small import SIDE, WIDTH, scheduler, small_clip, small_unet, small_vae
from builders.unclip import small_unclip
from diva_rs import DivaError, Recipe, Trainer
from diva_rs.recipes.presets import presets


def unet_teacher():
    text = torch.empty(1, 40, WIDTH, device="cuda")
    unet, vae = simulated.moved(small_unet), simulated.moved(small_vae)
    return diva_rs.Teacher(unet, vae=vae, scheduler=SCHEDULER, text_condition=text)


def flux_teacher():
    flux, vae = simulated.moved(tiny_flux), simulated.moved(flow_vae)
    return diva_rs.Teacher(flux, vae=vae, scheduler=FLOW, guidance=4.0)


def unclip_teacher():
    text = torch.empty(1, 7, WIDTH, device="cuda")
    return diva_rs.Teacher(simulated.moved(small_unclip), text_condition=text)


SCHEDULER, FLOW = scheduler(), flow_scheduler()
TEACHERS = {("tokens", "pooled"): flux_teacher, ("pooled",): unclip_teacher}


def small(name):
    """The preset for small models, and what else decides about the step."""
    recipe = Recipe.named(name)
    fields = {"image_size": SIDE, "batch": None, "low_rank_targets": ("*",)}
    return recipe.replace(**fields, **({} if recipe.choose is None else {"choose": 5}))


def differing():
    """One preset of each set of values: towers and sizes apart, several are the same."""
    found = {}
    for name in presets():
        values = {
            key: value for key, value in dict(small(name)).items() if key not in ("name", "steps", "lr")
        }
        found.setdefault(repr(values), name)
    return sorted(found.values())


def test_the_simulation_catches_mixed_devices_and_host_reads():
    """The instrument itself: what the tests below rely on."""
    with simulated.cuda():
        there, here = torch.empty(2, device="cuda"), torch.empty(2)
        with pytest.raises(RuntimeError, match="device"):
            there + here
        with pytest.raises(DataDependentOutputException):
            there.sum().item()
        with simulated.reads():
            assert there.sum().item() == 1


@pytest.mark.parametrize("name", differing())
def test_a_presets_step_runs_on_simulated_cuda(name):
    with simulated.cuda():
        with simulated.reads():
            teacher = TEACHERS.get(presets()[name].slots, unet_teacher)()
            trainer = made(simulated.moved(small_clip), teacher, small(name))
            stepped(trainer)  # what happens once, such as the VAE's choice
        with Operations() as operations:
            stepped(trainer)
        assert set(trainer.backend.values()) == {"native"} and len(operations.seen) > 200


def stepped(trainer, draws=None):
    """A step; up to the first backward pass where PyTorch was built for CUDA and finds no driver."""
    try:
        images = torch.empty(2, 3, SIDE, SIDE, device="cuda")
        # Augmented views are made on the host otherwise, of values.
        batch = {"images": images, "augmented": images, "ids": [4, 5]}
        loss = trainer.accumulate(batch, draws=draws)
    except DivaError as err:
        if torch.cuda.is_available() or "hasPrimaryContext" not in str(err):
            raise
    else:
        assert loss.device.type == "cuda" and loss.shape == ()


def made(clip, teacher, recipe):
    with unset_fake_temporarily():
        assert len(teacher.schedule) == 1000  # of values: made before the simulation
    return Trainer(clip, teacher, recipe)


class Operations(TorchDispatchMode):
    """Names, shapes and devices of what every operation reads."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        read = [one for one in tree_leaves((args, kwargs or {})) if isinstance(one, torch.Tensor)]
        self.seen.append((str(func), *((one.device.type, tuple(one.shape)) for one in read)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["diva-official-openai-vit-l-14-224", "diva-dfn-vit-h-14-378"])
def test_with_draws_on_the_device_a_step_reads_no_host_tensor_and_never_changes(name):
    """What a CUDA graph needs of the part that it captures."""
    recipe = small(name)
    with simulated.cuda():
        timesteps = torch.empty(2, recipe.draws, dtype=torch.int64, device="cuda")
        noise = torch.empty(2, recipe.draws, 4, SIDE // 2, SIDE // 2, device="cuda")
        choice = torch.empty(2, recipe.draws, 5, dtype=torch.int64, device="cuda")
        draws = diva_rs.Draws(timesteps, noise, choice)
        with simulated.reads():
            trainer = made(simulated.moved(small_clip), unet_teacher(), recipe)
            stepped(trainer, draws)
        runs = []
        for _ in range(2):
            with Operations() as operations:
                stepped(trainer, draws)
            runs.append(operations.seen)
    assert runs[0] == runs[1] and len(runs[0]) > 200
    assert {place for _, *read in runs[0] for place, _ in read} == {"cuda"}
