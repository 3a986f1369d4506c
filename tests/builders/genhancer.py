"""GenHancer's step in plain PyTorch over a small FLUX of random weights, and a run for `builders.killed`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import diva_rs
from builders.flows import POOLED, TOKENS, flow_scheduler, flow_vae, tiny_flux
from diva_rs.microworld import SIDE, Microworld
from diva_rs.microworld.dataset import World

GUIDANCE = 4.0


def recipe(account: str = "genhancer-official", **fields: Any) -> diva_rs.Recipe:
    """A preset with three steps of each stage, for images of 32 pixels."""
    preset = diva_rs.Recipe.named(f"{account}-openai-vit-l-14-224")
    stages = tuple({**dict(stage), "steps": 3, "lr": 1e-3} for stage in preset.stages)
    fields = {"stages": stages, "image_size": 32, "batch": None, "precision": "fp32", "low_rank": 4, **fields}
    return preset.replace(**fields)


def teacher(dtype: torch.dtype = torch.float32, vae: nn.Module | None = None) -> diva_rs.Teacher:
    vae = vae or flow_vae().to(dtype)
    return diva_rs.Teacher(tiny_flux().to(dtype), vae=vae, scheduler=flow_scheduler(), guidance=GUIDANCE)


class Reference:
    """The loss of one batch: `visual` is an open_clip tower, `weights` are the trained ones by name."""

    def __init__(self, visual: nn.Module, flux: nn.Module, width: int) -> None:
        self.visual, self.flux = visual, flux
        self.projectors = {
            slot: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))
            for slot, out in (("tokens", TOKENS), ("pooled", POOLED))
        }

    def tower(self, weights: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
        """The tower's weights W0 + scale * B A, those of q, k and v side by side in one; and its biases."""
        own = dict(self.visual.named_parameters())
        deltas: dict[str, Tensor] = {}
        for name in weights:
            if name.endswith(".lora_A"):
                matrix = name.removesuffix(".lora_A")
                deltas[matrix.removeprefix("visual.")] = scale * weights[f"{matrix}.lora_B"] @ weights[name]
        merged = {}
        for key in own:
            delta = deltas.get(key)
            if f"{key}.q" in deltas:
                delta = torch.cat([deltas[f"{key}.{part}"] for part in "qkv"])
            if delta is not None:
                merged[key] = own[key].detach() + (delta.T if key == "proj" else delta)
        biases = {key: weights[f"visual.{key}"] for key in own if f"visual.{key}" in weights}
        return {**merged, **biases}

    def loss(
        self, weights: dict[str, Tensor], scale: float, pixels: Tensor, latents: Tensor, draws: diva_rs.Draws
    ) -> Tensor:
        embedding = functional_call(self.visual, self.tower(weights, scale), (pixels,))
        slots = {}
        for slot, projector in self.projectors.items():
            own = {key: weights[f"projector.{slot}.{key}"] for key in projector.state_dict()}
            slots[slot] = functional_call(projector, own, (embedding,))
        scheduler = flow_scheduler()
        index = 999 - torch.from_numpy(draws.timesteps)[:, 0]
        t, model_t = scheduler.sigmas[index].to(latents), scheduler.timesteps[index].to(latents)
        noise = torch.from_numpy(draws.noise)[:, 0].to(latents)
        x_t = (1 - t[:, None, None, None]) * latents + t[:, None, None, None] * noise
        batch, _, side, _ = latents.shape
        cells = side // 2

        def packed(image: Tensor) -> Tensor:
            parts = image.unfold(2, 2, 2).unfold(3, 2, 2)  # (B, C, cells, cells, 2, 2)
            return parts.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)

        own = {name: weights[f"denoiser.{name}"] for name, _ in self.flux.named_parameters()}
        places = [(0.0, float(row), float(column)) for row in range(cells) for column in range(cells)]
        inputs = {
            "hidden_states": packed(x_t),
            "encoder_hidden_states": slots["tokens"][:, None],
            "pooled_projections": slots["pooled"],
            "timestep": model_t / 1000,
            "guidance": torch.full((batch,), GUIDANCE).to(latents),
            "img_ids": torch.tensor(places).to(latents),
            "txt_ids": torch.zeros(1, 3).to(latents),
        }
        prediction = functional_call(self.flux, own, (), inputs).sample
        return nn.functional.mse_loss(prediction, packed(noise - latents))


def run(folder: Path, callbacks: Any = ()) -> None:
    """Both stages on the microworld: its CLIP and VAE, and a small FLUX of random weights."""
    world = Microworld()
    clip, data = world.clip(), torch.utils.data.TensorDataset(World("train", 20).images(range(20)))
    loader = torch.utils.data.DataLoader(data, batch_size=2, shuffle=True)
    settings = recipe(image_size=SIDE, batch=4, checkpoint_every=1, log_every=1)
    diva_rs.post_train(
        clip, teacher(vae=world.vae), loader, settings, output_dir=folder, callbacks=callbacks, progress=False
    )
