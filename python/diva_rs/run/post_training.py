"""post_train: the main job in one call."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import Unpack

from diva_rs._base.settings import hint
from diva_rs.data.batches import check_loader
from diva_rs.distributed import session
from diva_rs.errors import ConfigError, shown
from diva_rs.recipes.fields import RecipeFields
from diva_rs.recipes.recipe import Recipe, as_recipe
from diva_rs.run.callbacks import Callback, as_callback
from diva_rs.run.evaluation import ARGUMENTS, Evaluation
from diva_rs.run.folder import RunFolder
from diva_rs.run.loop import Run
from diva_rs.run.ranks import start
from diva_rs.run.ranks.loaders import check_divided, every_image, steps_of_one_pass
from diva_rs.run.ranks.trainer import RankedTrainer
from diva_rs.run.result import PostTrainResult
from diva_rs.step.terms import Term
from diva_rs.step.trainer import Trainer


class PostTrainFields(RecipeFields, total=False):
    """The recipe's fields, further terms of the loss, and what is measured while training."""

    terms: Mapping[str, tuple[float, Term]] | None
    evaluate: Callable[[Any], Any] | Mapping[str, Callable[[Any], Any]] | None
    eval_every: int | None
    best: str | tuple[str, str] | None
    best_on_test: bool
    guard: Mapping[str, Any] | None


def post_train(
    clip: nn.Module,
    unet: Any,
    loader: Iterable[Any],
    recipe: Recipe | str | None = None,
    *,
    output_dir: str | Path | None = None,
    resume: bool | str = True,
    callbacks: Iterable[Callback | Callable[[int, dict[str, float]], Any]] = (),
    progress: bool = True,
    **fields: Unpack[PostTrainFields],
) -> PostTrainResult:
    """Post-train the vision tower of ``clip`` with the feedback of a frozen diffusion model.

    DIVA (arXiv 2407.20171): the teacher denoises each image under a condition made of CLIP's own
    visual tokens, and the denoising error trains CLIP. Only images are needed.

    Args:
        clip: an open_clip, transformers or OpenAI CLIP or SigLIP. It is changed in place, and is an
            ordinary model of its library afterwards.
        unet: a diffusers model, a pipeline, a diffusers folder, or a `Teacher`; None with
            ``denoising=0`` and ``terms`` that do without a diffusion model.
        loader: any iterable of image batches: a tensor (B, 3, H, W), ``(images, ...)``, or a dict
            with ``images`` or ``pixel_values``, and optionally ``latents`` and ``ids``.
            ``recipe.pixels`` declares the range of the images. On several ranks each one must read
            its own images.
        recipe: a `Recipe`, the name of a preset, or None for the defaults.
        output_dir: folder for the log, the recipe, the checkpoints and the trained weights (see
            `diva_rs.run.folder`); None writes nothing. A checkpoint is written every
            ``recipe.checkpoint_every`` steps; the last ``recipe.keep`` are kept.
        resume: what to do where ``output_dir`` holds a run. True resumes it from its newest intact
            checkpoint, to the same weights as an uninterrupted run, and raises an error where the
            settings or the loader differ; "force" resumes under other settings, and begins the pass
            again where the loader differs; False replaces it. A run that has done all its steps is
            read back.
        callbacks: `Callback` objects, or functions of (step, metrics) that are called at each log.
        progress: whether to show a progress bar.
        fields: recipe fields that override the recipe's, e.g. ``steps=200, lr=1e-5``. Without
            ``steps`` the run is one pass over the loader.
        terms: more terms of the loss, name -> (weight, function of a `diva_rs.step.terms.View`
            that gives a 0-dim loss). Logs and results hold them by name.
        evaluate: name -> function of the model, or one function; it gives a number, a mapping
            of numbers or a result of `diva_rs.evaluation`. Measured before the first and after
            the last step; the scores are in the history. Training is the same to the bit.
        eval_every: measure after every so many steps as well.
        best: the score whose best weights are kept in ``output_dir/best``; ``(score, "min")``
            where lower is better. A score of a test set, such as MMVP-VLM, is refused.
        best_on_test: whether ``best`` may be the score of a test set, which the report then
            says.
        guard: score -> the lowest value allowed, or ``("max", highest)``, or ``("drop",
            points)`` below the score before training. When a bound is broken the run stops,
            ``report["stopped"]`` says why, and the model gets the best weights that kept every
            bound (without ``best`` the latest).

    Returns:
        A `PostTrainResult`. Ctrl-C ends the run cleanly, after the step that it is in. The result so
        far then has ``interrupted`` set, and with an ``output_dir`` the checkpoint is written. SIGTERM,
        as well as SIGHUP, SIGUSR1 and SIGUSR2 where they have no handler, end it in the same way, and
        then the process.

    Raises:
        ConfigError, DataError, ShapeError, DeviceError: what is wrong, where, and what to do. No
            gradient is left then, and with an ``output_dir`` the last checkpoint holds the steps
            done.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> loader = [images[:4] for _ in range(3)]
    >>> result = post_train(clip, teacher, loader, progress=False, log_every=1, lr=1e-3)
    >>> [row["step"] for row in result.history]
    [1, 2, 3]
    """
    given: dict[str, Any] = {**fields}
    terms = given.pop("terms", None)
    evaluation = Evaluation.of(**{name: given.pop(name, None) for name in ARGUMENTS})
    for name in given.keys() - Recipe.model_fields:
        near = hint(name, [*PostTrainFields.__annotations__, *inspect.signature(post_train).parameters])
        raise ConfigError(f"post_train has no argument {name!r}, and a recipe has no such field{near}")
    if not isinstance(resume, bool) and resume != "force":
        raise ConfigError(f'resume={shown(resume)}: give True, False (start again) or "force"')
    recipe = as_recipe(recipe).replace(**given)
    check_loader(loader)
    hooks = [as_callback(callback) for callback in callbacks]
    with session() as ranks, every_image(loader, ranks):
        start.check_same("recipe", recipe.to_dict(), ranks)
        unet = start.place_on_devices(clip, unet, ranks)
        start.share_weights(clip, ranks)
        check_divided(loader, ranks)
        one_pass = recipe.steps is None
        if one_pass:
            recipe = recipe.replace(steps=steps_of_one_pass(loader, recipe.batch, ranks))
        folder = RunFolder(output_dir) if output_dir is not None and ranks.first else None
        with nullcontext() if folder is None else closing(folder):
            trainer = Trainer(clip, unet, recipe, terms)
            if trainer.teacher is not None:
                start.check_same_teacher(trainer.teacher, recipe.prompt, ranks)
            run = Run(RankedTrainer(trainer, ranks), loader, folder, hooks, resume, evaluation, one_pass)
            return run.train(show_progress=progress)
