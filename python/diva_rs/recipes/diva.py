"""DIVA: "Diffusion Feedback Helps CLIP See Better", arXiv 2407.20171; github.com/baaivision/DIVA.

``diva-…`` is the method as the paper has it, on correct pixels: 8 A100-80G, about 66 GPU-hours, on the
images of CC3M, with SD-2-1-base as the teacher. What the paper does not say stays at diva_rs's
defaults: the model's own mean and std, VAE pixels in [-1, 1], equal draw weights, fp32.

``diva-official-…`` is what the official code computes. Its quirks are part of it, for people who
compare: draw 1 weighs five times draw 2 (only the last draw's loss passes through the trainer, which
divides by the 5 accumulated batches); every family's pixels are normalised with OpenAI's mean and std;
the VAE's input is un-normalised with ImageNet's instead, which costs contrast. Two of its properties
are not reproduced: all ranks share one seed there, so that noise, timesteps and token choices repeat
on each of the 8 GPUs; and the very numbers that its generator drew. Users of the official code report
scores at or below the original for OpenAI's model at 224 (issues 11 and 12 there).
"""

from collections.abc import Iterator
from typing import NamedTuple

from diva_rs.recipes.clips import published
from diva_rs.recipes.presets import Preset, Values

_SOURCE = '"Diffusion Feedback Helps CLIP See Better", arXiv 2407.20171; github.com/baaivision/DIVA'

_PAPER: Values = {
    "prompt": ("", "paper: the empty text's embedding joins the visual tokens"),
    # The paper does not say how the text joins; its code takes the mean wherever there are not 77 tokens.
    "text": ("mean", "official code, models/SD_with_{MetaCLIP,DFN,SigLIP}.py"),
    "replacement": (False, "paper: a random part of the local tokens"),
    "projector": ("linear", "official code, models/SD_with_*.py: one Linear"),
    "draws": (2, "paper: N = 2 random diffusion states per image"),
    "timesteps": ("uniform", "paper: t drawn uniformly"),
    "loss": ("mse", "paper: error of the predicted noise"),
    "optimizer": ("sgd", "paper: SGD"),
    "lr": (1e-4, "paper: 1e-4"),
    "momentum": (0.9, "paper: 0.9"),
    "grad_clip": (1.0, "official code: default of transformers' TrainingArguments"),
    "schedule": ("cosine", "paper: cosine"),
    "steps": (4600, "paper: 4,600 steps"),
    "batch": (640, "paper: 640 images"),
}

_OFFICIAL: Values = {
    "prompt": ("a photo of a .", "models/utils.py: the template around an empty class name, padded to 77"),
    "projector": ("linear", "models/SD_with_*.py: visual_proj"),
    "draws": (2, "DIVA_for_*.sh: --train_steps 2"),
    "draw_weights": ((5.0, 1.0), "models/SD_with_*.py: draw 1 calls backward() itself, undivided by 5"),
    "timesteps": ("uniform", "models/utils.py: randint over 1000, per sample"),
    "loss": ("mse", "config.py: loss = 'mse', on the noise"),
    "optimizer": ("sgd", "run_DIVA_with_*.py"),
    "lr": (1e-4, "DIVA_for_*.sh: --learning_rate 1e-4"),
    "momentum": (0.9, "config.py: optimizer_momentum"),
    "weight_decay": (0.0, "DIVA_for_*.sh: --weight_decay 0"),
    "grad_clip": (1.0, "default of transformers' TrainingArguments"),
    "schedule": ("cosine", "DIVA_for_*.sh: --lr_scheduler_type cosine"),
    "warmup": (23, "DIVA_for_*.sh: --warmup_ratio 0.005 of 4,600 steps"),
    "steps": (4600, "DIVA_for_*.sh: num_steps=4600"),
    "batch": (640, "DIVA_for_*.sh: 8 GPUs x 16 images x 5 accumulated batches"),
    "precision": ("bf16", "DIVA_for_*.sh: --bf16, autocast over float32 weights"),
    "vae_pixels": ("official", "config.py: un-normalised with ImageNet's mean and std"),
    "clip_mean": ((0.48145466, 0.4578275, 0.40821073), "data/constants.py: OpenAI's, for every family"),
    "clip_std": ((0.26862954, 0.26130258, 0.27577711), "data/constants.py: OpenAI's, for every family"),
    "resize": ("bilinear", "models/SD_with_*.py: transforms.Resize of the 512-pixel tensor"),
    "antialias": (False, "requirements.txt: the default of torchvision 0.15.1 for a tensor"),
    "image_size": (512, "DIVA_for_*.sh: --image_size 512"),
    "latent": ("mean", "models/SD_with_*.py: latent_dist.mean"),
    "seed": (42, "DIVA_for_*.sh: --seed 42"),
}


def _density(percent: int, size: int) -> Values:
    return {
        "condition": ("random", "paper: the class token and random local tokens"),
        "density": (percent / 100, f"paper: about {percent} % of the local tokens at {size}"),
    }


def _random(count: int, file: str, reason: str) -> Values:
    return {
        "condition": ("random", file),
        "choose": (count, f"{file}: {reason}"),
        "replacement": (True, f"{file}: randint, so with replacement"),
    }


def _mean_text(name: str) -> Values:
    return {"text": ("mean", f"models/SD_with_{name}.py: the mean of the text tokens is added to each")}


def _window(width: int, windows: int, patches: int) -> tuple[Values, Values]:
    """SigLIP's condition by both accounts."""
    file = "condition/SigLIP_for_timm_*.py"
    values = {
        "condition": ("window", f"{file}: the pooled token and window means"),
        "window": (width, f"{file}: {windows} windows of {width} of the {patches} local tokens"),
    }
    return values, {**values, **_mean_text("SigLIP")}


_DFN_FILE = "condition/DFN_for_openclip_transformer.py"
_OPENAI: Values = {
    # With the class token 77, the number of text positions, at 224 and at 336 alike.
    **_random(76, "condition/OpenAICLIP_for_clip_model.py", "76 local tokens"),
    "text": ("add", "models/SD_with_OpenAICLIP.py: text token i is added to visual token i"),
}
_METACLIP: Values = {
    "condition": ("all", "condition/MetaCLIP_for_openclip_transformer.py: all 256 local tokens"),
    **_mean_text("MetaCLIP"),
}
_DFN_224: Values = {"condition": ("all", f"{_DFN_FILE}: all 256 local tokens"), **_mean_text("DFN")}
_DFN_378: Values = {**_random(364, _DFN_FILE, "int(0.5 x 729)"), **_mean_text("DFN")}
_ALL: Values = {"condition": ("all", "paper and official code: the class token and all local tokens")}
_HALF: Values = {
    "condition": ("random", f"official code, {_DFN_FILE}"),
    "choose": (364, "official code: half of the 729 local tokens"),
}


_STEP = "11.3 GiB for a step of one image in bf16 on a CPU"  # benches/results/published-sizes.md


class _Model(NamedTuple):
    """MMVP-VLM after DIVA, the condition by both accounts, and what a step needs."""

    average: str
    paper: Values
    official: Values
    memory: str = "not measured"


_MODELS = {
    "openai-vit-l-14-224": _Model("25.9", _density(15, 224), _OPENAI, _STEP),
    "openai-vit-l-14-336": _Model("25.2", _density(30, 336), _OPENAI),
    "metaclip-vit-l-14-224": _Model("27.4", _ALL, _METACLIP),
    "metaclip-vit-h-14-224": _Model("31.9", _ALL, _METACLIP),
    "dfn-vit-h-14-224": _Model("43.7", _ALL, _DFN_224),
    "dfn-vit-h-14-378": _Model("37.8", _HALF, _DFN_378),
    "siglip-so400m-14-224": _Model("40.7", *_window(6, 42, 256)),
    "siglip-so400m-14-384": _Model("38.5", *_window(10, 72, 729)),
}


def _presets() -> Iterator[tuple[str, Preset]]:
    for key, model in _MODELS.items():
        for method, account, values in (
            ("diva", "as the paper describes it", {**_PAPER, **model.paper}),
            ("diva-official", "as the official code computes it", {**_OFFICIAL, **model.official}),
        ):
            yield published(
                *(method, key, account, model.average, "<SD-2-1-base folder>"),
                source=_SOURCE,
                values=values,
                teacher="Stable Diffusion 2.1 base: a UNet with cross-attention, VAE and text encoder",
                images="CC3M",
                memory=model.memory,
            )


PRESETS = dict(_presets())
