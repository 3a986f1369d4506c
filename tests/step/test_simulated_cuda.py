"""The whole step on CUDA as torch simulates it, for every published preset: no mixed devices, no host read,
fixed shapes. The models are small; the recipe is the preset's."""

import pytest
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

import diva_rs
from builders import simulated
from builders.flows import flow_scheduler, flow_vae, tiny_flux
from builders.small import SIDE, WIDTH, scheduler, small_clip, small_unet, small_vae
from builders.unclip import TEXT, small_unclip
from diva_rs import Recipe, Trainer
from diva_rs.recipes.presets import presets


def unet_teacher():
    text = torch.empty(1, 40, WIDTH, device="cuda")
    unet, vae = simulated.moved(small_unet), simulated.moved(small_vae)
    return diva_rs.Teacher(unet, vae=vae, scheduler=SCHEDULER, text_condition=text)


def flux_teacher():
    flux, vae = simulated.moved(tiny_flux), simulated.moved(flow_vae)
    return diva_rs.Teacher(flux, vae=vae, scheduler=FLOW, guidance=4.0)


def unclip_teacher():
    text = torch.empty(1, 7, TEXT, device="cuda")
    return diva_rs.Teacher(simulated.moved(small_unclip), text_condition=text)


SCHEDULER, FLOW = scheduler(), flow_scheduler()
TEACHERS = {("tokens", "pooled"): flux_teacher, ("pooled",): unclip_teacher}


def small(name):
    """The preset for small models, and what else decides about the step."""
    recipe = Recipe.named(name)
    fields = {"image_size": SIDE, "batch": None, **({} if recipe.choose is None else {"choose": 5})}
    return recipe.replace(**fields)


def differing():
    """One preset of each set of values: towers and sizes apart, several are the same."""
    found = {}
    for name in presets():
        values = {
            key: value for key, value in dict(small(name)).items() if key not in ("name", "steps", "lr")
        }
        found.setdefault(repr(values), name)
    return sorted(found.values())


@pytest.mark.parametrize("name", differing())
def test_a_presets_step_runs_on_simulated_cuda(name):
    recipe = small(name)
    with simulated.cuda():
        with simulated.reads():
            clip = simulated.moved(small_clip)
            teacher = TEACHERS.get(presets()[name].slots, unet_teacher)()
            with unset_fake_temporarily():
                assert len(teacher.schedule) == 1000
            trainer = Trainer(clip, teacher, recipe)
            step(trainer)  # what happens once, such as the VAE's choice
        for _ in range(2):
            loss = step(trainer)
            assert loss.device.type == "cuda" and loss.shape == ()
        assert set(trainer.backend.values()) == {"native"}
        for key, parameter in trainer.parameters().items():
            gradient = parameter.grad
            assert gradient is None or (
                gradient.device.type == "cuda" and gradient.shape == parameter.shape
            ), key


def step(trainer):
    return trainer.step({"images": torch.empty(2, 3, SIDE, SIDE, device="cuda"), "ids": [4, 5]})
