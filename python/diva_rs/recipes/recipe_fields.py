"""The recipe's fields as keyword arguments, so that editors complete them and type checkers check them."""

from typing import Literal

from typing_extensions import TypedDict

from diva_rs.recipes.stage import Stage


class RecipeFields(TypedDict, total=False):
    """Names and types of `Recipe`'s fields; what each one means is in `Recipe.fields_help`."""

    name: str
    condition: Literal["class", "random", "window", "all", "text"]
    choose: int | None
    density: float | None
    replacement: bool
    bernoulli: bool
    window: int | None
    text: Literal["add", "mean", "concat", "none"]
    prompt: str
    projector: Literal["linear", "mlp"]
    projector_warmup: int
    draws: int
    draw_weights: tuple[float, ...] | None
    timesteps: Literal["uniform", "stratified", "logit-normal"]
    timestep_range: tuple[int, int] | None
    logit_mean: float
    logit_std: float
    loss: Literal["mse", "l1"]
    min_snr: float | None
    anchor: float
    optimizer: Literal["sgd", "adamw"]
    lr: float
    projector_lr: float | None
    momentum: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    grad_clip: float | None
    schedule: Literal["cosine", "constant"]
    warmup: int
    steps: int | None
    stages: tuple[Stage, ...]
    batch: int | None
    micro_batch: int | None
    gradient_checkpointing: bool
    denoiser_checkpointing: bool
    denoiser_batch: int | None
    precision: Literal["fp32", "bf16", "fp64"]
    backend: Literal["auto", "torch", "native"]
    pixels: Literal["unit", "clip", "symmetric"]
    vae_pixels: Literal["symmetric", "official"]
    clip_mean: tuple[float, float, float] | None
    clip_std: tuple[float, float, float] | None
    resize: Literal["bicubic", "bilinear"]
    antialias: bool
    image_size: int | None
    latent: Literal["mean", "sample"]
    seed: int
    log_every: int
    max_skipped: int
    checkpoint_every: int | None
    keep: int
