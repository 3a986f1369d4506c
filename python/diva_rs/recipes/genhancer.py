"""GenHancer: "Imperfect Generative Models are Secretly Strong Vision-Centric Enhancers", arXiv 2503.19480.

Its continuous branch. A light FLUX of random weights learns to denoise FLUX's latents under CLIP's pooled
embedding alone. Then the vision tower trains through it by low-rank updates. The teacher is::

    flux = diffusers.FluxTransformer2DModel(num_layers=2, num_single_layers=4, guidance_embeds=True)
    diva_rs.Teacher(flux, vae=..., scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), guidance=4)

with the VAE of FLUX.1. Images are random crops of 0.9 to 1.0 of the area without flips, as diva_rs's loaders
make them.

``genhancer-…`` is the method on correct pixels; its stage 2 trains the tower alone. ``genhancer-official-…``
is what the official code computes in bf16 in its variant "all", whose stage 2 trains projectors and denoiser
too. Its code has no configuration for MetaCLIP and for SigLIP at 224: they get the values of the others. Not
reproduced are its dropout of 0.1 inside the low-rank updates, its continuous t (here one of the scheduler's
1000 levels), and its data: every rank reads the same stream there, so that an update sees about 32 distinct
images with 8 noises each. It keeps many checkpoints and has no validation set.
"""

from collections.abc import Iterator

from diva_rs.recipes.clips import published
from diva_rs.recipes.presets import Preset, Values
from diva_rs.recipes.stage import Stage

_SOURCE = '"GenHancer", ICCV 2025, arXiv 2503.19480; github.com/mashijie1028/GenHancer'
_CODE = "official code, Continuous/"
_CONFIG = f"{_CODE}train_configs/*_stage*.yaml"
_FIRST = Stage(train=("projector", "denoiser"), steps=100_000, lr=1e-4)

_SHARED: Values = {
    "condition": (
        "class",
        "paper: the class token alone; a few local tokens make training collapse",
    ),
    "text": ("none", "paper: no text"),
    "projector": ("mlp", f"{_CODE}clip_models/CLIP_bank.py: LayerNorm, Linear, GELU, Linear for each slot"),
    "draws": (1, f"{_CODE}train_*.py: one t and one noise per image"),
    "timesteps": (
        "logit-normal",
        f"{_CODE}train_*.py: t = sigmoid(N(0, 1)); uniform t is reported to give 21.5",
    ),
    "loss": ("mse", f"{_CODE}train_*.py: against noise - latents"),
    "latent": ("sample", f"{_CODE}src/flux/modules/autoencoder.py: the posterior is sampled"),
    "optimizer": ("adamw", f"{_CODE}train_*.py"),
    "betas": ((0.9, 0.999), _CONFIG),
    "weight_decay": (0.01, _CONFIG),
    "grad_clip": (1.0, f"{_CONFIG}: max_grad_norm"),
    "schedule": ("constant", f"{_CONFIG}: its warm-up of 10 steps has no effect there"),
    "steps": (110_000, f"{_CONFIG}: the sum of both stages"),
    "batch": (256, f"{_CONFIG} and accelerate_config.yaml: 16 images x 8 GPUs x 2 accumulated batches"),
    "low_rank": (16, f"{_CONFIG}: r"),
    "low_rank_alpha": (16.0, f"{_CONFIG}: lora_alpha"),
    "low_rank_bias": (True, f'{_CONFIG}: bias "lora_only"'),
}
_STEPS = f"{_CONFIG}: 100,000 steps at 1e-4, then 10,000 at 1e-5"
_PAPER: Values = {
    **_SHARED,
    "stages": (
        (_FIRST, Stage(train=("tower",), steps=10_000, lr=1e-5)),
        f"official README: stage 2 mainly tunes CLIP; {_STEPS}",
    ),
}
_OFFICIAL: Values = {
    **_SHARED,
    "stages": (
        (_FIRST, Stage(train=("projector", "tower", "denoiser"), steps=10_000, lr=1e-5)),
        f'{_STEPS}; variant "all"',
    ),
    "precision": ("bf16", f"{_CONFIG}: mixed_precision"),
}
# q, k, v, out_proj, fc1 and fc2 by the names of timm and of transformers; not the pooling head's attention.
_SIGLIP: Values = {
    "low_rank_targets": (("*attn.*", "*fc1*", "*fc2*"), f"{_CODE}train_SigLIP_stage2_*.py: target_modules"),
}

# Model: MMVP-VLM after it, and what the model needs beside the others.
_MODELS: dict[str, tuple[str, Values]] = {
    "openai-vit-l-14-224": ("31.9", {}),
    "openai-vit-l-14-336": ("29.6", {}),
    "metaclip-vit-l-14-224": ("31.9", {}),
    "metaclip-vit-h-14-224": ("37.0", {}),
    "siglip-so400m-14-224": ("42.2", _SIGLIP),
    "siglip-so400m-14-384": ("40.0", _SIGLIP),
}


def _presets() -> Iterator[tuple[str, Preset]]:
    for key, (average, own) in _MODELS.items():
        own = {"image_size": (int(key[-3:]), f"{_CONFIG}: CLIP's resolution"), **own}
        for method, account, values in (
            ("genhancer", "the method on correct pixels", _PAPER),
            ("genhancer-official", 'as the official code computes it, variant "all"', _OFFICIAL),
        ):
            yield published(
                *(method, key, account, average, "<folder> --teacher-options guidance=4"),
                source=_SOURCE,
                values={**values, **own},
                teacher="a FLUX of random weights with 2 double and 4 single blocks (1.3 billion "
                "parameters), the VAE of FLUX.1 and guidance 4 (see diva_rs.recipes.genhancer)",
                images="CC3M, random crops of 0.9 to 1.0",
                memory="19.7 GiB for stage 1 with one image in bf16 with denoiser_checkpointing, measured on "
                "a CPU with ViT-L/14 at 224",
                slots=("tokens", "pooled"),
            )


PRESETS = dict(_presets())
