"""Denoisers that diva_rs does not know: a family of another package in one file, and any callable."""

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diva_rs
from builders import small
from builders.installed import install
from builders.reference import OPENAI, ReferenceStep, gradients_of
from diva_rs import Recipe, Teacher, Trainer
from diva_rs.diffusion import Condition, Slots, families
from diva_rs.errors import ConfigError, ShapeError

FAMILY = """
from diva_rs.diffusion import Family, Slots


class TwoSlotsFamily(Family):
    supported = "a TwoSlots"
    options = frozenset({"strength"})
    channels = 4
    latent_shape = (4, 8, 8)

    def __init__(self, model, context, strength=1.0):
        super().__init__(model, context)
        self.slots = Slots(tokens=24, pooled=self.model.scale.in_features)
        self.strength = strength

    @classmethod
    def matches(cls, model):
        return type(model).__name__ == "TwoSlots"

    def predict(self, noisy, timesteps, condition):
        return self.model(noisy, timesteps, condition.tokens, self.strength * condition.pooled)
"""


class TwoSlots(nn.Module):
    """Pixels are scaled by a pooled vector and attend to tokens."""

    def __init__(self, pooled: int = small.WIDTH) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.entry, self.exit = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.query, self.value = nn.Linear(8, small.WIDTH), nn.Linear(small.WIDTH, 8)
        self.scale = nn.Linear(pooled, 8)

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor, pooled: Tensor) -> Tensor:
        hidden = self.entry(noisy) * (1 + self.scale(pooled))[..., None, None]
        hidden = hidden + timesteps[:, None, None, None] / 1000
        pixels = hidden.flatten(2).transpose(1, 2)
        attention = (self.query(pixels) @ tokens.transpose(1, 2)).softmax(dim=-1)
        read = (attention @ self.value(tokens)).transpose(1, 2)
        prediction: Tensor = self.exit((hidden + read.reshape(hidden.shape)).tanh())
        return prediction

    def of_condition(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        assert condition.tokens is not None and condition.pooled is not None
        return self(noisy, timesteps, condition.tokens, condition.pooled)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The family as a package that pip has installed."""
    install(tmp_path, monkeypatch, "two_slots_for_diva", FAMILY, "diva_rs.families", "TwoSlotsFamily")
    families._found.cache_clear()
    yield
    families._found.cache_clear()


def text() -> Tensor:
    return torch.randn(1, 7, small.WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def parts() -> dict[str, Any]:
    return {
        "vae": small.small_vae(torch.float64),
        "scheduler": small.scheduler(),
        "text_condition": text(),
    }


def assert_same_gradients(teacher: Teacher, model: TwoSlots, **fields: Any) -> None:
    """One batch through the trainer against plain autograd, in float64."""
    recipe = Recipe(precision="fp64", draws=2, choose=5, text="concat", image_size=16).replace(**fields)
    images = small.images(3, dtype=torch.float64)
    clip = small.small_clip(torch.float64)
    trainer = Trainer(clip, teacher, recipe)
    twin, projector = copy.deepcopy(clip), copy.deepcopy(trainer.projector)
    draws = diva_rs.draw(seed=1, ids=[0, 1, 2], draws=2, latent_shape=(4, 8, 8), patches=16, choose=5)
    ours = float(trainer.accumulate(images, draws=draws))

    def denoiser(noisy: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> Any:
        pooled = encoder_hidden_states[..., -model.scale.in_features :].mean(dim=1)
        condition = Condition(encoder_hidden_states[..., : small.WIDTH], pooled)
        return SimpleNamespace(sample=model.of_condition(noisy, timesteps, condition))

    reference = ReferenceStep(
        twin, denoiser, copy.deepcopy(parts()["vae"]), small.scheduler(), text(), projector, recipe.to_dict()
    )
    timesteps, noise = torch.from_numpy(draws.timesteps), torch.from_numpy(draws.noise).double()
    choice = torch.from_numpy(draws.tokens)
    theirs = reference.run(images, timesteps, noise, choice, OPENAI, 16, (32, 32))
    expected = gradients_of({"": twin, "projector.": projector})
    assert abs(ours - theirs) <= 1e-10 * abs(theirs) and len(expected) > 10
    assert small.worst(small.gradients(trainer), expected) <= 1e-10


@pytest.mark.parity
def test_a_family_of_another_package_trains(installed: None) -> None:
    model = TwoSlots().double()
    teacher = Teacher(model, **parts())
    assert teacher.slots == Slots(tokens=24, pooled=24)
    assert (
        Trainer(small.small_clip(), teacher.to_precision("fp32"), Recipe(precision="fp32")).backend[
            "denoiser"
        ]
        == "torch (there is no native network for a TwoSlots)"
    )
    assert_same_gradients(teacher, copy.deepcopy(model).requires_grad_(True))
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ConfigError, match=r"a TwoSlots has no option label; its options are \['strength'\]"):
        Teacher(model, label="join")
    weaker = Teacher(model, **parts(), strength=0.5)
    noisy, timesteps, condition = torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.randn(2, 5, 24)
    assert not torch.equal(
        weaker.denoise(noisy, timesteps, condition), teacher.denoise(noisy, timesteps, condition)
    )


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_slots_of_two_widths_have_a_projector_each(installed: None, kind: str) -> None:
    model = TwoSlots(pooled=9).double()
    teacher = Teacher(model, vae=small.small_vae(torch.float64), scheduler=small.scheduler())
    assert teacher.family.entry == "tokens, 24 wide, pooled, 9 wide"
    assert (teacher.slots.width, teacher.condition_width) == (33, 33)
    twin = copy.deepcopy(model).requires_grad_(True)
    assert_same_gradients(teacher, twin, text="none", projector=kind)
    trainer = Trainer(small.small_clip(), teacher, Recipe(precision="fp32", text="none", projector=kind))
    keys = {
        "linear": ["bias", "weight"],
        "mlp": ["0.bias", "0.weight", "1.bias", "1.weight", "3.bias", "3.weight"],
    }
    expected = [f"{slot}.{key}" for slot in ("pooled", "tokens") for key in keys[kind]]
    assert sorted(trainer.projector.state_dict()) == expected
    with pytest.raises(ConfigError, match=r"text='mean': .* two slots .*: use text='none'"):
        Trainer(small.small_clip(), teacher, Recipe(precision="fp32"))
    noisy, timesteps, condition = torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.randn(2, 5, 33)
    apart = Condition(condition[..., :24], condition[..., 24:].mean(dim=1))
    assert torch.equal(teacher.denoise(noisy, timesteps, condition), teacher.denoise(noisy, timesteps, apart))


def test_slots_of_one_width_can_be_apart() -> None:
    shared, apart = Slots(tokens=24, pooled=24), Slots(tokens=24, pooled=24, apart=True)
    assert (shared.split, apart.split, apart.width, apart.parts) == (
        None,
        24,
        48,
        {"tokens": 24, "pooled": 24},
    )
    assert Slots(pooled=24, apart=True).split is None


def test_without_it_the_model_is_unknown() -> None:
    with pytest.raises(ConfigError, match=r"TwoSlots cannot be a teacher; expected a .*UNet2DCondition"):
        Teacher(TwoSlots())


@pytest.mark.parity
@pytest.mark.parametrize("form", ["method", "function"])
def test_a_callable_trains_as_a_denoiser(form: str) -> None:
    model = TwoSlots().double()
    predict: Any = model.of_condition
    if form == "function":
        predict = lambda noisy, timesteps, condition: model.of_condition(noisy, timesteps, condition)  # noqa: E731
    teacher = Teacher(predict=predict, latent_shape=(4, 8, 8), **parts())
    assert (teacher.latent_shape, teacher.condition_width) == ((4, 8, 8), small.WIDTH)
    assert_same_gradients(teacher, copy.deepcopy(model).requires_grad_(True))
    assert all(parameter.grad is None for parameter in model.parameters())
    # What the predictor can see is frozen, and copied for another precision.
    assert any(parameter.requires_grad for parameter in model.parameters()) == (form == "function")
    single = teacher.to_precision("fp32")
    assert single.dtype == torch.float32 and next(model.parameters()).dtype == torch.float64


def test_what_predict_needs() -> None:
    model = TwoSlots()
    with pytest.raises(ConfigError, match="predict needs condition_width, or a text_condition"):
        Teacher(predict=model.of_condition, latent_shape=(4, 8, 8))
    with pytest.raises(ConfigError, match=r"latent_shape is None, expected sizes as \(4, 64, 64\)"):
        Teacher(predict=model.of_condition, condition_width=24)
    with pytest.raises(ConfigError, match="both predict and a denoiser"):
        Teacher(small.small_unet(), predict=model.of_condition)
    with pytest.raises(ConfigError, match="predict is an int"):
        Teacher(predict=3, latent_shape=(4, 8, 8), condition_width=24)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="give at least one slot a width"):
        Slots()
    teacher = Teacher(predict=model.of_condition, latent_shape=(4, 8, 8), condition_width=24)
    tokens = Condition(tokens=torch.zeros(2, 5, 24))
    with pytest.raises(ShapeError, match=r"condition\.pooled is None, but this denoiser has that slot"):
        teacher.denoise(torch.zeros(2, 4, 8, 8), torch.zeros(2), tokens)


def test_a_registered_family_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_registered", [])
    namespace: dict[str, Any] = {}
    exec(FAMILY, namespace)
    families.register(namespace["TwoSlotsFamily"])
    assert Teacher(TwoSlots()).latent_shape == (4, 8, 8)
    assert type(Teacher(denoiser=small.small_unet()).family).__name__ == "UNet"


@pytest.mark.parametrize("copied", [False, True])
def test_a_denoiser_can_train(copied: bool) -> None:
    model = small.small_unet()
    teacher = Teacher(
        model, vae=small.small_vae(), scheduler=small.scheduler(), text_condition=text().float()
    )
    teacher = teacher.training("fp64" if copied else "fp32")
    assert teacher.trainable and (teacher.denoiser is model) != copied
    teacher.denoiser.train()
    noisy, timesteps, condition = torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.randn(2, 5, 24)
    teacher.denoise(noisy, timesteps, condition).square().mean().backward()
    assert all(parameter.grad is not None for parameter in teacher.denoiser.parameters())
    assert not teacher.denoiser.training
    backend = Trainer(small.small_clip(), teacher, Recipe(precision="fp32")).backend["denoiser"]
    assert backend == "torch (it trains)"


def test_a_denoiser_trains_in_bf16_over_its_own_float32_weights() -> None:
    model = small.small_unet()
    teacher = Teacher(model).training("bf16")
    seen = []
    model.mid_block.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    prediction = teacher.denoise(torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.randn(2, 5, 24))
    prediction.square().mean().backward()
    assert teacher.denoiser is model and seen == [torch.bfloat16] and prediction.dtype == torch.float32
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
