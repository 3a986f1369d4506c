"""Wrappers that hold a model unchanged: DistributedDataParallel, DataParallel, torch.compile."""

from torch import Tensor, nn

from diva_rs.errors import ConfigError, a_type


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, DataParallel and torch.compile, in any order.

    >>> inner = nn.Linear(2, 2)
    >>> unwrap(nn.DataParallel(inner)) is inner
    True
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"clip is {a_type(model)}, expected a loaded model: open_clip.create_model_and_transforms and "
            "clip.load return it first"
        )
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif "_orig_mod" in model._modules:  # torch._dynamo.OptimizedModule
            model = model.get_submodule("_orig_mod")
        else:
            return model


def own_weights(clip: nn.Module) -> dict[str, Tensor]:
    """The model's weights by its own keys: without those of DataParallel's or torch.compile's wrappers."""
    weights = unwrap(clip).state_dict().items()
    return {name.replace("_orig_mod.", ""): value for name, value in weights if isinstance(value, Tensor)}
