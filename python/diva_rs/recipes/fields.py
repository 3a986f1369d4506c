"""The fields of a recipe: what each one means, takes and is by default. `Recipe` adds what they can do."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from diva_rs._base.settings import Kind, choice, flag, integer, number, optional, several, string


def _is(kind: Kind, default: Any, text: str, operational: bool = False) -> Any:
    """``operational``: no weight depends on it, so that it may change from one start of a run to the next."""
    metadata = {"kind": kind, "help": text, "operational": operational}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The fields alone, unchecked."""

    name: str = _is(string(least=1), "custom", "what to call it; presets carry their own name")

    # The condition: which visual tokens, and how the text joins them.
    condition: str = _is(
        choice("class", "random", "window", "all", "text"),
        "random",
        "visual tokens of the condition: the class token alone, with random patches, with window means, "
        "with all patches, or none (text alone, the control)",
    )
    choose: int | None = _is(optional(integer(0)), None, "number of random patches")
    density: float | None = _is(optional(number(least=0, most=1)), None, "random patches as a share of all")
    replacement: bool = _is(flag(), False, "whether a patch may be drawn twice")
    bernoulli: bool = _is(flag(), False, "whether each patch is kept by a coin of probability density")
    window: int | None = _is(optional(integer(1)), None, "width of the average-pooling windows, in patches")
    text: str = _is(
        choice("add", "mean", "concat", "none"),
        "mean",
        "how the text joins: text token i added to visual token i, the text's mean added to each, appended, "
        "or not at all",
    )
    prompt: str = _is(string(), "", "the teacher's prompt")
    projector: str = _is(choice("linear", "mlp"), "linear", "the map from CLIP's embedding to the condition")
    projector_warmup: int = _is(integer(0), 0, "first steps, in which only the projector trains")

    # The diffusion draws and the loss.
    draws: int = _is(integer(1), 2, "diffusion draws (timestep, noise, patches) per image")
    draw_weights: tuple[float, ...] | None = _is(
        optional(several(number(least=0))), None, "weight of each draw's loss; None: 1/draws each"
    )
    timesteps: str = _is(
        choice("uniform", "stratified", "logit-normal"), "uniform", "distribution of the timesteps"
    )
    timestep_range: tuple[int, int] | None = _is(
        optional(several(integer(0), 2)), None, "first timestep, and the one after the last; None: all"
    )
    logit_mean: float = _is(number(), 0.0, "mean of the normal behind logit-normal timesteps")
    logit_std: float = _is(number(above=0), 1.0, "its standard deviation")
    loss: str = _is(choice("mse", "l1"), "mse", "error between the prediction and its target")
    min_snr: float | None = _is(
        optional(number(above=0)), None, "gamma of min-SNR loss weights (arXiv 2303.09556); None: off"
    )
    anchor: float = _is(
        number(least=0), 0.0, "weight of the penalty that keeps embeddings near the original CLIP's; 0: off"
    )

    # The optimizer.
    optimizer: str = _is(choice("sgd", "adamw"), "sgd", "as in torch.optim")
    lr: float = _is(number(least=0), 1e-4, "learning rate")
    projector_lr: float | None = _is(
        optional(number(least=0)), None, "the projector's learning rate; None: lr"
    )
    momentum: float = _is(number(least=0, below=1), 0.9, "of SGD")
    betas: tuple[float, float] = _is(several(number(least=0, below=1), 2), (0.9, 0.999), "of AdamW")
    eps: float = _is(number(least=0), 1e-8, "of AdamW")
    weight_decay: float = _is(number(least=0), 0.0, "as in torch.optim")
    grad_clip: float | None = _is(
        optional(number(above=0)), 1.0, "greatest norm of the whole gradient; None: no clipping"
    )
    schedule: str = _is(choice("cosine", "constant"), "cosine", "learning rate after its warm-up")
    warmup: int = _is(integer(0), 0, "steps of linear warm-up")
    steps: int | None = _is(optional(integer(1)), None, "optimizer steps; None: one pass over the data")
    batch: int | None = _is(
        optional(integer(1)), None, "images per optimizer step; None: one batch of the loader"
    )
    micro_batch: int | None = _is(
        optional(integer(1)), None, "images per pass through the models; None: all at once"
    )
    gradient_checkpointing: bool = _is(
        flag(),
        False,
        "whether Trainer's native tower computes its blocks again in the backward pass, for less memory",
    )
    denoiser_checkpointing: bool = _is(
        flag(),
        False,
        "whether the native denoiser computes its blocks again in the backward pass, for less memory",
    )
    denoiser_batch: int | None = _is(
        optional(integer(1)),
        None,
        "most images per pass of the denoiser, each draw counted; None: draw by draw, small latents together",
    )

    # The computation.
    precision: str = _is(
        choice("fp32", "bf16", "fp64"), "fp32", "of the computation (bf16: over float32 CLIP weights)"
    )
    backend: str = _is(choice("auto", "torch", "native"), "auto", "who runs the networks")

    # The pixels.
    pixels: str = _is(
        choice("unit", "clip", "symmetric"),
        "unit",
        "range of the loader's images: [0, 1], normalised for CLIP, or [-1, 1]",
    )
    vae_pixels: str = _is(
        choice("symmetric", "official"),
        "symmetric",
        "the VAE's input: [-1, 1], or the official code's shrunken contrast",
    )
    clip_mean: tuple[float, float, float] | None = _is(
        optional(several(number(), 3)), None, "mean that normalises CLIP's input; None: the model's own"
    )
    clip_std: tuple[float, float, float] | None = _is(
        optional(several(number(above=0), 3)), None, "its standard deviation; None: the model's own"
    )
    resize: str = _is(choice("bicubic", "bilinear"), "bicubic", "resampling of the images")
    antialias: bool = _is(flag(), True, "whether that resampling is antialiased")
    image_size: int | None = _is(
        optional(integer(1)), None, "side of the VAE's input in pixels; None: the teacher's"
    )
    latent: str = _is(choice("mean", "sample"), "mean", "mean of the VAE's posterior, or a sample of it")

    # The run.
    seed: int = _is(integer(0, most=2**64 - 1), 0, "decides every draw and the projector's start")
    log_every: int = _is(integer(1), 10, "steps between two logs", operational=True)
    max_skipped: int = _is(
        integer(0),
        10,
        "updates in a row that may be skipped because loss or gradient is not finite",
        operational=True,
    )
    checkpoint_every: int | None = _is(
        optional(integer(1)), 500, "steps between two checkpoints; None: at the end only", operational=True
    )
    keep: int = _is(integer(1), 2, "checkpoints that are kept, the newest ones", operational=True)
