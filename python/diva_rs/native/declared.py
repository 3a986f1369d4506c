"""What is declared native: the classes of modules that a native network computes, and the noise schedules.

The parity tests fail for a class or a schedule that occurs in none of their models.
"""

from collections.abc import Mapping

from diva_rs.diffusion.schedule import FLOW_MATCHING, VARIANCE_PRESERVING
from diva_rs.native import dit, layouts, unet, vae

# By the kind of `_native.Network`; full class names as `inspect.class_path` gives them.
DECLARED: Mapping[str, frozenset[str]] = {
    "vision_transformer": frozenset().union(*layouts.ALLOWED.values()),
    "unet_2d_condition": frozenset(unet.ALLOWED),
    "dit": frozenset(dit.ALLOWED),
    "autoencoder_kl_encoder": frozenset(vae.ALLOWED),
}

# By diffusers' names: what a model predicts, and whose schedules are read.
SCHEDULES: Mapping[str, frozenset[str]] = {
    "predictions": frozenset({"epsilon", "v_prediction", "sample", "flow"}),
    "schedulers": VARIANCE_PRESERVING | {FLOW_MATCHING},
}
