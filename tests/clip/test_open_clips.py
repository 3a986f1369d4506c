"""A CLIP library that diva_rs does not know is added from outside: one file, found by an entry point."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diva_rs
from builders.installed import install
from builders.small import images, small_teacher
from diva_rs.clip import adapt
from diva_rs.clip.libraries import libraries
from diva_rs.errors import ConfigError

ADAPTER = """
import torch
from diva_rs.clip import Tower

SUPPORTED = "patchwork models"


def matches(model):
    return hasattr(model, "patchwork")


def build(model, where):
    def tap(pixels):
        patches = model.patchwork(pixels).flatten(2).transpose(1, 2)
        return torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1)

    return Tower(
        name=type(model).__name__, family="patchwork", module=model, patches=16, width=24, embed_dim=24,
        image_size=(32, 32), where=where, stem=model.patchwork, tap=tap,
        rebuild=lambda copied: build(copied, where),
    )
"""


class Patchwork(nn.Module):
    """An image is the mean of its embedded patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patchwork = nn.Conv2d(3, 24, kernel_size=8, stride=8)

    def encode_image(self, pixels: Tensor) -> Tensor:
        embedding: Tensor = self.patchwork(pixels).flatten(2).mean(dim=2)
        return embedding


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The adapter as a package that pip has installed."""
    install(tmp_path, monkeypatch, "patchwork_for_diva", ADAPTER, "diva_rs.clips")
    libraries.cache_clear()
    yield
    libraries.cache_clear()


def test_a_library_of_another_package_trains(installed: None) -> None:
    clip = Patchwork()
    tower, pixels = adapt(clip), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(tower.embed(tower.tokens(pixels)), clip.encode_image(pixels))
    before = clip.patchwork.weight.detach().clone()
    diva_rs.post_train(clip, small_teacher(), [images(2)], lr=1e-2, choose=4, progress=False)
    assert not torch.equal(clip.patchwork.weight, before)
    with pytest.raises(
        ConfigError, match=r"Linear is not a CLIP .* Supported are patchwork models, open_clip"
    ):
        adapt(nn.Linear(2, 2))


def test_without_it_the_model_is_unknown() -> None:
    with pytest.raises(ConfigError, match="Patchwork is not a CLIP model of a known library"):
        adapt(Patchwork())
