//! One transformer block: attention and feed-forward, each scaled, shifted and gated by timestep and label (adaLN-Zero,
//! arXiv 2212.09748 section 3.2).

use crate::torch::Tensor;

use super::config::{Config, Label};
use crate::denoiser::attention::Attention;
use crate::denoiser::embeddings::TimestepEmbedding;
use crate::denoiser::layers::{layer_norm, linear, narrowed};
use crate::error::Result;
use crate::nn::{Activation, LayerNorm, Linear, Path};

/// diffusers attention.py `BasicTransformerBlock` with `norm_type="ada_norm_zero"`.
pub struct Block {
    embedding: Embedding,
    modulation: Linear, // (W) -> (6 W)
    norm1: LayerNorm,
    attn1: Attention,
    norm3: LayerNorm,
    feed_in: Linear,
    activation: Activation,
    feed_out: Linear,
}

impl Block {
    pub fn load(path: &Path, config: &Config) -> Result<Self> {
        let (width, hidden) = (config.width, config.hidden);
        let (norm1, ff) = (path / "norm1", path / "ff" / "net");
        let (first, second, _) = config.norm_eps;
        let norm3 = if config.norm_elementwise_affine {
            layer_norm(&(path / "norm3"), width, second)?
        } else {
            LayerNorm::plain(width, second)
        };
        Ok(Block {
            embedding: Embedding::load(&(&norm1 / "emb"), config)?,
            modulation: linear(&(&norm1 / "linear"), width, 6 * width)?,
            norm1: LayerNorm::plain(width, first),
            attn1: Attention::load(&(path / "attn1"), width, width, config.heads, config.attention_bias)?,
            norm3,
            feed_in: linear(&(&ff / 0 / "proj"), width, hidden)?,
            activation: config.activation,
            feed_out: linear(&(&ff / 2), hidden, width)?,
        })
    }

    /// sinusoids (B, T), label (B, W) -> what modulates this block (B, W).
    pub fn embed(&self, sinusoids: &Tensor, label: &Tensor) -> Result<Tensor> {
        self.embedding.forward(sinusoids, label)
    }

    /// x (B, P, W), embedded (B, W) -> (B, P, W). Norms, modulation and sums in the dtype of `x`.
    pub fn forward(&self, x: &Tensor, embedded: &Tensor) -> Result<Tensor> {
        let parts = self.modulation.forward(&embedded.f_silu()?)?.f_unsqueeze(1)?; // (B, 1, 6 W)
        let width = self.norm1.width;
        let part = |i: i64| parts.f_narrow(2, i * width, width);
        let (shift, scale, gate) = (part(0)?, part(1)?, part(2)?);
        let normed = narrowed(&modulated(&self.norm1, x, &scale, &shift)?, &self.attn1.to_q.weight)?;
        let mixed = self.attn1.to_itself(&normed)?;
        let x = gate.f_mul(&mixed)?.f_add(x)?;
        let (shift, scale, gate) = (part(3)?, part(4)?, part(5)?);
        let normed = narrowed(&modulated(&self.norm3, &x, &scale, &shift)?, &self.feed_in.weight)?;
        let fed = self.feed_out.forward(&self.activation.forward(&self.feed_in.forward(&normed)?)?)?;
        Ok(gate.f_mul(&fed)?.f_add(&x)?)
    }
}

/// norm(x) (1 + scale) + shift, with scale and shift (B, 1, W).
pub fn modulated(norm: &LayerNorm, x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
    Ok(norm.forward(x)?.f_mul(&scale.f_add_scalar(1.0)?)?.f_add(shift)?)
}

/// diffusers embeddings.py `CombinedTimestepLabelEmbeddings`, with the label's embedding handed in.
struct Embedding {
    timestep_embedder: TimestepEmbedding,
    no_class: Option<Tensor>, // (1, W)
}

impl Embedding {
    fn load(path: &Path, config: &Config) -> Result<Self> {
        let table = path / "class_embedder" / "embedding_table";
        let table = table.get("weight", &[config.label_rows, config.width])?;
        let no_class = match config.label {
            Label::Replace => None,
            Label::Join => Some(table.f_narrow(0, config.num_classes, 1)?),
        };
        let (path, inputs) = (path / "timestep_embedder", config.time_channels);
        let timestep_embedder = TimestepEmbedding::load(&path, inputs, config.width, Activation::Silu)?;
        Ok(Embedding { timestep_embedder, no_class })
    }

    fn forward(&self, sinusoids: &Tensor, label: &Tensor) -> Result<Tensor> {
        let time = self.timestep_embedder.forward(sinusoids)?;
        Ok(match &self.no_class {
            None => time.f_add(label)?,
            Some(no_class) => time.f_add(&label.f_add(no_class)?)?,
        })
    }
}
