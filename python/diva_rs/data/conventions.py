"""The three pixel conventions, and the numbers that CLIP's and ImageNet's normalisation use."""

import torch
from torch import Tensor

from diva_rs.errors import ConfigError, shown

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)  # openai/CLIP, clip.py `_transform`
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (
    0.485,
    0.456,
    0.406,
)  # torchvision's; the official code un-normalises the VAE's input with them
IMAGENET_STD = (0.229, 0.224, 0.225)

CONVENTIONS = ("unit", "clip", "symmetric")


def channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Per-channel constants (3, 1, 1) on the device and in the dtype of ``like``.

    Filled on the device: ``torch.tensor(values, device="cuda")`` would copy from the host and wait for it.

    >>> channels((0.5, 0.25, 1.0), torch.zeros(1, dtype=torch.float64)).flatten().tolist()
    [0.5, 0.25, 1.0]
    """
    return torch.cat([like.new_full((1, 1, 1), value) for value in values])


def checked_convention(convention: str) -> str:
    """``convention`` itself, or ConfigError with the valid ones.

    >>> checked_convention("unit")
    'unit'
    """
    if not isinstance(convention, str) or convention not in CONVENTIONS:
        raise ConfigError(
            f"pixels={shown(convention)} is unknown: one of {', '.join(map(repr, CONVENTIONS))}"
        )
    return convention
