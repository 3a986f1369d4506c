"""DIVA for MetaCLIP ViT-L/14 and ViT-H/14 at 224 pixels.

Source: "Diffusion Feedback Helps CLIP See Better", arXiv 2407.20171; its code, github.com/baaivision/DIVA.
Command::

    diva-rs train --recipe diva-metaclip-vit-l-14-224 --clip ViT-L-14-quickgelu:metaclip_fullcc \\
        --teacher <SD-2-1-base folder> --data 'cc3m/{00000..00331}.tar' --output-dir runs/metaclip-l

For ViT-H/14: ``--recipe diva-metaclip-vit-h-14-224 --clip ViT-H-14-quickgelu:metaclip_fullcc``.

Expected score (MMVP-VLM average, original -> DIVA, by the paper): L: 23.7 -> 27.4; H: 25.2 -> 31.9.
Our measured score: not yet run.
"""

from diva_rs.recipes.official import OFFICIAL
from diva_rs.recipes.paper import PAPER
from diva_rs.recipes.preset import Preset, Values

_PAPER: Values = {"condition": ("all", "paper and official code: the class token and all local tokens")}
_OFFICIAL: Values = {
    "condition": ("all", "condition/MetaCLIP_for_openclip_transformer.py: all 256 local tokens"),
    "text": ("mean", "models/SD_with_MetaCLIP.py: the mean of the text tokens is added to each"),
}

PRESETS = {
    "diva-metaclip-vit-l-14-224": Preset(
        summary="MetaCLIP ViT-L/14 at 224, as the paper describes it",
        expected="23.7 -> 27.4",
        values={**PAPER, **_PAPER},
    ),
    "diva-metaclip-vit-h-14-224": Preset(
        summary="MetaCLIP ViT-H/14 at 224, as the paper describes it",
        expected="25.2 -> 31.9",
        values={**PAPER, **_PAPER},
    ),
    "diva-official-metaclip-vit-l-14-224": Preset(
        summary="MetaCLIP ViT-L/14 at 224, as the official code computes it",
        expected="23.7 -> 27.4",
        values={**OFFICIAL, **_OFFICIAL},
    ),
    "diva-official-metaclip-vit-h-14-224": Preset(
        summary="MetaCLIP ViT-H/14 at 224, as the official code computes it",
        expected="25.2 -> 31.9",
        values={**OFFICIAL, **_OFFICIAL},
    ),
}
