"""The CLIPs that the methods' papers train, by the part of a preset's name that stands for them."""

from typing import Any, NamedTuple

from diva_rs.recipes.presets import Preset


class Clip(NamedTuple):
    """A published CLIP, its name in open_clip, and its MMVP-VLM average in percent, as DIVA's paper and later
    ones report it.
    """

    title: str
    name: str
    average: str


CLIPS = {
    "openai-vit-l-14-224": Clip("OpenAI CLIP ViT-L/14", "ViT-L-14-quickgelu:openai", "19.3"),
    "openai-vit-l-14-336": Clip("OpenAI CLIP ViT-L/14", "ViT-L-14-336-quickgelu:openai", "20.0"),
    "openclip-vit-h-14-224": Clip("OpenCLIP ViT-H/14", "ViT-H-14:laion2b_s32b_b79k", "28.9"),
    "metaclip-vit-l-14-224": Clip("MetaCLIP ViT-L/14", "ViT-L-14-quickgelu:metaclip_fullcc", "23.7"),
    "metaclip-vit-h-14-224": Clip("MetaCLIP ViT-H/14", "ViT-H-14-quickgelu:metaclip_fullcc", "25.2"),
    "dfn-vit-h-14-224": Clip("DFN CLIP ViT-H/14", "ViT-H-14-quickgelu:dfn5b", "39.3"),
    "dfn-vit-h-14-378": Clip("DFN CLIP ViT-H/14", "ViT-H-14-378-quickgelu:dfn5b", "34.8"),
    "siglip-so400m-14-224": Clip("SigLIP SO400M/14", "ViT-SO400M-14-SigLIP:webli", "37.8"),
    "siglip-so400m-14-384": Clip("SigLIP SO400M/14", "ViT-SO400M-14-SigLIP-384:webli", "37.0"),
}


def published(
    method: str, key: str, account: str, average: str, teacher_option: str, **about: Any
) -> tuple[str, Preset]:
    """The preset of a method for one of `CLIPS`, by its name.

    ``average`` is the score after it, ``teacher_option`` what stands behind ``--teacher``; ``about`` are
    further fields of `Preset`.
    """
    clip, name = CLIPS[key], f"{method}-{key}"
    command = (
        f"diva-rs train --recipe {name} --clip {clip.name} --teacher {teacher_option} "
        f"--data 'cc3m/{{00000..00331}}.tar' --output-dir runs/{name}"
    )
    summary, expected = f"{clip.title} at {key[-3:]}, {account}", f"{clip.average} -> {average}"
    return name, Preset(summary, command=command, expected=expected, **about)
