"""The microworld: a procedural world in which a tiny CLIP can be as blind to detail as the real one.

Scenes of ten attributes (`Scene`, `scene`), their pictures (`render`), short and detailed captions
(`caption`), the words of these (`vocabulary`), a word tokenizer (`Tokenizer`), splits that share no scene
(`World`), pairs that differ in one attribute, scored as MMVP-VLM is (`mini_mmvp`), zero-shot classification
of objects (`zero_shot_objects`), the checkpoints of the tiny models (`Microworld`), and what the examples of
the documentation run with (`example`, `write_models`, `write_photos`, `write_mmvp`).
"""

from diva_rs.microworld.captions import (
    DETAILS,
    Tokenizer,
    caption,
    detailed_caption,
    short_caption,
    vocabulary,
)
from diva_rs.microworld.dataset import SPLITS, World, pictures
from diva_rs.microworld.examples import example, write_mmvp, write_models, write_photos
from diva_rs.microworld.models import image_embeddings, new_clip, text_embeddings
from diva_rs.microworld.pretrained import Microworld
from diva_rs.microworld.rendering import SIDE, render
from diva_rs.microworld.scenes import PATTERNS, VALUES, Scene, changed, scene
from diva_rs.microworld.scores import Pair, mini_mmvp, pairs, score_pairs, zero_shot_objects

__all__ = [
    "DETAILS",
    "PATTERNS",
    "SIDE",
    "SPLITS",
    "VALUES",
    "Microworld",
    "Pair",
    "Scene",
    "Tokenizer",
    "World",
    "caption",
    "changed",
    "detailed_caption",
    "example",
    "image_embeddings",
    "mini_mmvp",
    "new_clip",
    "pairs",
    "pictures",
    "render",
    "scene",
    "score_pairs",
    "short_caption",
    "text_embeddings",
    "vocabulary",
    "write_mmvp",
    "write_models",
    "write_photos",
    "zero_shot_objects",
]
