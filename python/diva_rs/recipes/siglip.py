"""DIVA for SigLIP SO400M/14 at 224 and at 384 pixels.

Source: "Diffusion Feedback Helps CLIP See Better", arXiv 2407.20171; its code, github.com/baaivision/DIVA.
Command::

    diva-rs train --recipe diva-siglip-so400m-14-224 --clip ViT-SO400M-14-SigLIP:webli \\
        --teacher <SD-2-1-base folder> --data 'cc3m/{00000..00331}.tar' --output-dir runs/siglip-224

For 384: ``--recipe diva-siglip-so400m-14-384 --clip ViT-SO400M-14-SigLIP-384:webli``.

Expected score (MMVP-VLM average, original -> DIVA, by the paper): 224: 37.8 -> 40.7; 384: 37.0 -> 38.5.
Our measured score: not yet run.
"""

from diva_rs.recipes.official import OFFICIAL
from diva_rs.recipes.paper import PAPER
from diva_rs.recipes.preset import Preset, Values

_224: Values = {
    "condition": ("window", "condition/SigLIP_for_timm_*.py: the pooled token and window means"),
    "window": (6, "condition/SigLIP_for_timm_*.py: 42 windows of 6 of the 256 local tokens"),
}
_384: Values = {
    "condition": ("window", "condition/SigLIP_for_timm_*.py: the pooled token and window means"),
    "window": (10, "condition/SigLIP_for_timm_*.py: 72 windows of 10 of the 729 local tokens"),
}
_MEAN: Values = {"text": ("mean", "models/SD_with_SigLIP.py: the mean of the text tokens is added to each")}

PRESETS = {
    "diva-siglip-so400m-14-224": Preset(
        summary="SigLIP SO400M/14 at 224, as the paper describes it",
        expected="37.8 -> 40.7",
        values={**PAPER, **_224},
    ),
    "diva-siglip-so400m-14-384": Preset(
        summary="SigLIP SO400M/14 at 384, as the paper describes it",
        expected="37.0 -> 38.5",
        values={**PAPER, **_384},
    ),
    "diva-official-siglip-so400m-14-224": Preset(
        summary="SigLIP SO400M/14 at 224, as the official code computes it",
        expected="37.8 -> 40.7",
        values={**OFFICIAL, **_MEAN, **_224},
    ),
    "diva-official-siglip-so400m-14-384": Preset(
        summary="SigLIP SO400M/14 at 384, as the official code computes it",
        expected="37.0 -> 38.5",
        values={**OFFICIAL, **_MEAN, **_384},
    ),
}
