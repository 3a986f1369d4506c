//! The trained projector from CLIP's joint space (D) to the width of the condition (C): DIVA's
//! single linear layer, GenHancer's LayerNorm - Linear - GELU - Linear, or none; one for each slot
//! of the denoiser whose slots have widths of their own.

use crate::torch::Tensor;

use super::{layer_norm, OP};
use crate::error::{DivaError, Result};

/// torch's default of `nn.LayerNorm`.
const EPS: f64 = 1e-5;

/// Names in a checkpoint: weight and bias of a linear projector, then those of an mlp's norm and
/// its two linear layers.
type Keys = [&'static str; 8];

macro_rules! keys {
    ($slot:literal) => {
        [
            concat!("projector.", $slot, "weight"),
            concat!("projector.", $slot, "bias"),
            concat!("projector.", $slot, "0.weight"),
            concat!("projector.", $slot, "0.bias"),
            concat!("projector.", $slot, "1.weight"),
            concat!("projector.", $slot, "1.bias"),
            concat!("projector.", $slot, "3.weight"),
            concat!("projector.", $slot, "3.bias"),
        ]
    };
}

const SHARED: Keys = keys!("");
const SLOTS: [(&str, Keys); 2] = [("tokens.", keys!("tokens.")), ("pooled.", keys!("pooled."))];

/// Maps of one input, whose outputs stand side by side: one, one for each slot, or none, where the
/// embedding itself is the condition.
pub struct Projector(Vec<(Keys, Map)>);

/// (rows, D) -> (rows, C)
pub enum Map {
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
    /// The embedding itself is the condition.
    pub const IDENTITY: Projector = Projector(Vec::new());

    /// One map for all slots.
    pub fn shared(map: Map) -> Self {
        Projector(vec![(SHARED, map)])
    }

    /// The same projector over what `make` makes of each parameter, in the order of
    /// [`Projector::params`].
    pub(super) fn map<E>(
        &self,
        make: &mut dyn FnMut(&Tensor) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Self, E> {
        let maps = self.0.iter().map(|(keys, map)| Ok((*keys, map.map(make)?)));
        Ok(Projector(maps.collect::<std::result::Result<_, E>>()?))
    }

    /// From the keys of an `nn.Linear` state (`weight`, `bias`) or of an `nn.Sequential(LayerNorm,
    /// Linear, GELU, Linear)` state (`0.weight`, `0.bias`, `1.weight`, `1.bias`, `3.weight`,
    /// `3.bias`); from two such states under `tokens.` and `pooled.`; or from none.
    ///
    /// Errors: `Weights` for a missing or an unexpected key.
    pub fn from_named(named: Vec<(String, Tensor)>) -> Result<Self> {
        if named.is_empty() {
            return Ok(Projector::IDENTITY);
        }
        let mut named = Named(named);
        let two = named.0.iter().any(|(key, _)| SLOTS.iter().any(|(slot, _)| key.starts_with(slot)));
        let maps = if two {
            SLOTS.into_iter().map(|(slot, keys)| Ok((keys, named.map(slot)?))).collect::<Result<_>>()?
        } else {
            vec![(SHARED, named.map("")?)]
        };
        match named.0.first() {
            None => Ok(Projector(maps)),
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

    /// Each map with the names of its parameters.
    pub(super) fn maps(&self) -> &[(Keys, Map)] {
        &self.0
    }

    /// Names as in a checkpoint, in a fixed order.
    pub(super) fn params(&self) -> Vec<(&'static str, &Tensor)> {
        self.0.iter().flat_map(|(keys, map)| map.params(keys)).collect()
    }

    /// (rows, D) -> (rows, C), recorded by autograd.
    pub(super) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        Ok(match self.0.as_slice() {
            [] => input.shallow_clone(),
            [(_, map)] => map.forward(input)?,
            maps => {
                let parts = maps.iter().map(|(_, map)| map.forward(input)).collect::<Result<Vec<_>>>()?;
                Tensor::f_cat(&parts, 1)?
            }
        })
    }
}

impl Map {
    fn map<E>(
        &self,
        make: &mut dyn FnMut(&Tensor) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Self, E> {
        Ok(match self {
            Map::Linear { weight, bias } => {
                Map::Linear { weight: make(weight)?, bias: bias.as_ref().map(make).transpose()? }
            }
            Map::Mlp { norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias } => Map::Mlp {
                norm_weight: make(norm_weight)?,
                norm_bias: make(norm_bias)?,
                fc1_weight: make(fc1_weight)?,
                fc1_bias: make(fc1_bias)?,
                fc2_weight: make(fc2_weight)?,
                fc2_bias: make(fc2_bias)?,
            },
        })
    }

    fn params(&self, keys: &Keys) -> Vec<(&'static str, &Tensor)> {
        let [weight_key, bias_key, mlp @ ..] = *keys;
        match self {
            Map::Linear { weight, bias } => {
                let bias = bias.as_ref().map(|bias| (bias_key, bias));
                [Some((weight_key, weight)), bias].into_iter().flatten().collect()
            }
            Map::Mlp { norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias } => {
                let params = [norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias];
                mlp.into_iter().zip(params).collect()
            }
        }
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        match self {
            Map::Linear { weight, bias } => Ok(input.f_linear(weight, bias.as_ref())?),
            Map::Mlp { norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias } => {
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
    /// The map whose keys begin with `slot`.
    fn map(&mut self, slot: &str) -> Result<Map> {
        let is_mlp =
            self.0.iter().any(|(key, _)| key.strip_prefix(slot).is_some_and(|key| key.contains('.')));
        let mut take = |key: &str| {
            let key = format!("{slot}{key}");
            self.find(&key).ok_or_else(|| {
                DivaError::weights(OP, format!("projector.{key}"), "is missing from the projector")
            })
        };
        if !is_mlp {
            return Ok(Map::Linear { weight: take("weight")?, bias: self.find(&format!("{slot}bias")) });
        }
        Ok(Map::Mlp {
            norm_weight: take("0.weight")?,
            norm_bias: take("0.bias")?,
            fc1_weight: take("1.weight")?,
            fc1_bias: take("1.bias")?,
            fc2_weight: take("3.weight")?,
            fc2_bias: take("3.bias")?,
        })
    }

    fn find(&mut self, key: &str) -> Option<Tensor> {
        let at = self.0.iter().position(|(name, _)| name == key)?;
        Some(self.0.swap_remove(at).1)
    }
}
