"""The native networks over the weights of Python modules, and why a module is not one of them."""

from diva_rs.native.inspect import NotNative

__all__ = ["NotNative"]
