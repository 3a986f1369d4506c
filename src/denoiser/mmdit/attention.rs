//! Attention of two streams as one sequence, text first, or of one alone.

use crate::torch::{Kind, Tensor};

use super::config::{Config, QkNorm};
use super::rotary::Rotary;
use crate::denoiser::layers::{layer_norm, linear};
use crate::error::Result;
use crate::nn::{quick_attention, LayerNorm, Linear, Path};

/// Queries, keys and values of one stream.
pub struct Projections {
    layers: [Linear; 3],
    norms: Option<[HeadNorm; 2]>,
    heads: i64,
}

/// Keys of a stream's projections and of the norms of its queries and keys.
pub type Names = ([&'static str; 3], [&'static str; 2]);

pub const OWN: Names = (["to_q", "to_k", "to_v"], ["norm_q", "norm_k"]);
pub const ADDED: Names = (["add_q_proj", "add_k_proj", "add_v_proj"], ["norm_added_q", "norm_added_k"]);

impl Projections {
    pub fn load(path: &Path, (layers, norms): Names, config: &Config) -> Result<Self> {
        let width = config.width();
        let layer = |name: &str| linear(&(path / name), width, width);
        let norm = |name: &str, form| HeadNorm::load(&(path / name), form, config.head_width);
        let [query, key, value] = layers;
        let norms = match config.qk_norm {
            None => None,
            Some(form) => Some([norm(norms[0], form)?, norm(norms[1], form)?]),
        };
        Ok(Projections { layers: [layer(query)?, layer(key)?, layer(value)?], norms, heads: config.heads })
    }

    /// x (B, L, W) -> queries, keys and values (B, L, heads, d). Normalised ones are float32 or better.
    pub fn forward(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let [query, key, value] = &self.layers;
        let apart =
            |layer: &Linear| -> Result<Tensor> { Ok(layer.forward(x)?.f_unflatten(2, [self.heads, -1])?) };
        let (query, key, value) = (apart(query)?, apart(key)?, apart(value)?);
        Ok(match &self.norms {
            None => [query, key, value],
            Some([of_query, of_key]) => [of_query.forward(&query)?, of_key.forward(&key)?, value],
        })
    }
}

/// softmax(q k^T / sqrt(d)) v of (B, L, heads, d), turned by their positions -> (B, L, W) in the dtype of the values.
pub fn attend([query, key, value]: [Tensor; 3], rotary: Option<&Rotary>) -> Result<Tensor> {
    let heads = query.size4()?.2;
    let ready = |x: &Tensor| -> Result<Tensor> {
        let turned = rotary.map(|rotary| rotary.turn(x)).transpose()?;
        Ok(turned.as_ref().unwrap_or(x).f_to_kind(value.f_kind()?)?.f_flatten(2, 3)?)
    };
    quick_attention(&ready(&query)?, &ready(&key)?, &value.f_flatten(2, 3)?, heads)
}

/// The norm of the queries or keys of each head.
enum HeadNorm {
    Rms { weight: Tensor, eps: f64, float32: bool },
    Layer(LayerNorm),
}

impl HeadNorm {
    fn load(path: &Path, (form, eps): (QkNorm, f64), width: i64) -> Result<Self> {
        if form == QkNorm::Layer {
            return Ok(HeadNorm::Layer(layer_norm(path, width, eps)?));
        }
        Ok(HeadNorm::Rms { weight: path.get("weight", &[width])?, eps, float32: form == QkNorm::RmsFloat32 })
    }

    /// (B, L, heads, d) -> the same in float32 or better.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let wide = if x.f_kind()? == Kind::Double { x.shallow_clone() } else { x.f_to_kind(Kind::Float)? };
        match self {
            HeadNorm::Layer(norm) => norm.forward(&wide),
            HeadNorm::Rms { weight, eps, float32 } => {
                let weight = weight.f_to_kind(wide.f_kind()?)?;
                if !float32 || wide.f_kind()? == Kind::Float {
                    return Ok(wide.f_rms_norm(weight.size(), Some(weight), *eps)?);
                }
                let square = wide.f_to_kind(Kind::Float)?.f_square()?.f_mean_dim(-1, true, Kind::Float)?;
                Ok(wide.f_mul(&square.f_add_scalar(*eps)?.f_rsqrt()?)?.f_mul(&weight)?)
            }
        }
    }
}
