//! How one parameter moves. Few libtorch calls and at most one temporary per parameter: a CLIP tower has hundreds of
//! small ones.

use crate::torch::{Device, Kind, Tensor};

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

/// A method together with what it remembers of one parameter.
pub(super) enum Rule {
    Sgd { momentum: Option<Momentum> },
    AdamW { betas: (f64, f64), eps: f64, moments: Moments },
}

pub(super) struct Momentum {
    factor: f64,
    pub(super) buffer: Tensor,
}

pub(super) struct Moments {
    pub(super) step: i64,
    pub(super) exp_avg: Tensor,
    pub(super) exp_avg_sq: Tensor,
}

impl Rule {
    pub(super) fn new(method: &Method, param: &Tensor) -> Result<Self> {
        Ok(match *method {
            Method::Sgd { momentum } => {
                let buffer = (momentum != 0.0).then(|| param.f_zeros_like()).transpose()?;
                let momentum = buffer.map(|buffer| Momentum { factor: momentum, buffer });
                Rule::Sgd { momentum }
            }
            Method::AdamW { betas, eps } => {
                let moments =
                    Moments { step: 0, exp_avg: param.f_zeros_like()?, exp_avg_sq: param.f_zeros_like()? };
                Rule::AdamW { betas, eps, moments }
            }
        })
    }

    /// Moves `param` along `grad`, with a learning rate and a weight decay. To be called without autograd.
    pub(super) fn update(
        &mut self,
        param: &mut Tensor,
        grad: &Tensor,
        (lr, weight_decay): (f64, f64),
        scalars: &mut Scalars<'_>,
    ) -> Result<()> {
        match self {
            // torch/optim/sgd.py, _single_tensor_sgd: d = g + wd p; b = momentum b + d; p -= lr b
            Rule::Sgd { momentum: Some(Momentum { factor, buffer }) } => {
                scalars.scale(buffer, *factor)?;
                let _ = buffer.f_add_(grad)?;
                scalars.add_scaled(buffer, param, weight_decay)?;
                scalars.add_scaled(param, buffer, -lr)
            }
            // The same without a buffer: p -= lr wd p + lr g
            Rule::Sgd { momentum: None } => {
                scalars.scale(param, 1.0 - lr * weight_decay)?;
                scalars.add_scaled(param, grad, -lr)
            }
            // torch/optim/adam.py, _single_tensor_adam with decoupled_weight_decay
            Rule::AdamW { betas, eps, moments } => {
                moments.step += 1;
                let correction = |beta: f64| 1.0 - beta.powf(moments.step as f64);
                let (step_size, root) = (lr / correction(betas.0), correction(betas.1).sqrt());
                scalars.scale(param, 1.0 - lr * weight_decay)?;
                scalars.approach(&mut moments.exp_avg, grad, 1.0 - betas.0)?;
                // v += (1 - beta2) (g^2 - v): libtorch's lerp saves the pass that scales v.
                let mut scratch = grad.f_square()?;
                scalars.approach(&mut moments.exp_avg_sq, &scratch, 1.0 - betas.1)?;
                let _ = moments.exp_avg_sq.f_sqrt_out(&scratch)?;
                let _ = scratch.f_div_scalar_(root)?.f_add_scalar_(*eps)?;
                let _ = moments.exp_avg.f_div_out(&scratch, &scratch)?;
                scalars.add_scaled(param, &scratch, -step_size)
            }
        }
    }
}

/// Numbers as 0-dim tensors beside the parameters they multiply, each made once per step. tch's `add_` has no factor;
/// `addcmul_` with a 0-dim tensor is the same kernel without a temporary, and without a copy from the host. In a step
/// that is skipped each number is the one that changes nothing.
pub(super) struct Scalars<'a> {
    finite: Option<&'a Tensor>,
    made: Vec<(Device, Kind, f64, f64, Tensor)>,
}

impl<'a> Scalars<'a> {
    /// `finite` (0-dim bool): whether this step is one at all. `None`: it is.
    pub(super) fn new(finite: Option<&'a Tensor>) -> Self {
        Scalars { finite, made: Vec::new() }
    }

    /// Sets a gradient that is to be skipped to zero: a factor of 0 would leave its NaN.
    pub(super) fn clean(&self, grad: &mut Tensor) -> Result<()> {
        if let Some(finite) = self.finite {
            let skipped = finite.f_logical_not()?;
            let skipped = if skipped.device() == grad.device() {
                skipped
            } else {
                skipped.f_to_other(grad, true, false)?.f_to_kind(Kind::Bool)?
            };
            let _ = grad.f_masked_fill_(&skipped, 0.0)?;
        }
        Ok(())
    }

    /// target += factor * other
    fn add_scaled(&mut self, target: &mut Tensor, other: &Tensor, factor: f64) -> Result<()> {
        if factor != 0.0 && target.numel() != 0 {
            let factor = self.scalar(target, factor, 0.0)?;
            let _ = target.f_addcmul_(other, &factor)?;
        }
        Ok(())
    }

    /// target *= factor
    fn scale(&mut self, target: &mut Tensor, factor: f64) -> Result<()> {
        if factor != 1.0 && target.numel() != 0 {
            let factor = self.scalar(target, factor, 1.0)?;
            let _ = target.f_mul_(&factor)?;
        }
        Ok(())
    }

    /// target += weight * (other - target)
    fn approach(&mut self, target: &mut Tensor, other: &Tensor, weight: f64) -> Result<()> {
        if target.numel() != 0 {
            let weight = self.scalar(target, weight, 0.0)?;
            let _ = target.f_lerp_tensor_(other, &weight)?;
        }
        Ok(())
    }

    /// `value` where this is a step, otherwise `neutral`; as `target` is.
    fn scalar(&mut self, target: &Tensor, value: f64, neutral: f64) -> Result<Tensor> {
        let (device, kind) = (target.device(), target.f_kind()?);
        let same = |(d, k, v, n, _): &&(Device, Kind, f64, f64, Tensor)| {
            *d == device && *k == kind && *v == value && *n == neutral
        };
        if let Some((.., scalar)) = self.made.iter().find(same) {
            return Ok(scalar.shallow_clone());
        }
        // A view of the first element has the device and kind to fill in, on the meta device too.
        let first = target.f_as_strided([0i64; 0], [0i64; 0], None)?;
        let mut scalar = first.f_full_like(value)?;
        if let Some(finite) = self.finite {
            let finite = finite.f_to_other(&scalar, true, false)?; // 1 or 0, as the scalar is
            scalar = scalar.f_where_self(&finite.f_to_kind(Kind::Bool)?, &first.f_full_like(neutral)?)?;
        }
        self.made.push((device, kind, value, neutral, scalar.shallow_clone()));
        Ok(scalar)
    }
}
