//! The activations of CLIP towers and denoisers, by the names that their configurations use.

use tch::Tensor;

use crate::error::{DivaError, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "quick_gelu" => Ok(Activation::QuickGelu),
            "gelu" => Ok(Activation::Gelu),
            "gelu_tanh" | "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
            "silu" | "swish" => Ok(Activation::Silu),
            other => Err(DivaError::config(
                "activation",
                format!("unknown activation {other:?}: use quick_gelu, gelu, gelu_tanh or silu"),
            )),
        }
    }

    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Activation::QuickGelu => x.f_mul(&x.f_mul_scalar(1.702)?.f_sigmoid()?)?,
            Activation::Gelu => x.f_gelu("none")?,
            Activation::GeluTanh => x.f_gelu("tanh")?,
            Activation::Silu => x.f_silu()?,
        })
    }
}
