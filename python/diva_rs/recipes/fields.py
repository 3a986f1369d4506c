"""The fields of a recipe: what each one means, takes and is by default. `Recipe` adds what they can do."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from diva_rs.recipes.settings import Count, Settings, Whole
from diva_rs.recipes.stage import Stage

Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]

# No weight depends on an operational field: it may change from one start of a run to the next.
_OPERATIONAL: dict[str, Any] = {"operational": True}


class Fields(Settings):
    """The fields alone."""

    noun: ClassVar[str] = "a recipe"

    name: str = Field(
        default="custom", min_length=1, description="what to call it; presets carry their own name"
    )

    # The condition: which visual tokens, and how the text joins them.
    condition: Literal["class", "random", "window", "all", "text"] = Field(
        default="random",
        description="visual tokens of the condition: the class token alone, with random patches, with window "
        "means, with all patches, or none (text alone, the control)",
    )
    choose: Whole | None = Field(default=None, description="number of random patches")
    density: Share | None = Field(default=None, description="random patches as a share of all")
    replacement: bool = Field(default=False, description="whether a patch may be drawn twice")
    bernoulli: bool = Field(
        default=False, description="whether each patch is kept by a coin of probability density"
    )
    window: Count | None = Field(default=None, description="width of the average-pooling windows, in patches")
    text: Literal["add", "mean", "concat", "none"] = Field(
        default="mean",
        description="how the text joins: text token i added to visual token i, the text's mean added to "
        "each, appended, or not at all",
    )
    prompt: str = Field(default="", description="the teacher's prompt")
    projector: Literal["linear", "mlp"] = Field(
        default="linear", description="the map from CLIP's embedding to the condition"
    )
    projector_warmup: Whole = Field(default=0, description="first steps, in which only the projector trains")

    # The diffusion draws and the loss.
    draws: Count = Field(default=2, description="diffusion draws (timestep, noise, patches) per image")
    draw_weights: tuple[NonNegativeFloat, ...] | None = Field(
        default=None, min_length=1, description="weight of each draw's loss; None: 1/draws each"
    )
    timesteps: Literal["uniform", "stratified", "logit-normal"] = Field(
        default="uniform", description="distribution of the timesteps"
    )
    timestep_range: tuple[Whole, Whole] | None = Field(
        default=None, description="first timestep, and the one after the last; None: all"
    )
    logit_mean: float = Field(default=0.0, description="mean of the normal behind logit-normal timesteps")
    logit_std: PositiveFloat = Field(default=1.0, description="its standard deviation")
    loss: Literal["mse", "l1"] = Field(
        default="mse", description="error between the prediction and its target"
    )
    min_snr: PositiveFloat | None = Field(
        default=None, description="gamma of min-SNR loss weights (arXiv 2303.09556); None: off"
    )
    anchor: NonNegativeFloat = Field(
        default=0.0,
        description="weight of the penalty that keeps embeddings near the original CLIP's; 0: off",
    )

    # The optimizer.
    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="as in torch.optim")
    lr: NonNegativeFloat = Field(default=1e-4, description="learning rate")
    projector_lr: NonNegativeFloat | None = Field(
        default=None, description="the projector's learning rate; None: lr"
    )
    momentum: Decay = Field(default=0.9, description="of SGD")
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.999), description="of AdamW")
    eps: NonNegativeFloat = Field(default=1e-8, description="of AdamW")
    weight_decay: NonNegativeFloat = Field(default=0.0, description="as in torch.optim")
    grad_clip: PositiveFloat | None = Field(
        default=1.0, description="greatest norm of the whole gradient; None: no clipping"
    )
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="learning rate after its warm-up"
    )
    warmup: Whole = Field(default=0, description="steps of linear warm-up")
    steps: Count | None = Field(default=None, description="optimizer steps; None: one pass over the data")
    stages: tuple[Stage, ...] = Field(
        default=(), description="stages of the run, one after the other; empty: one stage of the fields above"
    )
    batch: Count | None = Field(
        default=None, description="images per optimizer step; None: one batch of the loader"
    )
    micro_batch: Count | None = Field(
        default=None, description="images per pass through the models; None: all at once"
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="whether Trainer's native tower computes its blocks again in the backward pass, for less "
        "memory",
    )
    denoiser_checkpointing: bool = Field(
        default=False,
        description="whether the native denoiser computes its blocks again in the backward pass, for less "
        "memory",
    )
    denoiser_batch: Count | None = Field(
        default=None,
        description="most images per pass of the denoiser, each draw counted; None: draw by draw, small "
        "latents together",
    )

    # The computation.
    precision: Literal["fp32", "bf16", "fp64"] = Field(
        default="fp32", description="of the computation (bf16: over float32 CLIP weights)"
    )
    backend: Literal["auto", "torch", "native"] = Field(default="auto", description="what runs the networks")

    # The pixels.
    pixels: Literal["unit", "clip", "symmetric"] = Field(
        default="unit", description="range of the loader's images: [0, 1], normalised for CLIP, or [-1, 1]"
    )
    vae_pixels: Literal["symmetric", "official"] = Field(
        default="symmetric", description="the VAE's input: [-1, 1], or the official code's shrunken contrast"
    )
    clip_mean: tuple[float, float, float] | None = Field(
        default=None, description="mean that normalises CLIP's input; None: the model's own"
    )
    clip_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = Field(
        default=None, description="its standard deviation; None: the model's own"
    )
    resize: Literal["bicubic", "bilinear"] = Field(default="bicubic", description="resampling of the images")
    antialias: bool = Field(default=True, description="whether that resampling is antialiased")
    image_size: Count | None = Field(
        default=None, description="side of the VAE's input in pixels; None: the teacher's"
    )
    latent: Literal["mean", "sample"] = Field(
        default="mean", description="mean of the VAE's posterior, or a sample of it"
    )

    # The run.
    seed: Annotated[int, Field(ge=0, le=2**64 - 1)] = Field(
        default=0, description="decides every draw and the projector's start"
    )
    log_every: Count = Field(default=10, description="steps between two logs", json_schema_extra=_OPERATIONAL)
    max_skipped: Whole = Field(
        default=10,
        description="updates in a row that may be skipped because loss or gradient is not finite",
        json_schema_extra=_OPERATIONAL,
    )
    checkpoint_every: Count | None = Field(
        default=500,
        description="steps between two checkpoints; None: at the end only",
        json_schema_extra=_OPERATIONAL,
    )
    keep: Count = Field(
        default=2, description="checkpoints that are kept, the newest ones", json_schema_extra=_OPERATIONAL
    )
