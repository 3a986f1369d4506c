//! Multi-head attention pooling: a learned query attends to all patches, then a feed-forward layer (SigLIP).
//!
//! timm/layers/attention_pool.py (AttentionPoolLatent), transformers/models/siglip/modeling_siglip.py
//! (SiglipMultiheadAttentionPoolingHead).

use crate::torch::{Kind, Tensor};

use super::blocks::{Mlp, MlpSizes};
use super::config::Config;
use super::layouts::{PoolNames, Projections};
use super::load;
use crate::error::{DivaError, Result};
use crate::nn::{quick_attention, LayerNorm, Linear, Path};

enum Source {
    /// Queries, keys and values in one matrix, in that order.
    Packed(Linear),
    Pair {
        query: Linear,
        key_value: Linear,
    },
}

pub struct MapHead {
    query: Tensor, // (1, 1, W)
    source: Source,
    out: Linear,
    norm: LayerNorm,
    mlp: Mlp,
    heads: i64,
    width: i64,
}

impl MapHead {
    pub fn load(path: &Path, names: &PoolNames, config: &Config) -> Result<Self> {
        let width = config.width;
        let source = match names.projections {
            Projections::Packed(weight, bias) => {
                Source::Packed(load::pair(path, (weight, bias), width, 3 * width, config.qkv_bias)?)
            }
            Projections::Pair(query, key_value) => Source::Pair {
                query: load::linear(&(path / query), width, width, config.qkv_bias)?,
                key_value: load::linear(&(path / key_value), width, 2 * width, config.qkv_bias)?,
            },
            Projections::Separate(_) => {
                return Err(DivaError::config("VisionTransformer", "no pooling head has three projections"))
            }
        };
        let sizes = MlpSizes {
            inputs: width,
            hidden: config.hidden,
            outputs: width,
            bias: (config.bias, config.bias),
        };
        Ok(MapHead {
            query: path.get(names.query, &[1, 1, width])?,
            source,
            out: load::linear(&(path / names.out), width, width, config.bias)?,
            norm: load::norm(&(path / names.norm), width, config.eps)?,
            mlp: Mlp::load(path, (names.fc1, names.fc2), &sizes, config.activation)?,
            heads: config.heads,
            width,
        })
    }

    /// (B, P, W) -> (B, 1, W) in the kind of `x`; the matrix products in `compute`.
    pub fn forward(&self, x: &Tensor, compute: Kind) -> Result<Tensor> {
        let (batch, kind) = (x.size3()?.0, x.kind());
        let x = x.f_to_kind(compute)?;
        let probe = self.query.f_to_kind(compute)?;
        let (query, key_value) = match &self.source {
            Source::Pair { query, key_value } => (query.forward(&probe)?, key_value.forward(&x)?),
            Source::Packed(packed) => (
                part(packed, 0, self.width)?.forward(&probe)?,
                part(packed, self.width, 2 * self.width)?.forward(&x)?,
            ),
        };
        // The query is the same for every image: projected once, and its gradient is the sum over the batch.
        let query = query.f_expand([batch, -1, -1], false)?;
        let (key, value) =
            (key_value.f_narrow(2, 0, self.width)?, key_value.f_narrow(2, self.width, self.width)?);
        let pooled =
            self.out.forward(&quick_attention(&query, &key, &value, self.heads)?)?.f_to_kind(kind)?;
        let fed = self.mlp.forward(&self.norm.forward(&pooled)?, compute)?;
        Ok(pooled.f_add(&fed)?)
    }
}

/// `rows` outputs of a linear layer from `start` on. Taken at every forward pass: a view is part of the graph.
fn part(linear: &Linear, start: i64, rows: i64) -> Result<Linear> {
    let bias = linear.bias.as_ref().map(|bias| bias.f_narrow(0, start, rows)).transpose()?;
    Ok(Linear::new(linear.weight.f_narrow(0, start, rows)?, bias))
}
