"""DCR: "Guiding Diffusion-based Reconstruction with Contrastive Signals", arXiv 2603.04803.

A frozen Stable Diffusion predicts the noise of an image under the condition of the image, of an augmented
view of it, and of the other images of the batch. The projector trains first, then the vision tower by
low-rank updates.

``dcr-…`` is the method as the paper has it, on correct pixels: the plain denoising loss in stage 1, the
contrast in stage 2. ``dcr-official-…`` is what the official code computes: the contrast in both stages, and
augmented views of tensors that were normalised for CLIP already, whose colour changes clamp them to [0, 1].

The official code takes the velocity as the target for every checkpoint, and recommends one that
predicts the noise. Here the target is what the teacher's scheduler says: for the code's, give `Teacher` a
scheduler with ``prediction_type="v_prediction"``. Not reproduced are its dropout of 0.1 inside the low-rank
updates, and its data: every rank reads the same stream there.
"""

from collections.abc import Iterator

from diva_rs.recipes.clips import published
from diva_rs.recipes.presets import Preset, Values
from diva_rs.recipes.stage import Stage

_SOURCE = '"DCR", CVPR 2026, arXiv 2603.04803; github.com/boyuh/DCR'
_CODE = "official code, train_*_stage*.py"
_BANK = "official code, clip_models/CLIP_bank.py"
_CONFIG = "official code, train_configs/*_stage*.yaml"

_PROJECTOR = Stage(train=("projector",), steps=100_000, lr=1e-4)

_SHARED: Values = {
    "condition": ("class", f"{_BANK}: the class token after the visual projection"),
    "text": ("broadcast", f"{_BANK}: one vector is added to all 77 tokens of the empty text"),
    "prompt": ("", f"{_BANK}: the empty text"),
    "projector": ("mlp", f"{_BANK}: LayerNorm, Linear, GELU, Linear"),
    "draws": (1, f"{_CODE}: one t and one noise per image"),
    "timesteps": ("uniform", f"{_CODE}: randint over 1000, per image"),
    "denoising": (0.0, "paper and code: in stage 2 the contrast alone"),
    "contrast": (1.0, "paper and code"),
    "contrast_temperature": (0.1, f"{_CODE}: tau = 0.1"),
    "contrast_group": (16, f"{_CONFIG}: negatives are the others of a GPU's 16 images"),
    "latent": ("sample", f"{_CODE}: the posterior is sampled"),
    "optimizer": ("adamw", f"{_CODE}: AdamW"),
    "betas": ((0.9, 0.999), _CONFIG),
    "weight_decay": (0.01, _CONFIG),
    "grad_clip": (1.0, f"{_CONFIG}: max_grad_norm"),
    "schedule": ("constant", f"{_CONFIG}: its warm-up of 10 steps has no effect there"),
    "batch": (256, f"{_CONFIG} and accelerate_config.yaml: 16 images x 8 GPUs x 2 accumulated batches"),
    "low_rank": (16, f"{_CONFIG}: r"),
    "low_rank_alpha": (16.0, f"{_CONFIG}: lora_alpha"),
    "low_rank_bias": (True, f'{_CONFIG}: bias "lora_only"'),
}
_OFFICIAL: Values = {
    "contrast_view": ("official", f"{_BANK}: the augmentation is applied to normalised tensors"),
    "precision": ("bf16", f"{_CONFIG}: mixed_precision"),
}
# q, k, v, out_proj, fc1 and fc2 by the names of timm and of transformers; not the pooling head's attention.
_SIGLIP: Values = {
    "low_rank_targets": (("*attn.*", "*fc1*", "*fc2*"), "official code, train_SigLIP_stage2.py"),
}


def _stages(first: Stage, steps: int, source: str) -> Values:
    return {
        "stages": (
            (first, Stage(train=("tower",), steps=steps, lr=1e-5)),
            f"{_CONFIG}: 100,000 steps at 1e-4, then {steps:,} at 1e-5; {source}",
        ),
        "steps": (100_000 + steps, f"{_CONFIG}: the sum of both stages"),
    }


# Model: MMVP-VLM after it, what the model needs beside the others, the official code's steps in stage 2.
_MODELS: dict[str, tuple[str, Values, int]] = {
    "openai-vit-l-14-224": ("33.3", {}, 4600),
    "openai-vit-l-14-336": ("31.1", {}, 4600),
    "metaclip-vit-h-14-224": ("37.8", {}, 100_000),
    "siglip-so400m-14-224": ("43.0", _SIGLIP, 4600),
}


def _presets() -> Iterator[tuple[str, Preset]]:
    for key, (average, own, steps) in _MODELS.items():
        own = {"image_size": (int(key[-3:]), f"{_CONFIG}: CLIP's resolution"), **own}
        plain = _PROJECTOR.model_copy(update={"denoising": 1.0, "contrast": 0.0})
        paper = _stages(plain, 4600, "paper: stage 1 with the plain denoising loss")
        official = {**_stages(_PROJECTOR, steps, "the contrast in both"), **_OFFICIAL}
        for method, account, values in (
            ("dcr", "the method on correct pixels", paper),
            ("dcr-official", "as the official code computes it, but for its target", official),
        ):
            yield published(
                *(method, key, account, average, "<SD-2-1 folder>"),
                source=_SOURCE,
                values={**_SHARED, **values, **own},
                teacher="Stable Diffusion 2.1, or another model with cross-attention",
                images="CC3M, random crops of 0.9 to 1.0",
                memory="6.7 GiB for two images in stage 2 in bf16 with denoiser_checkpointing, measured on a "
                "CPU with ViT-L/14 at 224",
                slots=("tokens",),
            )


PRESETS = dict(_presets())
