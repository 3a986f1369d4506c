//! The trained projector from CLIP's joint space (D) to the width of the condition (C): DIVA's
//! single linear layer, or GenHancer's LayerNorm - Linear - GELU - Linear.

use crate::torch::Tensor;

use super::{layer_norm, OP};
use crate::error::{DivaError, Result};

/// torch's default of `nn.LayerNorm`.
const EPS: f64 = 1e-5;

pub enum Projector {
    /// There is no condition: the bridge is CLIP's head alone.
    None,
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

impl Projector {
    /// The same projector over what `make` makes of each parameter, in the order of
    /// [`Projector::params`].
    pub(super) fn map<E>(
        &self,
        make: &mut dyn FnMut(&Tensor) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Self, E> {
        Ok(match self {
            Projector::None => Projector::None,
            Projector::Linear { weight, bias } => {
                Projector::Linear { weight: make(weight)?, bias: bias.as_ref().map(make).transpose()? }
            }
            Projector::Mlp { norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias } => {
                Projector::Mlp {
                    norm_weight: make(norm_weight)?,
                    norm_bias: make(norm_bias)?,
                    fc1_weight: make(fc1_weight)?,
                    fc1_bias: make(fc1_bias)?,
                    fc2_weight: make(fc2_weight)?,
                    fc2_bias: make(fc2_bias)?,
                }
            }
        })
    }

    /// From the keys of an `nn.Linear` state (`weight`, `bias`) or of an `nn.Sequential(LayerNorm,
    /// Linear, GELU, Linear)` state (`0.weight`, `0.bias`, `1.weight`, `1.bias`, `3.weight`,
    /// `3.bias`), or none.
    ///
    /// Errors: `Weights` for a missing or an unexpected key.
    pub fn from_named(named: Vec<(String, Tensor)>) -> Result<Self> {
        if named.is_empty() {
            return Ok(Projector::None);
        }
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
            Some((key, tensor)) => Err(DivaError::weights(
                OP,
                format!("projector.{key}"),
                format!(
                    "of shape {:?} is unexpected: a linear projector has `weight` and `bias`, an mlp has \
                     `0.weight`, `0.bias`, `1.weight`, `1.bias`, `3.weight` and `3.bias`",
                    tensor.size()
                ),
            )),
        }
    }

    /// Names as in a checkpoint, in a fixed order.
    pub(super) fn params(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Projector::None => Vec::new(),
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

    /// (rows, D) -> (rows, C), recorded by autograd.
    pub(super) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        match self {
            Projector::None => Err(DivaError::config(OP, "there is no projector")),
            Projector::Linear { weight, bias } => Ok(input.f_linear(weight, bias.as_ref())?),
            Projector::Mlp { norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias } => {
                let normed = layer_norm(input, Some(norm_weight), Some(norm_bias), EPS)?;
                let hidden = normed.f_linear(fc1_weight, Some(fc1_bias))?.f_gelu("none")?;
                Ok(hidden.f_linear(fc2_weight, Some(fc2_bias))?)
            }
        }
    }
}

/// Tensors by name, each taken at most once.
struct Named(Vec<(String, Tensor)>);

impl Named {
    fn find(&mut self, key: &str) -> Option<Tensor> {
        let at = self.0.iter().position(|(name, _)| name == key)?;
        Some(self.0.swap_remove(at).1)
    }

    fn take(&mut self, key: &str) -> Result<Tensor> {
        self.find(key).ok_or_else(|| {
            DivaError::weights(OP, format!("projector.{key}"), "is missing from the projector")
        })
    }
}
