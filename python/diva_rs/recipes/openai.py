"""DIVA for OpenAI's CLIP ViT-L/14 at 224 and at 336 pixels.

Source: "Diffusion Feedback Helps CLIP See Better", arXiv 2407.20171; its code, github.com/baaivision/DIVA.
Command::

    diva-rs train --recipe diva-openai-vit-l-14-224 --clip ViT-L-14-quickgelu:openai \\
        --teacher <SD-2-1-base folder> --data 'cc3m/{00000..00331}.tar' --output-dir runs/openai-224

For 336: ``--recipe diva-openai-vit-l-14-336 --clip ViT-L-14-336-quickgelu:openai``.

Expected score (MMVP-VLM average, original -> DIVA, by the paper): 224: 19.3 -> 25.9; 336: 20.0 -> 25.2.
Users of the official code report scores at or below the original at 224 (issues 11 and 12 there).
Our measured score: not yet run.
"""

from diva_rs.recipes.official import OFFICIAL
from diva_rs.recipes.paper import PAPER
from diva_rs.recipes.preset import Preset, Values

_OFFICIAL: Values = {
    "condition": ("random", "condition/OpenAICLIP_for_clip_model.py"),
    # With the class token 77, the number of text positions, at 224 and at 336 alike.
    "choose": (76, "condition/OpenAICLIP_for_clip_model.py: 76 local tokens"),
    "replacement": (True, "condition/OpenAICLIP_for_clip_model.py: randint, so with replacement"),
    "text": ("add", "models/SD_with_OpenAICLIP.py: text token i is added to visual token i"),
}

PRESETS = {
    "diva-openai-vit-l-14-224": Preset(
        summary="OpenAI CLIP ViT-L/14 at 224, as the paper describes it",
        expected="19.3 -> 25.9",
        values={
            **PAPER,
            "condition": ("random", "paper: the class token and random local tokens"),
            "density": (0.15, "paper: about 15 % of the local tokens at 224"),
        },
    ),
    "diva-openai-vit-l-14-336": Preset(
        summary="OpenAI CLIP ViT-L/14 at 336, as the paper describes it",
        expected="20.0 -> 25.2",
        values={
            **PAPER,
            "condition": ("random", "paper: the class token and random local tokens"),
            "density": (0.30, "paper: about 30 % of the local tokens at 336"),
        },
    ),
    "diva-official-openai-vit-l-14-224": Preset(
        summary="OpenAI CLIP ViT-L/14 at 224, as the official code computes it",
        expected="19.3 -> 25.9",
        values={**OFFICIAL, **_OFFICIAL},
    ),
    "diva-official-openai-vit-l-14-336": Preset(
        summary="OpenAI CLIP ViT-L/14 at 336, as the official code computes it",
        expected="20.0 -> 25.2",
        values={**OFFICIAL, **_OFFICIAL},
    ),
}
