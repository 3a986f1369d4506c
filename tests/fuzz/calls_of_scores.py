"""Good calls of the evaluation and of the microworld, by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from builders import benchmarks, evaluations, mmvp
from builders.small import images, small_clip
from diva_rs import data, evaluation, microworld
from diva_rs.clip import adapt

Call = tuple[Callable[..., Any], dict[str, Any]]


def calls(scratch: Path) -> dict[str, Call]:
    """Name -> (function, good arguments); what is written goes to ``scratch``."""
    return {**_statistics(), **_models(scratch), **_results(scratch), **_scenes(), **_worlds()}


def _statistics() -> dict[str, Call]:
    outcomes = {"before": [True, False, True], "after": [False, False, True], "confidence": 0.95}
    outcomes |= {"resamples": 100, "seed": 0}
    return {
        "wilson_interval": (evaluation.wilson_interval, {"right": 3, "total": 5, "confidence": 0.9}),
        "mcnemar_exact": (evaluation.mcnemar_exact, {"gained": 3, "lost": 1}),
        "paired_bootstrap": (evaluation.paired_bootstrap, outcomes),
        "compare_outcomes": (evaluation.compare_outcomes, outcomes | {"name": "MMVP-VLM"}),
        "linear_cka": (evaluation.linear_cka, {"first": torch.rand(4, 3), "second": torch.rand(4, 3)}),
    }


def _models(scratch: Path) -> dict[str, Call]:
    clip, pixels = small_clip(), torch.randn(4, 3, 32, 32)
    features = {"images": pixels, "features": "pooled"}
    labelled = [(pixels, torch.tensor([0, 1, 0, 1])), (pixels + 1, torch.tensor([0, 1, 0, 1]))]
    probe = {"clip": clip, "train": labelled, "test": labelled, "features": ["pooled"], "validation": 0.25}
    probe |= {"cs": (1.0,), "seed": 0, "confidence": 0.95}
    pairs = mmvp.mmvp_folder(scratch / "mmvp", pairs=1)
    own = {"clip": clip, "preprocess": data.center_transform(32), "tokenizer": _tokens}
    vlm = {**own, "root": pairs, "embedding": "pooled", "seed": 0}
    photos = {"root": benchmarks.photos_folder(scratch / "classes"), "classes": None, "batch": 2}
    photos |= {"templates": ["a photo of a {}."], "confidence": 0.95}
    suite = {"suite": None, "workers": 0, "batch": 4, "split": "test", "progress": False, "confidence": 0.9}
    shapes = {"root": benchmarks.shapes_folder(scratch / "benchmarks"), "datasets": "wds/shapes"}
    captions = {"root": benchmarks.captions_folder(scratch / "benchmarks"), "datasets": "wds/captions"}
    embedder = evaluation.Embedder(**own)
    kind = evaluation.image_embedding("class")
    return {
        "drift": (evaluation.drift, {"before": clip, "after": small_clip(seed=1), **features}),
        "Drift": (evaluation.Drift, {"clip": clip, **features}),
        "image_features": (evaluation.image_features, {"clip": clip, **features}),
        "image_embedding": (evaluation.image_embedding, {"embedding": "pooled"}),
        "ImageEmbedding": (evaluation.ImageEmbedding, {"name": "own", "about": "mine", "normalized": True}),
        "ImageEmbedding.of_tokens": (
            kind.of_tokens,
            {"tower": adapt(clip), "tokens": torch.rand(2, 17, 32), "ids": [1, 2], "seed": 0},
        ),
        "linear_probe": (evaluation.linear_probe, probe),
        "mmvp_vlm": (evaluation.mmvp_vlm, vlm | {"confidence": 0.95, "progress": False}),
        "Embedder": (evaluation.Embedder, {**own, "embedding": "pooled", "seed": 0}),
        "Embedder.encode_text": (embedder.encode_text, {"tokens": _tokens(["a", "b"])}),
        "Embedder.encode_image": (embedder.encode_image, {"pixels": images(2)}),
        "zero_shot_folder": (evaluation.zero_shot_folder, own | photos),
        "zero_shot": (evaluation.zero_shot, own | suite | shapes),
        "retrieval": (evaluation.retrieval, own | suite | captions | {"recall": (1, 2)}),
    }


def _results(scratch: Path) -> dict[str, Call]:
    found, suite, folder = evaluations.mmvp(range(9)), evaluations.zero_shot(9), evaluations.folder(9)
    kinds = {
        "DatasetScore": suite.scores[0],
        "DriftResult": evaluations.drift(),
        "FolderResult": folder,
        "MmvpPair": found.pairs[0],
        "MmvpVlmResult": found,
        "ProbeScore": evaluations.probes(9)["patches"],
        "SuiteResult": suite,
        "Comparison": evaluation.compare_outcomes([True], [False], "a"),
    }
    return {
        **{name: (type(made), dict(vars(made))) for name, made in kinds.items()},
        "MmvpVlmResult.compare": (found.compare, {"other": evaluations.mmvp(range(5))}),
        "SuiteResult.compare": (suite.compare, {"other": evaluations.zero_shot(5)}),
        "FolderResult.compare": (folder.compare, {"other": evaluations.folder(5)}),
        "MmvpVlmResult.to_json": (found.to_json, {"path": scratch / "mmvp.json"}),
        "FolderResult.to_csv": (folder.to_csv, {"path": scratch / "folder.csv"}),
    }


def _scenes() -> dict[str, Call]:
    shown = microworld.scene(seed=0, index=1)
    return {
        "Scene": (microworld.Scene, dict(vars(shown))),
        "scene": (microworld.scene, {"seed": 0, "index": 1}),
        "changed": (microworld.changed, {"base": shown, "attribute": "colour", "step": 1}),
        "render": (microworld.render, {"scene": shown}),
        "pictures": (microworld.pictures, {"scenes": [shown]}),
        "caption": (microworld.caption, {"scene": shown, "details": ("colour",)}),
        "short_caption": (microworld.short_caption, {"scene": shown, "share": 0.5, "key": (1, 2)}),
        "detailed_caption": (microworld.detailed_caption, {"scene": shown, "key": (1, 2)}),
        "Tokenizer": (microworld.Tokenizer, {"context_length": 26}),
    }


def _worlds() -> dict[str, Call]:
    world, clip = microworld.World("test", 40), microworld.new_clip(0)
    pair = microworld.pairs(world, 1)[0]
    embedded = {"clip": clip, "images": world.images, "items": [0, 1], "batch": 2}
    objects = {"clip": clip, "dataset": world, "attribute": "object", "template": "a photo of a {}"}
    return {
        "World": (microworld.World, {"split": "test", "size": 4, "seed": 0, "start": 0}),
        "Microworld": (microworld.Microworld, {"folder": Path(microworld.__file__).parent / "checkpoints"}),
        "World.images": (world.images, {"numbers": [0, 1]}),
        "World.captions": (world.captions, {"numbers": [0, 1], "share": 0.5, "epoch": 0}),
        "Pair": (microworld.Pair, dict(vars(pair))),
        "pairs": (microworld.pairs, {"world": world, "per_pattern": 1}),
        "new_clip": (microworld.new_clip, {"seed": 0}),
        "image_embeddings": (microworld.image_embeddings, embedded),
        "text_embeddings": (
            microworld.text_embeddings,
            {
                "clip": clip,
                "tokens": microworld.Tokenizer()([microworld.caption(world.scene(0))]),
                "batch": 2,
            },
        ),
        "mini_mmvp": (microworld.mini_mmvp, {"clip": clip, "world": world, "per_pattern": 1}),
        "zero_shot_objects": (microworld.zero_shot_objects, objects),
    }


def _tokens(texts: Any) -> torch.Tensor:
    """(B, 8): whatever the texts say."""
    return torch.ones(len(texts), 8, dtype=torch.int64)
