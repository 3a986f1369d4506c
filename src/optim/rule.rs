//! The update rules, and what they remember of a parameter.

use crate::torch::Tensor;

use super::in_range;
use crate::error::{DivaError, Result};

/// The update rule and its hyper-parameters, named as in torch.optim.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    Sgd { momentum: f64 },
    AdamW { betas: (f64, f64), eps: f64 },
}

impl Method {
    pub const NAMES: [&'static str; 2] = ["sgd", "adamw"];

    /// The ranges of torch.optim; NaN, infinity and the absurdly large are refused.
    pub(super) fn validate(&self) -> Result<()> {
        const OP: &str = "Optimizer";
        match *self {
            Method::Sgd { momentum } => in_range(OP, "momentum", momentum),
            Method::AdamW { betas, eps } => {
                for (name, beta) in [("betas[0]", betas.0), ("betas[1]", betas.1)] {
                    if !(0.0..1.0).contains(&beta) {
                        let what = format!("{name} is {beta}: it must be at least 0 and less than 1");
                        return Err(DivaError::config(OP, what));
                    }
                }
                in_range(OP, "eps", eps)
            }
        }
    }
}

/// What a method remembers of one parameter.
pub(super) enum Memory {
    /// SGD's buffer, where it has momentum.
    Sgd(Option<Tensor>),
    AdamW(Moments),
}

pub(super) struct Moments {
    pub(super) step: i64,
    pub(super) exp_avg: Tensor,
    pub(super) exp_avg_sq: Tensor,
}

impl Memory {
    pub(super) fn new(method: &Method, param: &Tensor) -> Result<Self> {
        Ok(match *method {
            Method::Sgd { momentum } => {
                Memory::Sgd((momentum != 0.0).then(|| param.f_zeros_like()).transpose()?)
            }
            Method::AdamW { .. } => {
                let (exp_avg, exp_avg_sq) = (param.f_zeros_like()?, param.f_zeros_like()?);
                Memory::AdamW(Moments { step: 0, exp_avg, exp_avg_sq })
            }
        })
    }
}
