"""Good calls of draws, recipes, the teacher, the student and the step, by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import diva_rs
from builders.small import images, scheduler, small_clip, small_teacher, small_unet, small_vae
from diva_rs import Draws, Recipe, Trainer, callbacks, clip, distributed
from diva_rs.step.draws import augment_seed, sample_keys

Call = tuple[Callable[..., Any], dict[str, Any]]


def calls(scratch: Path) -> dict[str, Call]:
    """Name -> (function, good arguments); ``Class.method`` for what an object can do."""
    return {**_draws(), **_recipes(), **_models(), **_steps(scratch), **_ranks(scratch)}


def _draws() -> dict[str, Call]:
    plan = {"seed": 0, "draws": 2, "latent_shape": (4, 8, 8), "patches": 16, "choose": 3}
    more = {"density": None, "timesteps": "uniform", "timestep_range": (0, 1000), "logit_mean": 0.0}
    made = diva_rs.draw(seed=0, ids=[1, 2], draws=2, latent_shape=(4,), patches=16, choose=3)
    fields = {"timesteps": made.timesteps, "noise": made.noise, "tokens": made.tokens}
    return {
        "draw": (diva_rs.draw, plan | {"replacement": False, "ids": [1, "b"], "epoch": 0}),
        "DrawPlan": (diva_rs.DrawPlan, plan | more | {"replacement": False, "logit_std": 1.0}),
        "DrawPlan.draw": (diva_rs.DrawPlan(0, 1, (4,)).draw, {"ids": [1, 2], "epoch": 0}),
        "Draws": (Draws, fields),
        "Draws.rows": (made.__getitem__, {"rows": slice(1)}),
        "Draws.tensors": (made.tensors, {"like": torch.zeros(1)}),
        "augment_seed": (augment_seed, {"seed": 0, "sample": "a", "epoch": 1}),
        "sample_keys": (sample_keys, {"ids": [1, "a"]}),
    }


def _recipes() -> dict[str, Call]:
    own = Recipe(draws=2, draw_weights=(0.5, 0.5), timestep_range=(0, 900), betas=(0.9, 0.99), grad_clip=1.0)
    fields = {name: value for name, value in own.to_dict().items() if name != "name"}
    return {
        "Recipe": (Recipe, fields),
        "Recipe.named": (Recipe.named, {"name": "diva-openai-vit-l-14-224"}),
        "Recipe.replace": (Recipe().replace, fields),
        "Recipe.from_dict": (Recipe.from_dict, {"values": fields}),
        "Recipe.chosen": (Recipe().chosen, {"patches": 16}),
        "Recipe.differences": (Recipe().differences, {"other": Recipe(draws=3)}),
    }


def _models() -> dict[str, Call]:
    teacher, tower = small_teacher(), clip.adapt(small_clip())
    parts = {"unet": small_unet(), "vae": small_vae(), "scheduler": scheduler(), "device": "cpu"}
    parts |= {"text_condition": torch.zeros(1, 5, 24), "added_cond_kwargs": None, "label": "replace"}
    noisy = {"noisy": torch.randn(2, 4, 8, 8), "timesteps": torch.tensor([1, 2])}
    encoded = {"images": torch.zeros(2, 3, 16, 16), "seeds": [1, 2], "noise": None, "micro_batch": 1}
    named = {"clip": small_clip(), "model_name": "ViT-B-32", "pretrained": "openai"}
    return {
        "Teacher": (diva_rs.Teacher, parts),
        "Teacher.of": (diva_rs.Teacher.of, {"source": small_unet()}),
        "Teacher.to_precision": (teacher.to_precision, {"precision": "fp32"}),
        "Teacher.on": (teacher.on, {"device": torch.device("cpu")}),
        "Teacher.denoise": (teacher.denoise, noisy | {"condition": torch.randn(2, 5, 24)}),
        "Teacher.encode": (teacher.encode, encoded),
        "Teacher.text": (teacher.text, {"prompt": ""}),
        "adapt": (clip.adapt, {"clip": small_clip(), "training": True}),
        "check_quick_gelu": (clip.check_quick_gelu, named),
        "unwrap": (clip.unwrap, {"model": nn.DataParallel(small_clip())}),
        "Tower.tokens": (tower.tokens, {"pixels": images(2)}),
        "Tower.embed": (tower.embed, {"tokens": torch.rand(2, 17, 32)}),
    }


def _steps(scratch: Path) -> dict[str, Call]:
    teacher = small_teacher()
    trainer = Trainer(small_clip(), teacher, Recipe(draws=1, choose=3))
    feedback = diva_rs.FeedbackLoss(small_clip(), teacher, Recipe(draws=1, choose=3))
    batch = {"images": images(2), "ids": [1, 2]}
    draws = diva_rs.draw(seed=0, ids=[1, 2], draws=1, latent_shape=(4, 8, 8), patches=16, choose=3)
    run = {"clip": small_clip(), "unet": teacher, "loader": [batch], "recipe": None, "callbacks": [_nothing]}
    weights = {"before": small_clip(), "after": small_clip(seed=1)}
    swept = weights | {"metrics": _metric, "clip": small_clip(), "alphas": (0.0, 1.0)}
    history = [{"step": 1.0, "loss": 0.5}]
    result = {"history": history, "report": {}, "projector": nn.Linear(2, 2), "recipe": Recipe()}
    made = diva_rs.PostTrainResult(**result, clip=small_clip())
    sweep = diva_rs.InterpolationSweep(({"alpha": 0.0, "loss": 1.0}, {"alpha": 1.0, "loss": 2.0}))

    def accumulate(**arguments: Any) -> Any:
        trainer.discard()
        return trainer.accumulate(**arguments)

    def post_train(**arguments: Any) -> Any:
        return diva_rs.post_train(**arguments, progress=False)

    return {
        "Trainer": (Trainer, {"clip": small_clip(), "unet": teacher, "recipe": Recipe()}),
        "Trainer.accumulate": (accumulate, {"images": batch, "ids": None, "draws": draws}),
        "Trainer.step": (trainer.step, {"images": images(2), "ids": [3, "b"]}),
        "Trainer.set_epoch": (trainer.set_epoch, {"epoch": 1}),
        "Trainer.load_state_dict": (trainer.load_state_dict, {"state": trainer.state_dict()}),
        "FeedbackLoss": (diva_rs.FeedbackLoss, {"clip": small_clip(), "unet": teacher, "recipe": None}),
        "FeedbackLoss.forward": (feedback, {"images": batch}),
        "FeedbackLoss.set_epoch": (feedback.set_epoch, {"epoch": 1}),
        "post_train": (post_train, run | {"lr": 0.0, "steps": 1, "output_dir": None, "resume": True}),
        "PostTrainResult": (diva_rs.PostTrainResult, result | {"clip": small_clip()}),
        "PostTrainResult.save": (made.save, {"path": scratch / "result"}),
        "interpolate": (diva_rs.interpolate, weights | {"alpha": 0.5, "into": None}),
        "interpolation_sweep": (diva_rs.interpolation_sweep, swept),
        "InterpolationSweep": (diva_rs.InterpolationSweep, {"rows": sweep.rows}),
        "InterpolationSweep.best": (sweep.best, {"metric": "loss"}),
        "InterpolationSweep.to_csv": (sweep.to_csv, {"path": scratch / "sweep.csv"}),
    }


def _ranks(scratch: Path) -> dict[str, Call]:
    lines = callbacks.JsonLines(scratch / "metrics.jsonl")
    logged = {"step": 1, "metrics": {"loss": 0.5}}
    return {
        "Callback": (callbacks.Callback().on_log, logged),
        "JsonLines": (callbacks.JsonLines, {"path": scratch / "other.jsonl"}),
        "JsonLines.on_log": (lines.on_log, logged),
        "TensorBoard": (callbacks.TensorBoard, {"log_dir": scratch / "board"}),
        "as_callback": (callbacks.as_callback, {"callback": _nothing}),
    }


def _nothing(*arguments: Any) -> None:
    pass


def _metric(model: Any) -> float:
    return 0.5
