//! Linear, convolution, norms, embedding.

use tch::{Kind, Tensor};

use super::weights::Path;
use crate::error::Result;

/// `weight` in the dtype of `input`: a cast inside the graph, or the weight itself.
fn like(weight: &Tensor, input: &Tensor) -> Result<Tensor> {
    Ok(weight.f_to_kind(input.f_kind()?)?)
}

fn maybe_like(weight: &Option<Tensor>, input: &Tensor) -> Result<Option<Tensor>> {
    weight.as_ref().map(|weight| like(weight, input)).transpose()
}

/// torch.nn.Linear: weight (out, in).
pub struct Linear {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
}

impl Linear {
    /// With a bias where the checkpoint has one.
    pub fn load(path: &Path, inputs: i64, outputs: i64) -> Result<Self> {
        let weight = path.get("weight", &[outputs, inputs])?;
        Ok(Linear { weight, bias: path.maybe("bias", &[outputs])? })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_linear(&like(&self.weight, x)?, maybe_like(&self.bias, x)?)?)
    }
}

/// torch.nn.Conv2d: weight (out, in, kernel, kernel), no dilation, no groups.
pub struct Conv2d {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
    pub stride: i64,
    pub padding: i64,
}

impl Conv2d {
    pub fn load(path: &Path, channels: (i64, i64), kernel: i64, stride: i64, padding: i64) -> Result<Self> {
        let weight = path.get("weight", &[channels.1, channels.0, kernel, kernel])?;
        Ok(Conv2d { weight, bias: path.maybe("bias", &[channels.1])?, stride, padding })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        Ok(x.f_conv2d(&like(&self.weight, x)?, maybe_like(&self.bias, x)?, stride, padding, [1, 1], 1)?)
    }
}

/// torch.nn.LayerNorm over the last dimension. Half precisions are normalised in float32, as autocast does.
pub struct LayerNorm {
    pub weight: Option<Tensor>,
    pub bias: Option<Tensor>,
    pub width: i64,
    pub eps: f64,
}

impl LayerNorm {
    pub fn load(path: &Path, width: i64, eps: f64) -> Result<Self> {
        Ok(LayerNorm {
            weight: Some(path.get("weight", &[width])?),
            bias: path.maybe("bias", &[width])?,
            width,
            eps,
        })
    }

    /// Without weights (`elementwise_affine=False`).
    pub fn plain(width: i64, eps: f64) -> Self {
        LayerNorm { weight: None, bias: None, width, eps }
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let kind = x.f_kind()?;
        let wide = if kind == Kind::Double { x.shallow_clone() } else { x.f_to_kind(Kind::Float)? };
        let (weight, bias) = (maybe_like(&self.weight, &wide)?, maybe_like(&self.bias, &wide)?);
        Ok(wide.f_layer_norm([self.width], weight, bias, self.eps, true)?.f_to_kind(kind)?)
    }
}

/// torch.nn.GroupNorm over (B, C, ...).
pub struct GroupNorm {
    pub weight: Tensor,
    pub bias: Tensor,
    pub groups: i64,
    pub eps: f64,
}

impl GroupNorm {
    pub fn load(path: &Path, channels: i64, groups: i64, eps: f64) -> Result<Self> {
        let (weight, bias) = (path.get("weight", &[channels])?, path.get("bias", &[channels])?);
        Ok(GroupNorm { weight, bias, groups, eps })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (like(&self.weight, x)?, like(&self.bias, x)?);
        Ok(x.f_group_norm(self.groups, Some(weight), Some(bias), self.eps, true)?)
    }
}

/// torch.nn.Embedding: weight (count, width).
pub struct Embedding {
    pub weight: Tensor,
}

impl Embedding {
    pub fn load(path: &Path, count: i64, width: i64) -> Result<Self> {
        Ok(Embedding { weight: path.get("weight", &[count, width])? })
    }

    pub fn forward(&self, indices: &Tensor) -> Result<Tensor> {
        Ok(Tensor::f_embedding(&self.weight, indices, -1, false, false)?)
    }
}
