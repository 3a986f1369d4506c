//! diffusers attention_processor.py `Attention` with its projections, as transformers of denoisers have it.

use crate::torch::{Device, Tensor};

use super::layers::{linear, linear_without_bias, narrowed};
use crate::error::{DivaError, Result};
use crate::nn::{quick_attention, Linear, Path};

pub struct Attention {
    pub to_q: Linear,
    pub to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: i64,
    packed: Option<Packed>,
}

/// Projections of one input as one product: fewer launches, at the price of a second copy of their weights.
struct Packed {
    /// Queries, keys and values, where all are of one width.
    all: Option<Linear>,
    keys_values: Linear,
}

impl Attention {
    /// Of `width` channels to a sequence of `context` channels. `bias`: of queries, keys and values.
    pub fn load(path: &Path, width: i64, context: i64, heads: i64, bias: bool) -> Result<Self> {
        let projection = if bias { linear } else { linear_without_bias };
        let mut attention = Attention {
            to_q: projection(&(path / "to_q"), width, width)?,
            to_k: projection(&(path / "to_k"), context, width)?,
            to_v: projection(&(path / "to_v"), context, width)?,
            to_out: linear(&(path / "to_out" / 0), width, width)?,
            heads,
            packed: None,
        };
        if attention.to_q.weight.device() != Device::Cpu {
            attention.pack()?;
        }
        Ok(attention)
    }

    fn pack(&mut self) -> Result<()> {
        let (width, context) = self.to_k.weight.size2()?;
        let all = joined(&[&self.to_q, &self.to_k, &self.to_v], width == context)?;
        let keys_values = match &all {
            Some(Linear { weight, bias, .. }) => {
                let rows = |all: &Tensor| all.f_narrow(0, width, 2 * width);
                Some(Linear::new(rows(weight)?, bias.as_ref().map(rows).transpose()?))
            }
            None => joined(&[&self.to_k, &self.to_v], true)?,
        };
        self.packed = keys_values.map(|keys_values| Packed { all, keys_values });
        Ok(())
    }

    /// Of a context (B, S, D): keys and values (B, S, W).
    pub fn keys_values(&self, context: &Tensor) -> Result<(Tensor, Tensor)> {
        if let Some(packed) = &self.packed {
            let both = packed.keys_values.forward(context)?;
            let [key, value] = parts(&both)?;
            return Ok((key, value));
        }
        Ok((self.to_k.forward(context)?, self.to_v.forward(context)?))
    }

    /// x (B, L, W), of any dtype -> (B, L, W) in the dtype of the weights.
    pub fn forward(&self, x: &Tensor, (key, value): (Tensor, Tensor)) -> Result<Tensor> {
        let query = self.to_q.narrowed(x, self.to_q.weight.f_kind()?)?;
        self.mixed(&query, &key, &value)
    }

    /// Of a sequence to itself.
    pub fn to_itself(&self, x: &Tensor) -> Result<Tensor> {
        if let Some(Packed { all: Some(all), .. }) = &self.packed {
            let all = all.narrowed(x, all.weight.f_kind()?)?;
            let [query, key, value] = parts(&all)?;
            return self.mixed(&query, &key, &value);
        }
        let x = narrowed(x, &self.to_q.weight)?;
        self.forward(&x, self.keys_values(&x)?)
    }

    fn mixed(&self, query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor> {
        self.to_out.forward(&quick_attention(query, key, value, self.heads)?)
    }
}

/// N equal parts of the last dimension of x (B, L, N W), whose gradients are put together by one operation.
fn parts<const N: usize>(x: &Tensor) -> Result<[Tensor; N]> {
    let unequal =
        |_: Vec<Tensor>| DivaError::shape("attention", "packed projections", x, format!("(B, L, {N} W)"));
    x.f_chunk(N as i64, 2)?.try_into().map_err(unequal)
}

/// One layer whose outputs are those of all.
fn joined(layers: &[&Linear], alike: bool) -> Result<Option<Linear>> {
    if !alike {
        return Ok(None);
    }
    let weights: Vec<&Tensor> = layers.iter().map(|layer| &layer.weight).collect();
    let biases: Vec<&Tensor> = layers.iter().filter_map(|layer| layer.bias.as_ref()).collect();
    let bias = if biases.is_empty() { None } else { Some(Tensor::f_cat(&biases, 0)?) };
    Ok(Some(Linear::new(Tensor::f_cat(&weights, 0)?, bias)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Store;
    use crate::torch::{Kind, Tensor};

    fn randn(size: &[i64]) -> Tensor {
        Tensor::randn(size, (Kind::Double, Device::Cpu))
    }

    #[test]
    fn packed_projections_are_the_projections() -> Result<()> {
        crate::torch::manual_seed(0);
        let width = 8;
        for (context, bias) in [(8, false), (8, true), (6, false)] {
            let mut weights = Vec::new();
            for (name, inputs) in [("to_q", width), ("to_k", context), ("to_v", context), ("to_out.0", width)]
            {
                weights.push((format!("{name}.weight"), randn(&[width, inputs])));
                weights.push((format!("{name}.bias"), randn(&[width])));
            }
            let store = Store::new(weights);
            let mut attention = Attention::load(&store.root(), width, context, 2, bias)?;
            let x = randn(&[2, 5, width]).set_requires_grad(true);
            let y = randn(&[2, 3, context]).set_requires_grad(true);
            let mut found = Vec::new();
            for _ in 0..2 {
                let to_another = attention.forward(&x, attention.keys_values(&y)?)?;
                let sum =
                    if context == width { to_another.f_add(&attention.to_itself(&x)?)? } else { to_another };
                let loss = sum.f_square()?.f_sum(Kind::Double)?;
                let mut parts = Tensor::f_run_backward(&[&loss], &[&x, &y], false, false)?;
                parts.push(sum.detach());
                found.push(parts);
                attention.pack()?;
            }
            for (ours, theirs) in found[0].iter().zip(&found[1]) {
                let off = ours.f_sub(theirs)?.f_norm()?.f_div(&theirs.f_norm()?)?.f_double_value(&[])?;
                assert!(off < 1e-13, "{off}");
            }
        }
        Ok(())
    }
}
