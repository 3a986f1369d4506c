"""What is declared native: every class of module that a native network computes in the place of.

The parity tests run over models in which each of these classes occurs; one that occurs in none fails them.
"""

from collections.abc import Mapping

from diva_rs.native import dit, families, unet_config, vae

# By the native network; full class names as `inspect.kind` gives them.
DECLARED: Mapping[str, frozenset[str]] = {
    "VisionTransformer": frozenset().union(*families.ALLOWED.values()),
    "UNet2DCondition": frozenset(unet_config.ALLOWED),
    "DiTTransformer2D": frozenset(dit.ALLOWED),
    "AutoencoderEncoder": frozenset(vae.ALLOWED),
}
