//! The precision of matrix products, by the names that configurations use.

use crate::torch::Kind;
use serde::Deserialize;

/// The precision of matrix products. The residual stream, the norms and the weights keep the weights' own precision
/// where that is the wider one, so gradients add up in the weights' own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compute {
    Fp32,
    Bf16,
    Fp64,
}

impl Compute {
    pub fn kind(self) -> Kind {
        match self {
            Compute::Fp32 => Kind::Float,
            Compute::Bf16 => Kind::BFloat16,
            Compute::Fp64 => Kind::Double,
        }
    }
}
