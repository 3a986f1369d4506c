"""One training step of SD-2-1-base and ViT-L/14 at 512 and 224 pixels, N = 2, random weights.

`python -m builders.published_step WAY FILE`, in the folder of the tests, writes what that way found. Every
way starts from the same weights, image and draws. "float32" and "bf16" are plain open_clip and diffusers;
"native", "native-checkpointing" and "native-condition" are `Trainer.accumulate` in bf16 over float32 weights,
the last with a look at cut 2.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import open_clip
import torch
from torch import Tensor, nn

import diva_rs
from builders import small
from builders.reference import OPENAI, ReferenceStep
from builders.unets import stirred_slightly
from diva_rs.diffusion import Slots
from diva_rs.native import choose, native_denoiser
from diva_rs.step.bridge import make_projector

UNET: dict[str, Any] = {
    "sample_size": 64,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
RECIPE = diva_rs.Recipe.named("diva-openai-vit-l-14-224")
DRAWS, SIDE, PIXELS = 2, 64, 512


class Setup:
    """Models, image and draws, the same in every process."""

    def __init__(self, unet_dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.unet: Any = stirred_slightly(diffusers.UNet2DConditionModel(**UNET)).eval().requires_grad_(False)
        self.unet.to(unet_dtype)
        self.vae: Any = diffusers.AutoencoderKL(**VAE).eval().requires_grad_(False)
        fields = open_clip.get_model_config("ViT-L-14-quickgelu")
        self.visual = open_clip.model._build_vision_tower(fields["embed_dim"], fields["vision_cfg"], True)
        self.text = torch.randn(1, 77, UNET["cross_attention_dim"])
        self.image = torch.rand(1, 3, PIXELS, PIXELS)
        self.recipe = RECIPE.replace(draws=DRAWS)
        self.draws = diva_rs.draw(
            seed=0,
            ids=[0],
            draws=DRAWS,
            latent_shape=(4, SIDE, SIDE),
            patches=256,
            choose=self.recipe.chosen(256),
        )

    def gradients(self, projector: nn.Module) -> dict[str, Tensor]:
        """Of the projector, and of the tower outside its blocks and in its first, middle and last block."""
        blocks = ("resblocks.0.", "resblocks.12.", "resblocks.23.")
        found = {f"projector.{name}": p.grad for name, p in projector.named_parameters()}
        for name, parameter in self.visual.named_parameters():
            if "resblocks" not in name or any(block in name for block in blocks):
                found[name] = parameter.grad
        return {name: gradient.detach().float().clone() for name, gradient in found.items()}


class Reference(ReferenceStep):
    """The plain step, which tells the gradients at the condition and encodes the image once."""

    def __init__(self, *args: Any, autocast: bool) -> None:
        super().__init__(*args)
        self.autocast, self.at_condition, self.cached = autocast, [], None

    def condition(self, pixels: Tensor, chosen: Tensor | None) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast):
            condition = super().condition(pixels, chosen).float()
        condition.register_hook(lambda gradient: self.at_condition.append(gradient.detach().clone()))
        return condition

    def latents(self, *args: Any) -> Tensor:
        if self.cached is None:
            self.cached = super().latents(*args)
        return self.cached


def reference(dtype: torch.dtype) -> dict[str, Any]:
    setup = Setup(dtype)
    unet = setup.unet

    def cast(noisy: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> Any:
        output = unet(
            noisy.to(dtype), timesteps, encoder_hidden_states=encoder_hidden_states.to(dtype)
        ).sample
        return SimpleNamespace(sample=output.float())

    projector = make_projector(setup.recipe, 768, Slots(tokens=1024))
    fields, clip = setup.recipe.to_dict(), SimpleNamespace(visual=setup.visual)
    step = Reference(
        clip,
        cast,
        setup.vae,
        small.scheduler(),
        setup.text,
        projector,
        fields,
        autocast=dtype != torch.float32,
    )
    timesteps, noise, choice = (
        torch.from_numpy(part) for part in (setup.draws.timesteps, setup.draws.noise, setup.draws.tokens)
    )
    loss = step.run(setup.image, timesteps, noise.float(), choice, OPENAI, PIXELS, (224, 224))
    # Each of the N losses is weighted by 1 / N: the gradients of the draws stand side by side.
    return {"loss": loss, "condition": torch.stack(step.at_condition, 1), **setup.gradients(projector)}


def native(checkpointing: bool, look: bool) -> dict[str, Any]:
    setup = Setup(torch.float32)
    teacher = diva_rs.Teacher(
        setup.unet, vae=setup.vae, scheduler=small.scheduler(), text_condition=setup.text
    ).to_precision("bf16")
    seen: list[Tensor] = []
    if look:
        network = native_denoiser(teacher)

        def watched(noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
            condition.register_hook(lambda gradient: seen.append(gradient.detach().float().clone()))
            return network.predict(noisy, timesteps, condition)

        choose.native_denoiser = lambda teacher, checkpoint: watched
    recipe = setup.recipe.replace(
        precision="bf16",
        backend="native",
        gradient_checkpointing=checkpointing,
        denoiser_checkpointing=checkpointing,
    )
    trainer = diva_rs.Trainer(setup.visual, teacher, recipe)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    loss = float(trainer.accumulate({"images": setup.image, "ids": [0]}, draws=setup.draws))
    found = {"loss": loss, "before": before, "peak": memory("VmHWM"), **setup.gradients(trainer.projector)}
    if seen:
        found["condition"] = torch.stack(seen, 1)
    return found


def memory(name: str) -> float:
    """A figure of this process, in GiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 2**20
    raise KeyError(name)


WAYS = {
    "float32": lambda: reference(torch.float32),
    "bf16": lambda: reference(torch.bfloat16),
    "native": lambda: native(checkpointing=False, look=False),
    "native-checkpointing": lambda: native(checkpointing=True, look=False),
    "native-condition": lambda: native(checkpointing=False, look=True),
}

if __name__ == "__main__":
    way, file = sys.argv[1:]
    torch.save(WAYS[way](), file)
