"""The native core. Rust's documentation says what each part computes; use the wrappers around it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt
from torch import Tensor

__version__: str
__torch__: str
__all__ = [
    "Batch",
    "Bridge",
    "DrawPlan",
    "Judge",
    "Network",
    "Optimizer",
    "Pixels",
    "Reader",
    "Recording",
    "Schedule",
    "Step",
    "Tape",
    "View",
    "__torch__",
    "__version__",
    "augment_seed",
    "lr_factor",
    "negatives",
    "resampled",
]

_Targets = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor | None]

def negatives(
    seed: int,
    ids: npt.NDArray[np.uint64],
    epoch: int,
    draw: int,
    group: int | None = None,
    count: int | None = None,
) -> list[list[int]]: ...
def augment_seed(seed: int, id: int, epoch: int) -> int: ...
def resampled(
    picture: npt.NDArray[np.uint8],
    width: int,
    window: tuple[int, int, int, int],
    size: tuple[int, int],
    kept: tuple[int, int, int, int],
) -> Tensor: ...
def lr_factor(schedule: str, step: int, warmup: int, steps: int) -> float: ...

@final
class DrawPlan:
    def __new__(
        cls,
        seed: int,
        draws: int,
        latent_shape: Sequence[int],
        patches: int,
        choose: int | None = None,
        replacement: bool | None = None,
        density: float | None = None,
        timesteps: str | None = None,
        timestep_range: tuple[int, int] | None = None,
        logit: tuple[float, float] | None = None,
    ) -> DrawPlan: ...
    def draw(
        self, ids: npt.NDArray[np.uint64], epoch: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int64]]: ...

@final
class Schedule:
    @staticmethod
    def from_alphas_cumprod(alphas_cumprod: Tensor, prediction_type: str = "epsilon") -> Schedule: ...
    @staticmethod
    def flow(sigmas: Tensor, num_train_timesteps: float = 1000.0) -> Schedule: ...
    def add_noise(
        self, latents: Tensor, noise: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]: ...
    def weights(self, timesteps: Tensor, min_snr: float, like: Tensor) -> Tensor: ...
    @property
    def alphas_cumprod(self) -> Tensor: ...
    @property
    def sigmas(self) -> Tensor: ...
    @property
    def prediction_type(self) -> str: ...
    def __len__(self) -> int: ...

@final
class Tape: ...

@final
class Bridge:
    def __new__(
        cls,
        norm: tuple[Tensor | None, Tensor | None, float] | None,
        proj: tuple[Tensor, bool] | None,
        projector: Mapping[str, Tensor],
        recap: str,
        number: int | None = None,
        join: str = "mean",
        kernel: Callable[..., Tensor] | None = None,
    ) -> Bridge: ...
    def forward(self, tokens: Tensor, text: Tensor, choice: Tensor | None = None) -> tuple[Tensor, Tape]: ...
    def backward(self, tape: Tape, grad: Tensor) -> tuple[Tensor, list[Tensor]]: ...
    @property
    def param_names(self) -> list[str]: ...

@final
class Optimizer:
    def __new__(
        cls,
        method: str,
        groups: Sequence[tuple[str, float, float, Mapping[str, Tensor]]],
        momentum: float = 0.9,
        betas: tuple[float, float] = ...,
        eps: float = 1e-8,
    ) -> Optimizer: ...
    def regroup(self, groups: Sequence[tuple[str, float, float, Mapping[str, Tensor]]]) -> None: ...
    def step(self, factors: list[float]) -> None: ...
    def clip_grad_norm(self, max: float | None) -> Tensor: ...
    def update(self, max_norm: float | None, factors: list[float], loss: Tensor | None = None) -> Tensor: ...
    def scale_grads(self, factor: float) -> None: ...
    def state(self) -> dict[str, Tensor]: ...
    def load_state(self, state: Mapping[str, Tensor]) -> None: ...

@final
class Pixels:
    def __new__(
        cls,
        pixels: str,
        vae_pixels: str,
        resize: str,
        antialias: bool,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> Pixels: ...
    def to_unit(self, images: Tensor) -> Tensor: ...
    def clip_input(self, images: Tensor, size: tuple[int, int]) -> Tensor: ...
    def vae_input(self, images: Tensor, size: tuple[int, int]) -> Tensor: ...

@final
class Batch:
    def __new__(
        cls,
        *,
        keys: npt.NDArray[np.uint64],
        text: Tensor | None = None,
        drawn: DrawPlan | tuple[Tensor, Tensor, Tensor | None] | None = None,
        epoch: int = 0,
        seed: int = 0,
        images: Tensor | None = None,
        pixel_values: Tensor | None = None,
        augmented: Tensor | None = None,
        latents: Tensor | None = None,
        size: tuple[int, int] = ...,
        encoder: Any = None,
        sampled: Sequence[int] | None = None,
        pooled_noise: Tensor | None = None,
    ) -> Batch: ...
    def __len__(self) -> int: ...

@final
class Reader:
    def __new__(cls, pixels: Pixels, size: tuple[int, int], home: Tensor) -> Reader: ...
    def read(self, batch: Batch, wide: bool = False) -> tuple[Tensor, _Targets | None]: ...

@final
class View:
    @property
    def tokens(self) -> Tensor: ...
    @property
    def pooled(self) -> Tensor: ...
    @property
    def original(self) -> Tensor: ...
    @property
    def predictions(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def timesteps(self) -> Tensor: ...
    @property
    def keys(self) -> npt.NDArray[np.uint64]: ...
    @property
    def epoch(self) -> int: ...

@final
class Step:
    def __new__(
        cls,
        tower: Callable[[Tensor], Tensor] | Network,
        denoiser: Callable[..., Tensor] | Network | None,
        bridge: Bridge,
        schedule: Schedule | None,
        *,
        denoising: float = 1.0,
        loss: str = "mse",
        draw_weights: Sequence[float] = ...,
        min_snr: float | None = None,
        contrast: float = 0.0,
        contrast_options: tuple[float, int | None, int | None, int] = ...,
        anchor: float = 0.0,
        anchor_kind: str = "cosine",
        terms: Sequence[tuple[str, float, Callable[[View], Tensor]]] = ...,
        original: tuple[Callable[[Tensor], Tensor] | Network, Bridge] | None = None,
        micro_batch: int | None = None,
        denoiser_batch: int | None = None,
    ) -> Step: ...
    def train(
        self,
        reader: Reader,
        batch: Batch,
        optimizer: Optimizer,
        share: float = 1.0,
        train_tower: bool = True,
        update: tuple[float | None, Sequence[float], Tensor | None] | None = None,
        hold: Callable[[], None] | None = None,
    ) -> tuple[dict[str, Tensor], Tensor | None]: ...
    def weigh(self, weights: Sequence[tuple[str, float]]) -> None: ...
    def widen(self, wide: bool) -> None: ...
    @property
    def denoiser_limit(self) -> int | None: ...
    def changed_limit(self) -> int | None: ...
    def at_tokens(
        self, tokens: Tensor, images: Tensor, targets: _Targets | None, batch: Batch | None = None
    ) -> tuple[dict[str, Tensor], Tensor, list[Tensor | None], list[Tensor | None]]: ...

@final
class Judge:
    def __new__(
        cls,
        denoiser: Callable[..., Tensor] | Network,
        schedule: Schedule,
        loss: str = "mse",
        batch: int | None = None,
        wide: bool = False,
    ) -> Judge: ...
    def losses(
        self,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        texts: Tensor,
        pairs: npt.NDArray[np.int64],
    ) -> Tensor: ...
    @property
    def limit(self) -> int | None: ...

@final
class Recording: ...

@final
class Network:
    def __new__(
        cls,
        kind: str,
        config: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        fixed: Mapping[str, Tensor] | None = None,
    ) -> Network: ...
    @property
    def kind(self) -> str: ...
    def tokens(self, images: Tensor) -> Tensor: ...
    def record(self, images: Tensor) -> tuple[Tensor, Recording]: ...
    def backward(self, recording: Recording, gradient: Tensor) -> None: ...
    @property
    def slots(self) -> list[str]: ...
    @property
    def condition_width(self) -> int: ...
    def predict(
        self, noisy: Tensor, timesteps: Tensor, condition: Tensor, text: Tensor | None = None
    ) -> Tensor: ...
    def gradient(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        at_prediction: Tensor,
        text: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...
    def encode(self, images: Tensor, noise: Tensor | None = None, micro_batch: int = 8) -> Tensor: ...
