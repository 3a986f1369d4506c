//! The pre-norm transformer block: x + s1 attention(norm1(x)), then x + s2 mlp(norm2(x)).

use crate::torch::{Kind, Tensor};

use super::config::Config;
use super::layouts::{BlockNames, Projections};
use super::load;
use crate::error::{DivaError, Result};
use crate::nn::{quick_attention, Activation, LayerNorm, Linear, Path};

/// Linear, activation, linear.
pub struct Mlp {
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

/// Widths of a feed-forward layer and which of its two linear layers have a bias.
pub struct MlpSizes {
    pub inputs: i64,
    pub hidden: i64,
    pub outputs: i64,
    pub bias: (bool, bool),
}

impl Mlp {
    pub fn load(path: &Path, fc: (&str, &str), sizes: &MlpSizes, activation: Activation) -> Result<Self> {
        let fc1 = load::linear(&(path / fc.0), sizes.inputs, sizes.hidden, sizes.bias.0)?;
        let fc2 = load::linear(&(path / fc.1), sizes.hidden, sizes.outputs, sizes.bias.1)?;
        Ok(Mlp { fc1, fc2, activation })
    }

    /// In `compute`, of `x` of any dtype.
    pub fn forward(&self, x: &Tensor, compute: Kind) -> Result<Tensor> {
        self.fc2.forward(&self.activation.forward(&self.fc1.narrowed(x, compute)?)?)
    }
}

enum Qkv {
    Packed(Linear),
    Separate([Linear; 3]),
}

impl Qkv {
    fn load(path: &Path, names: &Projections, width: i64, bias: bool) -> Result<Self> {
        match names {
            Projections::Packed(weight, key) => {
                Ok(Qkv::Packed(load::pair(path, (weight, key), width, 3 * width, bias)?))
            }
            Projections::Separate([query, key, value]) => {
                let part = |name: &str| load::linear(&(path / name), width, width, bias);
                Ok(Qkv::Separate([part(query)?, part(key)?, part(value)?]))
            }
            Projections::Pair(..) => {
                Err(DivaError::config("VisionTransformer", "blocks have no separate query projection"))
            }
        }
    }

    /// (B, L, W) -> three of them in `compute`.
    fn forward(&self, x: &Tensor, compute: Kind) -> Result<[Tensor; 3]> {
        match self {
            Qkv::Separate([query, key, value]) => {
                let x = x.f_to_kind(compute)?;
                Ok([query.forward(&x)?, key.forward(&x)?, value.forward(&x)?])
            }
            Qkv::Packed(linear) => {
                let mut parts = linear.narrowed(x, compute)?.f_chunk(3, 2)?.into_iter(); // of (B, L, 3 W)
                match (parts.next(), parts.next(), parts.next()) {
                    (Some(query), Some(key), Some(value)) => Ok([query, key, value]),
                    _ => {
                        Err(DivaError::config("VisionTransformer", "queries, keys and values are not three"))
                    }
                }
            }
        }
    }
}

pub struct Block {
    norm1: LayerNorm,
    qkv: Qkv,
    out: Linear,
    norm2: LayerNorm,
    mlp: Mlp,
    scales: Option<(Tensor, Tensor)>,
    heads: i64,
}

impl Block {
    pub fn load(path: &Path, names: &BlockNames, config: &Config) -> Result<Self> {
        let (width, bias) = (config.width, config.bias);
        let sizes = MlpSizes { inputs: width, hidden: config.hidden, outputs: width, bias: (bias, bias) };
        Ok(Block {
            norm1: load::norm(&(path / names.norm1), width, config.eps)?,
            qkv: Qkv::load(path, &names.qkv, width, config.qkv_bias)?,
            out: load::linear(&(path / names.out), width, width, bias)?,
            norm2: load::norm(&(path / names.norm2), width, config.eps)?,
            mlp: Mlp::load(path, (names.fc1, names.fc2), &sizes, config.activation)?,
            scales: names
                .scales
                .filter(|_| config.layer_scale)
                .map(|(first, second)| {
                    Ok::<_, DivaError>((path.get(first, &[width])?, path.get(second, &[width])?))
                })
                .transpose()?,
            heads: config.heads,
        })
    }

    pub fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        let qkv = match &mut self.qkv {
            Qkv::Packed(linear) => std::slice::from_mut(linear),
            Qkv::Separate(linears) => linears,
        };
        qkv.iter_mut().chain([&mut self.out, &mut self.mlp.fc1, &mut self.mlp.fc2])
    }

    /// (B, L, W) -> (B, L, W) in the kind of `x`; the matrix products in `compute`.
    pub fn forward(&self, x: &Tensor, compute: Kind) -> Result<Tensor> {
        let [query, key, value] = self.qkv.forward(&self.norm1.forward(x)?, compute)?;
        let mixed = self.out.forward(&quick_attention(&query, &key, &value, self.heads)?)?;
        let x = add(x, &mixed, self.scales.as_ref().map(|(scale, _)| scale))?;
        let fed = self.mlp.forward(&self.norm2.forward(&x)?, compute)?;
        add(&x, &fed, self.scales.as_ref().map(|(_, scale)| scale))
    }
}

/// x + scale * branch, in the kind of `x`: the branch may be narrower.
fn add(x: &Tensor, branch: &Tensor, scale: Option<&Tensor>) -> Result<Tensor> {
    match scale {
        None => Ok(x.f_add(branch)?),
        Some(scale) => Ok(x.f_add(&branch.f_mul(scale)?)?),
    }
}
