//! What the units of a UNet read beside the image.

use crate::torch::Tensor;

use crate::denoiser::KeysValues;

/// What every unit may read beside its input.
pub struct Given<'a> {
    /// (B, T), after the SiLU that every ResNet begins with.
    pub time: Tensor,
    /// (B, S, D): what is cross-attended.
    pub condition: Tensor,
    /// Positions behind those of the condition, as keys and values.
    pub text: Option<&'a KeysValues>,
}
