//! The transformers of a UNet, whose cross-attention reads the condition.

use tch::Tensor;

use super::config::Config;
use crate::denoiser::layers::{layer_norm, linear, linear_without_bias, normalised, pointwise};
use crate::error::Result;
use crate::nn::{attention, GroupNorm, LayerNorm, Linear, Path};

/// diffusers transformer_2d.py `Transformer2DModel` over images: norm, projection in, layers, projection out, residual.
pub struct Transformer2D {
    norm: GroupNorm,
    proj_in: Linear,
    layers: Vec<TransformerLayer>,
    proj_out: Linear,
}

impl Transformer2D {
    pub fn load(path: &Path, config: &Config, channels: i64, depth: usize, heads: i64) -> Result<Self> {
        let inner = heads * (channels / heads);
        let (proj_in, proj_out) = (path / "proj_in", path / "proj_out");
        let projection = if config.use_linear_projection { linear } else { pointwise };
        Ok(Transformer2D {
            norm: GroupNorm::load(
                &(path / "norm"),
                channels,
                config.norm_num_groups,
                config.attention_norm_eps.0,
            )?,
            proj_in: projection(&proj_in, channels, inner)?,
            layers: (0..depth)
                .map(|i| TransformerLayer::load(&(path / "transformer_blocks" / i), config, inner, heads))
                .collect::<Result<_>>()?,
            proj_out: projection(&proj_out, inner, channels)?,
        })
    }

    /// x (B, C, h, w), condition (B, S, D) -> (B, C, h, w).
    pub fn forward(&self, x: &Tensor, condition: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = x.size4()?;
        let pixels = self.norm.forward(x)?.f_flatten(2, 3)?.f_transpose(1, 2)?; // (B, h w, C)
        let mut hidden = self.proj_in.forward(&pixels)?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden, condition)?;
        }
        let out = self.proj_out.forward(&hidden)?.f_transpose(1, 2)?; // (B, C, h w)
        Ok(out.f_reshape([batch, channels, height, width])?.f_add(x)?)
    }
}

/// diffusers attention.py `BasicTransformerBlock` with layer norms: self-attention, cross-attention, feed-forward.
struct TransformerLayer {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: GegluFeedForward,
}

impl TransformerLayer {
    fn load(path: &Path, config: &Config, width: i64, heads: i64) -> Result<Self> {
        let norm = |name: &str| layer_norm(&(path / name), width, config.attention_norm_eps.1);
        Ok(TransformerLayer {
            norm1: norm("norm1")?,
            attn1: Attention::load(&(path / "attn1"), width, width, heads)?,
            norm2: norm("norm2")?,
            attn2: Attention::load(&(path / "attn2"), width, config.cross_attention_dim, heads)?,
            norm3: norm("norm3")?,
            ff: GegluFeedForward::load(&(path / "ff" / "net"), width)?,
        })
    }

    fn forward(&self, x: &Tensor, condition: &Tensor) -> Result<Tensor> {
        let normed = normalised(&self.norm1, x)?;
        let x = self.attn1.forward(&normed, &normed)?.f_add(x)?;
        let x = self.attn2.forward(&normalised(&self.norm2, &x)?, condition)?.f_add(&x)?;
        Ok(self.ff.forward(&normalised(&self.norm3, &x)?)?.f_add(&x)?)
    }
}

/// diffusers attention_processor.py `Attention`, without biases on its inputs.
struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: i64,
}

impl Attention {
    fn load(path: &Path, width: i64, context: i64, heads: i64) -> Result<Self> {
        Ok(Attention {
            to_q: linear_without_bias(&(path / "to_q"), width, width)?,
            to_k: linear_without_bias(&(path / "to_k"), context, width)?,
            to_v: linear_without_bias(&(path / "to_v"), context, width)?,
            to_out: linear(&(path / "to_out" / 0), width, width)?,
            heads,
        })
    }

    fn forward(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        let (query, key) = (self.to_q.forward(x)?, self.to_k.forward(context)?);
        self.to_out.forward(&attention(&query, &key, &self.to_v.forward(context)?, self.heads)?)
    }
}

/// diffusers attention.py `FeedForward` with GEGLU (arXiv 2002.05202): exact GELU, four times the width.
struct GegluFeedForward {
    proj: Linear,
    out: Linear,
    inner: i64,
}

impl GegluFeedForward {
    fn load(path: &Path, width: i64) -> Result<Self> {
        let inner = 4 * width;
        Ok(GegluFeedForward {
            proj: linear(&(path / 0 / "proj"), width, 2 * inner)?,
            out: linear(&(path / 2), inner, width)?,
            inner,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let both = self.proj.forward(x)?;
        let (value, gate) = (both.f_narrow(-1, 0, self.inner)?, both.f_narrow(-1, self.inner, self.inner)?);
        self.out.forward(&value.f_mul(&gate.f_gelu("none")?)?)
    }
}
