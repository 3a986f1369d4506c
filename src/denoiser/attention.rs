//! diffusers attention_processor.py `Attention` with its projections, as transformers of denoisers have it.

use crate::torch::Tensor;

use super::layers::{linear, linear_without_bias};
use crate::error::Result;
use crate::nn::{quick_attention, Linear, Path};

pub struct Attention {
    pub to_q: Linear,
    pub to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: i64,
}

impl Attention {
    /// Of `width` channels to a sequence of `context` channels. `bias`: of queries, keys and values.
    pub fn load(path: &Path, width: i64, context: i64, heads: i64, bias: bool) -> Result<Self> {
        let projection = if bias { linear } else { linear_without_bias };
        Ok(Attention {
            to_q: projection(&(path / "to_q"), width, width)?,
            to_k: projection(&(path / "to_k"), context, width)?,
            to_v: projection(&(path / "to_v"), context, width)?,
            to_out: linear(&(path / "to_out" / 0), width, width)?,
            heads,
        })
    }

    /// Of a context (B, S, D): keys and values (B, S, W).
    pub fn keys_values(&self, context: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((self.to_k.forward(context)?, self.to_v.forward(context)?))
    }

    /// x (B, L, W) -> (B, L, W).
    pub fn forward(&self, x: &Tensor, (key, value): (Tensor, Tensor)) -> Result<Tensor> {
        self.to_out.forward(&quick_attention(&self.to_q.forward(x)?, &key, &value, self.heads)?)
    }

    /// Of a sequence to itself.
    pub fn to_itself(&self, x: &Tensor) -> Result<Tensor> {
        self.forward(x, self.keys_values(x)?)
    }
}
