"""What a teacher is made of, in one line per part."""

from typing import Any

from torch import Tensor, nn

from diva_rs.diffusion.discovery import Parts
from diva_rs.diffusion.families.family import Family


def describe(
    parts: Parts, denoiser: nn.Module, vae: nn.Module | None, text: Tensor | None, family: Family
) -> str:
    """See `Teacher.describe`: class, parameters, dtype, device and origin of every part; loads nothing."""
    lines = [f"denoiser: {summary(denoiser)}, {parts.where('unet')}", f"condition: {family.entry}"]
    vae = vae if vae is not None else parts.loaded("vae")
    if vae is None and family.channels == 3 and not parts.findable("vae"):
        lines.append("vae: none, the denoiser works on pixels")
    else:
        lines.append(f"vae: {_line(vae, parts.where('vae'))}")
    lines.append(f"scheduler: {_line(parts.loaded('scheduler'), parts.where('scheduler'))}")
    if text is not None:
        lines.append(f"text: {tuple(text.shape)} tokens, given")
    elif family.text_width is None:
        lines.append("text: none, the denoiser reads no text")
    else:
        lines += [f"{name}: {_line(parts.loaded(name), parts.where(name))}" for name in family.text_encoders]
    return "\n".join(lines)


def summary(module: nn.Module) -> str:
    """Class, number of parameters, dtype and device."""
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
    if count < 1e6:
        return f"{count:,}"
    return f"{count / 1e6:.1f} million" if count < 1e9 else f"{count / 1e9:.1f} billion"
