"""un2CLIP: "Improving CLIP's Visual Detail Capturing Ability via Inverting unCLIP", arXiv 2505.24517.

The generator is Stable unCLIP, which was trained to make an image from its CLIP embedding. It is frozen, the
embedding enters as it is, without a projector, and the whole vision encoder trains.

The values are those that third parties report of the paper. Its authors announced their code for
github.com/LiYinqi/un2CLIP; no copy of it could be had, so there is no ``-official-`` account. Not known are
the noise level of the embedding (0 here, otherwise the argument ``noise_level`` of `diva_rs.Teacher`), its
dropout (none here), gradient clipping, weight decay and the schedule of the learning rate: they are at
diva_rs's defaults. One report has the noise as the target. The published generators predict the velocity,
so the target is what the generator's scheduler says.
"""

from collections.abc import Iterator

from diva_rs.recipes.clips import published
from diva_rs.recipes.presets import Preset, Values
from diva_rs.recipes.stage import Stage

_SOURCE = '"un2CLIP", NeurIPS 2025, arXiv 2505.24517, as third parties report it; its code was not read'

_VALUES: Values = {
    "condition": ("class", "paper: the image embedding alone, after the visual projection"),
    "text": ("none", "Stable unCLIP: the cross-attention reads the empty text"),
    "prompt": ("", "paper: the empty text"),
    "projector": (
        "identity",
        "paper: no projector; a random one gives 16.3, one that starts as identity 30.4",
    ),
    "stages": ((Stage(train=("tower",)),), "paper: one stage; with a trained generator 27.4, with two 30.4"),
    "draws": (1, "inferred: the generator's own loss has one timestep and one noise per image"),
    "timesteps": ("uniform", "inferred: the generator's own loss"),
    "loss": ("mse", "inferred: the generator's own loss"),
    "optimizer": ("adamw", "paper: AdamW"),
    "lr": (3e-7, "paper: 3e-7"),
    "steps": (None, "paper: one epoch of CC3M"),
    "batch": (32, "paper: 32 images"),
    "image_size": (768, "paper: latents 96 x 96"),
}

# Model: MMVP-VLM after it, and the generator.
_L14 = "ViT-L/14 (embeddings 768 wide)"
_MODELS = {
    "openai-vit-l-14-224": ("32.6", _L14),
    "openai-vit-l-14-336": ("30.4", _L14),
    "openclip-vit-h-14-224": ("36.3", "ViT-H/14 (1024 wide)"),
    "siglip-so400m-14-384": ("41.5", "SigLIP (1152 wide), of which no published weights are known here"),
}


def _presets() -> Iterator[tuple[str, Preset]]:
    account = "as the paper is reported; the rest is at the defaults"
    for key, (average, generator) in _MODELS.items():
        yield published(
            *("un2clip", key, account, average, "<Stable unCLIP folder>"),
            source=_SOURCE,
            values=_VALUES,
            teacher=f"Stable unCLIP for {generator}, its whole pipeline",
            images="CC3M",
            memory="7.5 GiB for one image in bf16 with denoiser_checkpointing, measured on a CPU with "
            "ViT-L/14",
            slots=("pooled",),
        )


PRESETS = dict(_presets())
