"""The main job on real photographs, with models small enough for two cores.

Nothing is downloaded: the photographs ship inside the scikit-image and scikit-learn wheels, and the models
(an open_clip ViT, a diffusers UNet with VAE, a transformers text encoder) are built from configurations with
random weights. The run shows the machinery, not a gain: an untrained denoiser gives no useful feedback.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from diva_rs import report
from diva_rs._base.optional import require
from diva_rs.data.augment import keyed, train_transform
from diva_rs.diffusion import Teacher
from diva_rs.evaluation import drift, linear_probe
from diva_rs.recipes.recipe import Recipe
from diva_rs.run.post_training import post_train
from diva_rs.run.result import PostTrainResult

_SCIKIT_IMAGE = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "rocket.jpg",
)
_SCIKIT_LEARN = ("china.jpg", "flower.jpg")
_SIDE = 128  # pixels of a crop: what the teacher sees

_NOTE = (
    "Demo: CLIP and its teacher have random weights, so the feedback carries little; this run shows the "
    "machinery, not a gain. The probes predict which of the eight photographs an unseen crop is from."
)

_CLIP = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 6, "width": 192, "head_width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}


class Photographs(Dataset[dict[str, Any]]):
    """Crops of the photographs in the scikit-image and scikit-learn wheels.

    An item is {"images": (3, 128, 128) in [0, 1], "ids": int}. Each photograph gives ``crops`` square windows
    of a third of its shorter side and more, placed by ``seed``.

    >>> len(Photographs(crops=2))
    16
    """

    def __init__(self, crops: int = 24, seed: int = 0) -> None:
        image_library = require("PIL.Image", extra="dev")
        folders = [
            Path(str(require("skimage.data", extra="dev").__file__)).parent,
            Path(str(require("sklearn.datasets", extra="dev").__file__)).parent / "images",
        ]
        files = [folders[0] / name for name in _SCIKIT_IMAGE] + [folders[1] / name for name in _SCIKIT_LEARN]
        generator = torch.Generator().manual_seed(seed)
        self.windows = []
        for file in files:
            with image_library.open(file) as opened:
                photograph = opened.convert("RGB")
            for _ in range(crops):
                side, left, top = torch.rand(3, generator=generator).tolist()
                width = round(min(photograph.size) * (1 + 2 * side) / 3)
                x, y = round((photograph.width - width) * left), round((photograph.height - width) * top)
                self.windows.append(photograph.crop((x, y, x + width, y + width)))
        self.transform = train_transform(_SIDE)
        self.crops, self.seed = crops, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Change the augmentation of each window."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = keyed(self.transform, self.windows[index], (self.seed, index, self.epoch))
        return {"images": image, "ids": index}


def small_clip(seed: int = 0) -> nn.Module:
    """An open_clip CLIP of 4 million vision parameters, random weights.

    >>> type(small_clip()).__name__
    'CLIP'
    """
    open_clip = require("open_clip", extra="open-clip")
    torch.manual_seed(seed)
    model: nn.Module = open_clip.model.CLIP(**_CLIP)
    return model.eval()


def small_teacher(seed: int = 0) -> Teacher:
    """A Stable-Diffusion-style teacher of small size, random weights: UNet, VAE and CLIP text encoder.

    >>> small_teacher().latent_shape
    (4, 16, 16)
    """
    diffusers = require("diffusers", extra="diffusers")
    transformers = require("transformers", extra="transformers")
    tokenizer = require("open_clip", extra="open-clip").get_tokenizer("ViT-B-32")
    torch.manual_seed(seed)
    unet = diffusers.UNet2DConditionModel(
        sample_size=_SIDE // 8,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=128,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=_SIDE,
    )
    encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
        )
    ).eval()
    scheduler = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    with torch.no_grad():
        text = encoder(tokenizer([""])).last_hidden_state
    return Teacher(unet, vae=vae, scheduler=scheduler, text_condition=text)


def run(
    output_dir: str | Path | None = None, steps: int = 60, progress: bool = True, crops: int = 24
) -> PostTrainResult:
    """Post-train `small_clip` on `Photographs`, save the run with its report, and load the result in plain
    open_clip.

    Args:
        output_dir: the run folder; by default a fresh folder in the system's temporary directory.
        steps: optimizer steps of 16 crops each.
        progress: whether to show the progress bar.
        crops: training crops of each photograph.
    """
    folder = Path(output_dir) if output_dir is not None else Path(tempfile.mkdtemp(prefix="diva-rs-demo-"))
    photographs, others = Photographs(crops), Photographs(min(crops, 6), seed=1)
    print(
        f"{len(_SCIKIT_IMAGE) + len(_SCIKIT_LEARN)} photographs, "
        f"{len(photographs)} crops of {_SIDE} x {_SIDE} pixels"
    )
    clip, teacher = small_clip(), small_teacher()
    print(teacher.describe())
    recipe = Recipe(
        name="demo", optimizer="adamw", lr=1e-4, density=0.3, draws=2, warmup=5, log_every=5, steps=steps
    )
    loader = DataLoader(
        photographs, batch_size=16, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(0)
    )
    known, unseen = _pixels_and_labels(photographs), _pixels_and_labels(others)
    before, read_before = _embed(clip, unseen[0]), linear_probe(clip, [known], [unseen])
    started = time.perf_counter()
    result = post_train(clip, teacher, loader, recipe, output_dir=folder, progress=progress)
    seconds = time.perf_counter() - started
    after, read_after = _embed(clip, unseen[0]), linear_probe(clip, [known], [unseen])
    moved = drift(before, after)
    losses = [row["loss"] for row in result.history]
    print(f"\n{result.report['steps']} steps, {result.report['samples']} samples in {seconds:.0f} s")
    print(f"denoising loss: {losses[0]:.4f} at step {result.history[0]['step']}, {losses[-1]:.4f} at the end")
    print(moved)
    print(_NOTE)
    page = report.write(result, folder, before=read_before, after=[read_after, moved], note=_NOTE)
    print(f"report: {page}")
    same = torch.equal(_embed(_reload(folder / "clip.safetensors"), unseen[0]), after)
    print(
        f"reloaded in plain open_clip from {folder / 'clip.safetensors'}: "
        f"{'the same embeddings' if same else 'DIFFERENT EMBEDDINGS'}"
    )
    if not same:
        raise SystemExit(1)
    return result


def _reload(file: Path) -> nn.Module:
    """The result in plain open_clip, without diva_rs."""
    open_clip = require("open_clip", extra="open-clip")
    model: nn.Module = open_clip.model.CLIP(**_CLIP)
    open_clip.load_checkpoint(model, str(file), strict=True)
    return model.eval()


def _pixels_and_labels(photographs: Photographs) -> tuple[Tensor, Tensor]:
    """CLIP's pixels of every crop (N, 3, 64, 64), and the number of its photograph (N,)."""
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)
    images = torch.stack([photographs[index]["images"] for index in range(len(photographs))])
    pixels = nn.functional.interpolate(images, 64, mode="bicubic", antialias=True).clamp(0, 1)
    labels = torch.arange(len(photographs)) // photographs.crops
    return (pixels - mean) / std, labels


def _embed(clip: nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        embeddings: Tensor = clip.encode_image(pixels)  # type: ignore[operator]
    return embeddings
