"""What a teacher is made of, in one line per part."""

from typing import Any

from torch import Tensor, nn

from diva_rs.diffusion.conditioning import Conditioning
from diva_rs.diffusion.discovery import Parts


def describe(
    parts: Parts, unet: nn.Module, vae: nn.Module | None, text: Tensor | None, way: Conditioning
) -> str:
    """See `Teacher.describe`: class, parameters, dtype, device and origin of every part; loads nothing."""
    lines = [f"denoiser: {summary(unet)}, {parts.where('unet')}", f"condition: {way.entry}"]
    config: Any = unet.config
    vae = vae if vae is not None else parts.loaded("vae")
    if vae is None and int(config.in_channels) == 3 and not parts.findable("vae"):
        lines.append("vae: none, the denoiser works on pixels")
    else:
        lines.append(f"vae: {_line(vae, parts.where('vae'))}")
    lines.append(f"scheduler: {_line(parts.loaded('scheduler'), parts.where('scheduler'))}")
    if text is not None:
        lines.append(f"text: {tuple(text.shape)} tokens, given")
    elif way.text_width is None:
        lines.append("text: none, the denoiser reads no text")
    else:
        both = config.addition_embed_type == "text_time"
        for name in ("text_encoder", "text_encoder_2") if both else ("text_encoder",):
            lines.append(f"{name}: {_line(parts.loaded(name), parts.where(name))}")
    return "\n".join(lines)


def summary(module: nn.Module) -> str:
    """Class, number of parameters, dtype and device.

    >>> summary(nn.Linear(2, 2))
    'Linear, 6 parameters, float32 on cpu'
    """
    parameters = list(module.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    dtypes = " and ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters}))
    devices = " and ".join(sorted({str(parameter.device) for parameter in parameters}))
    return f"{type(module).__name__}, {_short(count)} parameters, {dtypes} on {devices}"


def _line(part: Any, place: str) -> str:
    if part is None:
        return place
    return f"{summary(part) if isinstance(part, nn.Module) else type(part).__name__}, {place}"


def _short(count: int) -> str:
    for unit, size in ((" billion", 1e9), (" million", 1e6)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return f"{count:,}"
