"""A step through one slot of Flux and Stable Diffusion 3, beside the text in the other: plain autograd's."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from builders import mmdits, small
from builders.autograd_step import AutogradStep
from builders.flows import POOLED, TOKENS, flow_scheduler, flow_vae, tiny_flux, tiny_sd3
from diva_rs import Recipe, Teacher, Trainer

TOLERANCE = {"fp64": 1e-10, "fp32": 1e-5}
TEXT = {"text_condition": torch.randn(1, 5, TOKENS, generator=torch.Generator().manual_seed(1))}
VECTOR = {"pooled_projections": torch.randn(1, POOLED, generator=torch.Generator().manual_seed(2))}


class Plain(nn.Module):
    """diffusers' own model under a condition (B, S, C) in one slot and the text in the other."""

    def __init__(self, model: nn.Module, slot: str) -> None:
        super().__init__()
        self.predict, self.slot = mmdits.theirs(model), slot

    def forward(self, noisy: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> SimpleNamespace:
        condition = encoder_hidden_states
        tokens, pooled = condition, VECTOR["pooled_projections"].to(noisy).expand(len(noisy), 1, -1)
        if self.slot == "pooled":
            tokens, pooled = TEXT["text_condition"].to(noisy).expand(len(noisy), -1, -1), condition
        both = torch.cat([tokens, pooled.expand(-1, tokens.shape[1], -1)], dim=-1)
        return SimpleNamespace(sample=self.predict(noisy, timesteps, both))


@pytest.mark.parity
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("make", [tiny_flux, tiny_sd3])
@pytest.mark.parametrize(
    ("slot", "given", "fields"),
    [
        ("tokens", TEXT | VECTOR, {"text": "concat", "condition": "random", "choose": 3}),
        ("tokens", TEXT | VECTOR, {"text": "broadcast", "condition": "class", "micro_batch": 2}),
        ("pooled", TEXT, {"text": "none", "condition": "class"}),
    ],
    ids=["concat", "broadcast", "pooled"],
)
def test_the_loss_and_every_gradient(slot, given, fields, make, backend, precision):
    dtype = torch.float64 if precision == "fp64" else torch.float32
    model = make().to(dtype)
    guidance = {"guidance": mmdits.GUIDANCE} if make is tiny_flux else {}
    given = {name: value.to(dtype) for name, value in given.items()}
    parts = {"vae": flow_vae().to(dtype), "scheduler": flow_scheduler(shift=3.0)}
    teacher = Teacher(model, **parts, slot=slot, **guidance, **given)
    settings = {"projector": "mlp", "draws": 2, "image_size": 32, "latent": "mean"}
    trainer = Trainer(
        small.small_clip(dtype), teacher, Recipe(precision=precision, backend=backend, **settings, **fields)
    )
    assert trainer.backend["denoiser"].startswith(backend)
    reference = AutogradStep(trainer, None)
    reference.unet = Plain(model, slot)
    losses, expected = reference.run(small.images(3, dtype=dtype))
    ours = float(trainer.accumulate(small.images(3, dtype=dtype)))
    assert abs(ours - losses["loss"]) <= TOLERANCE[precision] * losses["loss"]
    found = small.gradients(trainer)
    assert found.keys() == expected.keys()
    assert small.worst(found, expected) <= TOLERANCE[precision]
