//! The activations of CLIP towers and denoisers, by the names that their configurations use.

use crate::torch::Tensor;
use serde::Deserialize;

use crate::error::Result;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x * sigmoid(1.702 x): OpenAI's CLIP.
    QuickGelu,
    /// The exact form, with erf.
    Gelu,
    /// The tanh approximation: transformers' SigLIP, DiT's feed-forward.
    GeluTanh,
    Silu,
}

impl Activation {
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Activation::QuickGelu => x.f_mul(&x.f_mul_scalar(1.702)?.f_sigmoid()?)?,
            Activation::Gelu => x.f_gelu("none")?,
            Activation::GeluTanh => x.f_gelu("tanh")?,
            Activation::Silu => x.f_silu()?,
        })
    }
}
