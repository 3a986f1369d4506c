"""What is declared native: the classes of modules that a native network computes, and the noise schedules.

The parity tests fail for a class or a schedule that occurs in none of their models.
"""

from collections.abc import Mapping

from diva_rs.diffusion.schedule import FLOW_MATCHING, VARIANCE_PRESERVING
from diva_rs.native import layouts, vae
from diva_rs.native.choose import DENOISERS

# By the kind of `_native.Network`; full class names as `inspect.class_path` gives them.
DECLARED: Mapping[str, frozenset[str]] = {
    "vision_transformer": frozenset().union(*layouts.ALLOWED.values()),
    "autoencoder_kl_encoder": vae.ALLOWED,
    **{kind: denoiser.allowed for kind, denoiser in DENOISERS.items()},
}

# By diffusers' names: what a model predicts, and whose schedules are read.
SCHEDULES: Mapping[str, frozenset[str]] = {
    "predictions": frozenset({"epsilon", "v_prediction", "sample", "flow"}),
    "schedulers": VARIANCE_PRESERVING | {FLOW_MATCHING},
}
