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

# By diffusers' names: how betas are made, each with and without a zero terminal SNR; what a model predicts;
# whose schedules are taken over. A flow-matching scheduler has sigmas in the place of betas.
SCHEDULES: Mapping[str, frozenset[str]] = {
    "betas": frozenset(
        {"linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp", "trained_betas"}
    ),
    "predictions": frozenset({"epsilon", "v_prediction", "sample", "flow"}),
    "schedulers": VARIANCE_PRESERVING | {FLOW_MATCHING},
}
