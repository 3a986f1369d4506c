"""What every refusal promises: the right exception, and models as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn


@contextmanager
def refused(kind: type[BaseException], match: str, *models: nn.Module) -> Iterator[None]:
    """The block raises `kind` itself, and leaves every weight of `models` as it was, without a gradient."""
    before = [[value.clone() for value in model.state_dict().values()] for model in models]
    with pytest.raises(kind, match=match) as caught:
        yield
    assert type(caught.value) is kind
    for model, values in zip(models, before, strict=True):
        assert all(map(torch.equal, model.state_dict().values(), values))
        assert all(parameter.grad is None for parameter in model.parameters())
