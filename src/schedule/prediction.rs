//! What a denoiser predicts.

use crate::error::{DivaError, Result};

/// What the denoiser was trained to predict. Names and formulas of diffusers' `prediction_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Prediction {
    /// The noise `e`.
    Epsilon,
    /// `sqrt(abar) e - sqrt(1 - abar) x_0` (progressive distillation, arXiv 2202.00512 appendix D).
    V,
    /// The clean latents `x_0`.
    Sample,
    /// The velocity `e - x_0` of flow matching.
    Flow,
}

impl Prediction {
    pub const ALL: [Prediction; 4] =
        [Prediction::Epsilon, Prediction::V, Prediction::Sample, Prediction::Flow];

    pub fn name(self) -> &'static str {
        match self {
            Prediction::Epsilon => "epsilon",
            Prediction::V => "v_prediction",
            Prediction::Sample => "sample",
            Prediction::Flow => "flow",
        }
    }

    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join("\", \"");
            DivaError::config("schedule", format!("prediction_type \"{name}\" is not one of \"{names}\""))
        })
    }
}
