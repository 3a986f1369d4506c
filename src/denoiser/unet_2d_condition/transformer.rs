//! The transformers of a UNet, whose cross-attention reads the condition.

use crate::torch::Tensor;

use super::config::Config;
use super::given::Given;
use crate::denoiser::attention::Attention;
use crate::denoiser::layers::{layer_norm, linear, narrowed, pointwise};
use crate::denoiser::KeysValues;
use crate::error::{DivaError, Result};
use crate::nn::{geglu, GroupNorm, LayerNorm, Linear, Path};

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

    /// In the order of the layers.
    pub fn attentions(&self) -> impl Iterator<Item = &CrossAttention> {
        self.layers.iter().map(|layer| &layer.attn2)
    }

    pub fn attentions_mut(&mut self) -> impl Iterator<Item = &mut CrossAttention> {
        self.layers.iter_mut().map(|layer| &mut layer.attn2)
    }

    /// x (B, C, h, w) -> (B, C, h, w), in the dtype of `x`. What lies between the projections has the dtype of their
    /// weights: its sums are few, and none of their roundings reaches the next block but as a part of one addend.
    pub fn forward(&self, x: &Tensor, given: &Given) -> Result<Tensor> {
        let (batch, channels, height, width) = x.size4()?;
        let kind = self.proj_in.weight.f_kind()?;
        let pixels = self.norm.forward(x)?.f_flatten(2, 3)?.f_transpose(1, 2)?; // (B, h w, C)
        let mut hidden = self.proj_in.narrowed(&pixels, kind)?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden, given)?;
        }
        // The sum takes the layout of `x`, which comes first: in that of `out`, channels last, every convolution to come
        // would rearrange its weights.
        let out = self.proj_out.forward(&hidden)?.f_transpose(1, 2)?; // (B, C, h w)
        Ok(x.f_add(&out.f_reshape([batch, channels, height, width])?)?)
    }
}

/// diffusers attention.py `BasicTransformerBlock` with layer norms: self-attention, cross-attention, feed-forward.
struct TransformerLayer {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: CrossAttention,
    norm3: LayerNorm,
    ff: GegluFeedForward,
}

impl TransformerLayer {
    fn load(path: &Path, config: &Config, width: i64, heads: i64) -> Result<Self> {
        let context = config.cross_attention_dim;
        let norm = |name: &str| layer_norm(&(path / name), width, config.attention_norm_eps.1);
        Ok(TransformerLayer {
            norm1: norm("norm1")?,
            attn1: Attention::load(&(path / "attn1"), width, width, heads, false)?,
            norm2: norm("norm2")?,
            attn2: CrossAttention {
                attention: Attention::load(&(path / "attn2"), width, context, heads, false)?,
                index: 0,
            },
            norm3: norm("norm3")?,
            ff: GegluFeedForward::load(&(path / "ff" / "net"), width)?,
        })
    }

    fn forward(&self, x: &Tensor, given: &Given) -> Result<Tensor> {
        let x = self.attn1.to_itself(&self.norm1.forward(x)?)?.f_add(x)?;
        let x = self.attn2.forward(&self.norm2.forward(&x)?, given)?.f_add(&x)?;
        Ok(self.ff.forward(&self.norm3.forward(&x)?)?.f_add(&x)?)
    }
}

/// Attention to the condition and, behind it, to a text whose keys and values are known.
pub struct CrossAttention {
    attention: Attention,
    /// Which of the network's cross-attentions this is.
    pub index: usize,
}

impl CrossAttention {
    /// Keys and values (B, L, W) of `text` (B, L, D).
    pub fn keys_values(&self, text: &Tensor) -> Result<(Tensor, Tensor)> {
        self.attention.keys_values(&narrowed(text, &self.attention.to_k.weight)?)
    }

    fn forward(&self, x: &Tensor, given: &Given) -> Result<Tensor> {
        let (mut key, mut value) = self.keys_values(&given.condition)?;
        if let Some(KeysValues(layers)) = given.text {
            let (keys, values) = layers.get(self.index).ok_or_else(|| {
                DivaError::config("UNet2DCondition", "the text was read by a network of fewer layers")
            })?;
            key = Tensor::f_cat(&[&key, &tiled(keys, x)?], 1)?;
            value = Tensor::f_cat(&[&value, &tiled(values, x)?], 1)?;
        }
        self.attention.forward(x, (key, value))
    }
}

/// (1 | B, L, W) for each image of `like` (n B, ...), which holds n draws of all B samples one after the other.
fn tiled(part: &Tensor, like: &Tensor) -> Result<Tensor> {
    let (samples, batch) = (part.size3()?.0, like.size3()?.0);
    if samples == 1 {
        return Ok(part.f_expand([batch, -1, -1], false)?);
    }
    if samples < 1 || batch % samples != 0 {
        let expected = format!("one for all, or one for each sample of {batch} images");
        return Err(DivaError::shape("UNet2DCondition", "text", part, expected));
    }
    Ok(part.f_repeat([batch / samples, 1, 1])?)
}

/// diffusers attention.py `FeedForward` with GEGLU (arXiv 2002.05202): exact GELU, four times the width.
struct GegluFeedForward {
    proj: Linear,
    out: Linear,
}

impl GegluFeedForward {
    fn load(path: &Path, width: i64) -> Result<Self> {
        let inner = 4 * width;
        Ok(GegluFeedForward {
            proj: linear(&(path / 0 / "proj"), width, 2 * inner)?,
            out: linear(&(path / 2), inner, width)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.out.forward(&geglu(&self.proj.narrowed(x, self.proj.weight.f_kind()?)?)?)
    }
}
