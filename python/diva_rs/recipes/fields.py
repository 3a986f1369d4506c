"""The fields of a recipe: what each one means, takes and is by default. `Recipe` adds what they can do."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat
from typing_extensions import TypedDict

from diva_rs.recipes.settings import Count, Decay, Optimizer, Schedule, Settings, Share, Whole
from diva_rs.recipes.stage import Stage

# No weight depends on an operational field: it may change from one start of a run to the next.
_OPERATIONAL = Field(json_schema_extra={"operational": True})


class Fields(Settings):
    """The fields alone."""

    name: Annotated[str, Field(min_length=1)] = "custom"
    """name of the recipe; a preset has its own"""

    # The condition: which visual tokens, and how the text joins them.
    condition: Literal["class", "random", "window", "all", "text"] = "random"
    """visual tokens: the class token alone, with random patches, with window means, with all patches, or
    none"""
    class_tokens: Count = 1
    """tokens of the condition that the projector makes of the class token, if it stands alone"""
    choose: Whole | None = None
    """number of random patches"""
    density: Share | None = None
    """random patches as a share of all"""
    replacement: bool = False
    """whether a patch may be drawn twice"""
    bernoulli: bool = False
    """whether each patch is kept independently, with probability density"""
    window: Count | None = None
    """width of the average-pooling windows, in patches"""
    text: Literal["add", "mean", "concat", "broadcast", "none"] = "mean"
    """how the text is used: token i added to visual token i, its mean added to each, appended, the class
    token added to each text token, or not at all"""
    prompt: str = ""
    """the teacher's prompt"""
    projector: Literal["linear", "mlp", "identity"] = "linear"
    """the map from CLIP's embedding to the condition; "identity" needs equal widths and has no
    parameters"""
    projector_start: Literal["random", "zero"] = "random"
    """its last layer before training; from "zero" the tower learns along what the projector has learnt to
    read, and along no random direction"""
    projector_warmup: Whole = 0
    """first steps, in which only the projector trains"""

    # The diffusion draws and the loss.
    draws: Count = 2
    """diffusion draws (timestep, noise, patches) per image"""
    draw_weights: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] | None = None
    """weight of each draw's loss; None: 1/draws each"""
    timesteps: Literal["uniform", "stratified", "logit-normal"] = "uniform"
    """distribution of the timesteps"""
    timestep_range: tuple[Whole, Whole] | None = None
    """first timestep, and the one after the last; None: all"""
    logit_mean: float = 0.0
    """mean of the normal distribution of logit-normal timesteps"""
    logit_std: PositiveFloat = 1.0
    """standard deviation of that distribution"""
    loss: Literal["mse", "l1"] = "mse"
    """error between the prediction and its target"""
    min_snr: PositiveFloat | None = None
    """gamma of min-SNR loss weights (arXiv 2303.09556); None: off"""
    denoising: NonNegativeFloat = 1.0
    """weight of the denoising loss; 0: off, and the denoiser runs only for terms that read predictions"""
    anchor: NonNegativeFloat = 0.0
    """weight of the penalty that keeps embeddings near the original CLIP's; 0: off"""
    anchor_kind: Literal["cosine", "squared", "kernel", "squared+kernel"] = "cosine"
    """1 - cosine, squared distance, mean squared gap of the batch's kernel matrices, or the second and half
    of the third (KUEA, ICML 2025)"""
    contrast: NonNegativeFloat = 0.0
    """weight of DCR's contrast of predictions under the conditions of other images of the batch; 0: off"""
    contrast_temperature: PositiveFloat = 0.1
    """divisor of the cosines of predictions"""
    contrast_negatives: Count | None = None
    """negatives of each image, drawn by its key; None: every other image of its group"""
    contrast_group: Annotated[int, Field(ge=2)] | None = None
    """images, in the order of a batch, that are negatives of each other; None: the loader's whole batch"""
    contrast_view: Literal["unit", "official"] = "unit"
    """augmented views of pixels in [0, 1], or, as in DCR's code, of CLIP's normalised input"""

    # The vision tower, where matrices of a low rank train in its place.
    low_rank: Count | None = None
    """rank of each target's update, W0 + alpha / rank * B A (LoRA, arXiv 2106.09685); None: all weights"""
    low_rank_alpha: PositiveFloat | None = None
    """alpha of that update; None: the rank"""
    low_rank_targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)
    """globs over the keys of the tower's matrices; "*": all linear layers and the visual projection"""
    low_rank_bias: bool = False
    """whether the biases of the targets' layers train too (peft's bias="lora_only")"""

    # The optimizer.
    optimizer: Optimizer = "sgd"
    """as in torch.optim"""
    lr: NonNegativeFloat = 1e-4
    """learning rate"""
    projector_lr: NonNegativeFloat | None = None
    """the projector's learning rate; None: lr"""
    momentum: Decay = 0.9
    """momentum of SGD"""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """betas of AdamW"""
    eps: NonNegativeFloat = 1e-8
    """eps of AdamW"""
    weight_decay: NonNegativeFloat = 0.0
    """as in torch.optim"""
    grad_clip: PositiveFloat | None = 1.0
    """largest norm of the whole gradient; None: no clipping"""
    schedule: Schedule = "cosine"
    """learning rate after its warm-up"""
    warmup: Whole = 0
    """steps of linear warm-up"""
    steps: Count | None = None
    """optimizer steps; None: one pass over the data"""
    stages: tuple[Stage, ...] = ()
    """stages of the run, in order; empty: one stage with the fields above"""
    batch: Count | None = None
    """images per optimizer step; None: one batch of the loader"""
    micro_batch: Count | None = None
    """images per pass through the models; None: all at once"""
    gradient_checkpointing: bool = False
    """whether Trainer's native tower recomputes its blocks in the backward pass, to save memory"""
    denoiser_checkpointing: bool = False
    """whether the native denoiser recomputes its blocks in the backward pass, to save memory"""
    denoiser_batch: Count | None = None
    """largest number of images, once per draw, in a pass of the denoiser; None: on a CPU one draw at a time
    (small latents together), elsewhere up to 16"""

    # The computation.
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """precision of the computation (bf16: CLIP's weights stay float32)"""
    products: Literal["auto", "bf16", "fp32"] = "auto"
    """how bf16 matrices are multiplied on a CPU; "auto": the faster way, which a resumed run keeps"""
    backend: Literal["auto", "torch", "native"] = "auto"
    """which implementation runs the networks"""

    # The pixels.
    pixels: Literal["unit", "clip", "symmetric"] = "unit"
    """range of the loader's images: [0, 1], normalised for CLIP, or [-1, 1]"""
    vae_pixels: Literal["symmetric", "official"] = "symmetric"
    """the VAE's input: [-1, 1], or as in the official code, with less contrast"""
    clip_mean: tuple[float, float, float] | None = None
    """mean that normalises CLIP's input; None: the model's own"""
    clip_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """its standard deviation; None: the model's own"""
    resize: Literal["bicubic", "bilinear"] = "bicubic"
    """resampling of the images"""
    antialias: bool = True
    """whether that resampling is antialiased"""
    image_size: Count | None = None
    """side of the VAE's input in pixels; None: the teacher's"""
    latent: Literal["mean", "sample"] = "mean"
    """mean of the VAE's posterior, or a sample of it"""

    # The run.
    seed: Annotated[int, Field(ge=0, le=2**64 - 1)] = 0
    """determines every draw and the projector's start"""
    log_every: Annotated[Count, _OPERATIONAL] = 10
    """steps between two logs"""
    max_skipped: Annotated[Whole, _OPERATIONAL] = 10
    """updates in a row that may be skipped because loss or gradient is not finite"""
    checkpoint_every: Annotated[Count | None, _OPERATIONAL] = 500
    """steps between two checkpoints; None: only at the end"""
    keep: Annotated[Count, _OPERATIONAL] = 2
    """number of newest checkpoints that are kept"""


class RecipeFields(TypedDict, total=False):
    """The fields as keyword arguments, written out for editors and type checkers."""

    name: str
    condition: Literal["class", "random", "window", "all", "text"]
    class_tokens: int
    choose: int | None
    density: float | None
    replacement: bool
    bernoulli: bool
    window: int | None
    text: Literal["add", "mean", "concat", "broadcast", "none"]
    prompt: str
    projector: Literal["linear", "mlp", "identity"]
    projector_start: Literal["random", "zero"]
    projector_warmup: int
    draws: int
    draw_weights: tuple[float, ...] | None
    timesteps: Literal["uniform", "stratified", "logit-normal"]
    timestep_range: tuple[int, int] | None
    logit_mean: float
    logit_std: float
    loss: Literal["mse", "l1"]
    min_snr: float | None
    denoising: float
    anchor: float
    anchor_kind: Literal["cosine", "squared", "kernel", "squared+kernel"]
    contrast: float
    contrast_temperature: float
    contrast_negatives: int | None
    contrast_group: int | None
    contrast_view: Literal["unit", "official"]
    low_rank: int | None
    low_rank_alpha: float | None
    low_rank_targets: tuple[str, ...]
    low_rank_bias: bool
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
    products: Literal["auto", "bf16", "fp32"]
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
