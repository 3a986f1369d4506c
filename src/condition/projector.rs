//! The trained projector from CLIP's joint space (D) to the width of the condition (C): DIVA's single linear
//! layer, or GenHancer's LayerNorm - Linear - GELU - Linear.

use tch::Tensor;

use super::norm;
use super::OP;
use crate::error::{DivaError, Result};

/// torch's default of `nn.LayerNorm`.
const EPS: f64 = 1e-5;

pub enum Projector {
    /// weight (C, D), bias (C,)
    Linear { weight: Tensor, bias: Option<Tensor> },
    /// LayerNorm (eps 1e-5) -> Linear (H, D) -> exact GELU -> Linear (C, H)
    Mlp {
        norm_weight: Tensor,
        norm_bias: Tensor,
        fc1_weight: Tensor,
        fc1_bias: Tensor,
        fc2_weight: Tensor,
        fc2_bias: Tensor,
    },
}

/// What [`Projector::backward`] needs of the forward pass.
pub(super) enum Saved {
    Linear { input: Tensor },
    Mlp { input: Tensor, stats: norm::Stats, normed: Tensor, before: Tensor, active: Tensor },
}

impl Projector {
    /// The same parameters, shared.
    pub fn shallow_clone(&self) -> Self {
        match self {
            Projector::Linear { weight, bias } => Projector::Linear {
                weight: weight.shallow_clone(),
                bias: bias.as_ref().map(Tensor::shallow_clone),
            },
            Projector::Mlp { norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias } => {
                Projector::Mlp {
                    norm_weight: norm_weight.shallow_clone(),
                    norm_bias: norm_bias.shallow_clone(),
                    fc1_weight: fc1_weight.shallow_clone(),
                    fc1_bias: fc1_bias.shallow_clone(),
                    fc2_weight: fc2_weight.shallow_clone(),
                    fc2_bias: fc2_bias.shallow_clone(),
                }
            }
        }
    }

    /// From the keys of an `nn.Linear` state (`weight`, `bias`) or of an `nn.Sequential(LayerNorm, Linear, GELU,
    /// Linear)` state (`0.weight`, `0.bias`, `1.weight`, `1.bias`, `3.weight`, `3.bias`).
    ///
    /// Errors: `Weights` for a missing or an unexpected key.
    pub fn from_named(named: Vec<(String, Tensor)>) -> Result<Self> {
        let is_mlp = named.iter().any(|(key, _)| key.contains('.'));
        let mut named = Named(named);
        let projector = if is_mlp {
            Projector::Mlp {
                norm_weight: named.take("0.weight")?,
                norm_bias: named.take("0.bias")?,
                fc1_weight: named.take("1.weight")?,
                fc1_bias: named.take("1.bias")?,
                fc2_weight: named.take("3.weight")?,
                fc2_bias: named.take("3.bias")?,
            }
        } else {
            Projector::Linear { weight: named.take("weight")?, bias: named.find("bias") }
        };
        match named.0.first() {
            None => Ok(projector),
            Some((key, tensor)) => Err(DivaError::Weights {
                op: OP,
                key: format!("projector.{key}"),
                what: format!(
                    "of shape {:?} is unexpected: a linear projector has `weight` and `bias`, an mlp has \
                     `0.weight`, `0.bias`, `1.weight`, `1.bias`, `3.weight` and `3.bias`",
                    tensor.size()
                ),
            }),
        }
    }

    /// Names as in a checkpoint, in a fixed order.
    pub(super) fn params(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Projector::Linear { weight, bias } => {
                let bias = bias.as_ref().map(|bias| ("projector.bias", bias));
                [Some(("projector.weight", weight)), bias].into_iter().flatten().collect()
            }
            Projector::Mlp { norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias } => vec![
                ("projector.0.weight", norm_weight),
                ("projector.0.bias", norm_bias),
                ("projector.1.weight", fc1_weight),
                ("projector.1.bias", fc1_bias),
                ("projector.3.weight", fc2_weight),
                ("projector.3.bias", fc2_bias),
            ],
        }
    }

    /// (rows, D) -> (rows, C)
    pub(super) fn forward(&self, input: Tensor) -> Result<(Tensor, Saved)> {
        match self {
            Projector::Linear { weight, bias } => {
                let output = input.f_linear(weight, bias.as_ref())?;
                Ok((output, Saved::Linear { input }))
            }
            Projector::Mlp { norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias } => {
                let (normed, stats) = norm::forward(&input, Some(norm_weight), Some(norm_bias), EPS)?;
                let before = normed.f_linear(fc1_weight, Some(fc1_bias))?;
                let active = before.f_gelu("none")?;
                let output = active.f_linear(fc2_weight, Some(fc2_bias))?;
                Ok((output, Saved::Mlp { input, stats, normed, before, active }))
            }
        }
    }

    /// The gradient of the input, and of each parameter in the order of [`Projector::params`].
    pub(super) fn backward(&self, saved: &Saved, grad: &Tensor) -> Result<(Tensor, Vec<Tensor>)> {
        match (self, saved) {
            (Projector::Linear { weight, bias }, Saved::Linear { input }) => {
                let mut params = vec![weight_grad(grad, input)?];
                if bias.is_some() {
                    params.push(norm::over_rows(grad)?);
                }
                Ok((grad.f_matmul(weight)?, params))
            }
            (
                Projector::Mlp { norm_weight, fc1_weight, fc2_weight, .. },
                Saved::Mlp { input, stats, normed, before, active },
            ) => {
                let d_before = before.f_gelu_backward(&grad.f_matmul(fc2_weight)?, "none")?;
                let back = norm::backward(input, stats, Some(norm_weight), &d_before.f_matmul(fc1_weight)?)?;
                let params = vec![
                    back.weight,
                    back.bias,
                    weight_grad(&d_before, normed)?,
                    norm::over_rows(&d_before)?,
                    weight_grad(grad, active)?,
                    norm::over_rows(grad)?,
                ];
                Ok((back.input, params))
            }
            _ => Err(DivaError::config(OP, "the tape was recorded with another kind of projector")),
        }
    }
}

/// Gradient of an `nn.Linear` weight (out, in).
fn weight_grad(grad: &Tensor, input: &Tensor) -> Result<Tensor> {
    Ok(grad.f_transpose(0, 1)?.f_matmul(input)?)
}

/// Tensors by name, each taken at most once.
struct Named(Vec<(String, Tensor)>);

impl Named {
    fn find(&mut self, key: &str) -> Option<Tensor> {
        let at = self.0.iter().position(|(name, _)| name == key)?;
        Some(self.0.swap_remove(at).1)
    }

    fn take(&mut self, key: &str) -> Result<Tensor> {
        self.find(key).ok_or_else(|| DivaError::Weights {
            op: OP,
            key: format!("projector.{key}"),
            what: "is missing from the projector".to_string(),
        })
    }
}
