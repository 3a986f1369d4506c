"""DIVA for Apple's DFN CLIP ViT-H/14 at 224 and at 378 pixels.

Source: "Diffusion Feedback Helps CLIP See Better", arXiv 2407.20171; its code, github.com/baaivision/DIVA.
Command::

    diva-rs train --recipe diva-dfn-vit-h-14-224 --clip ViT-H-14-quickgelu:dfn5b \\
        --teacher <SD-2-1-base folder> --data 'cc3m/{00000..00331}.tar' --output-dir runs/dfn-224

For 378: ``--recipe diva-dfn-vit-h-14-378 --clip ViT-H-14-378-quickgelu:dfn5b``.

Expected score (MMVP-VLM average, original -> DIVA, by the paper): 224: 39.3 -> 43.7; 378: 34.8 -> 37.8.
Our measured score: not yet run.
"""

from diva_rs.recipes.official import OFFICIAL
from diva_rs.recipes.paper import PAPER
from diva_rs.recipes.preset import Preset, Values

_MEAN: Values = {"text": ("mean", "models/SD_with_DFN.py: the mean of the text tokens is added to each")}

PRESETS = {
    "diva-dfn-vit-h-14-224": Preset(
        summary="DFN CLIP ViT-H/14 at 224, as the paper describes it",
        expected="39.3 -> 43.7",
        values={**PAPER, "condition": ("all", "paper, official code: the class token and all local tokens")},
    ),
    "diva-dfn-vit-h-14-378": Preset(
        summary="DFN CLIP ViT-H/14 at 378, as the paper describes it",
        expected="34.8 -> 37.8",
        values={
            **PAPER,
            "condition": ("random", "official code, condition/DFN_for_openclip_transformer.py"),
            "choose": (364, "official code: half of the 729 local tokens"),
        },
    ),
    "diva-official-dfn-vit-h-14-224": Preset(
        summary="DFN CLIP ViT-H/14 at 224, as the official code computes it",
        expected="39.3 -> 43.7",
        values={
            **OFFICIAL,
            **_MEAN,
            "condition": ("all", "condition/DFN_for_openclip_transformer.py: all 256 local tokens"),
        },
    ),
    "diva-official-dfn-vit-h-14-378": Preset(
        summary="DFN CLIP ViT-H/14 at 378, as the official code computes it",
        expected="34.8 -> 37.8",
        values={
            **OFFICIAL,
            **_MEAN,
            "condition": ("random", "condition/DFN_for_openclip_transformer.py"),
            "choose": (364, "condition/DFN_for_openclip_transformer.py: int(0.5 x 729)"),
            "replacement": (True, "condition/DFN_for_openclip_transformer.py: randint, so with replacement"),
        },
    ),
}
