"""The native networks over the weights of Python modules, and why a module is not one of them."""

from diva_rs.native.choose import native_denoiser, native_encoder
from diva_rs.native.inspect import NotNative
from diva_rs.native.vision import native_tower, why_not

__all__ = ["NotNative", "native_denoiser", "native_encoder", "native_tower", "why_not"]
