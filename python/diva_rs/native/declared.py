"""What is declared native: the classes of modules that a native network computes in the place of, and the
noise schedules that the core makes or takes.

The parity tests run over models in which each of these classes occurs, and over each of these schedules; what
occurs in none fails them.
"""

from collections.abc import Mapping

from diva_rs.diffusion.schedule import FLOW_MATCHING, VARIANCE_PRESERVING
from diva_rs.native import dit, families, unet_config, vae

# By the native network; full class names as `inspect.kind` gives them.
DECLARED: Mapping[str, frozenset[str]] = {
    "VisionTransformer": frozenset().union(*families.ALLOWED.values()),
    "UNet2DCondition": frozenset(unet_config.ALLOWED),
    "DiTTransformer2D": frozenset(dit.ALLOWED),
    "AutoencoderEncoder": frozenset(vae.ALLOWED),
}

# By diffusers' names: what a model predicts, and whose schedules are read.
SCHEDULES: Mapping[str, frozenset[str]] = {
    "predictions": frozenset({"epsilon", "v_prediction", "sample", "flow"}),
    "schedulers": VARIANCE_PRESERVING | {FLOW_MATCHING},
}
