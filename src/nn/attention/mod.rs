//! Multi-head attention between projected queries, keys and values.

use crate::torch::{Device, Kind, Tensor};

use super::products::compute_of;
use crate::error::Result;

mod blocks; // by libtorch's products, in bf16
#[cfg(target_arch = "x86_64")]
mod flash; // without scores in memory, in AVX-512 or AVX2

/// Scores of one head that a graph may keep for its backward pass. Beyond the 4,096 tokens of a 64
/// x 64 latent their memory is dearer than the time that they save.
const KEPT: i64 = 1 << 24;

/// (B, L, heads * d) -> (B, heads, L, d).
pub fn split_heads(x: &Tensor, heads: i64) -> Result<Tensor> {
    let (batch, length, width) = x.size3()?;
    Ok(x.f_view([batch, length, heads, width / heads])?.f_transpose(1, 2)?)
}

/// (B, heads, L, d) -> (B, L, heads * d).
pub fn merge_heads(x: &Tensor) -> Result<Tensor> {
    let (batch, heads, length, width) = x.size4()?;
    Ok(x.f_transpose(1, 2)?.f_reshape([batch, length, heads * width])?)
}

/// softmax(q k^T / sqrt(d)) v over (B, L, width) inputs, `heads` at a time, through libtorch's
/// fused kernels.
pub fn attention(query: &Tensor, key: &Tensor, value: &Tensor, heads: i64) -> Result<Tensor> {
    let (query, key, value) =
        (split_heads(query, heads)?, split_heads(key, heads)?, split_heads(value, heads)?);
    let mixed = Tensor::f_scaled_dot_product_attention(
        &query,
        &key,
        &value,
        None::<&Tensor>,
        0.0,
        false,
        None,
        false,
    )?;
    merge_heads(&mixed)
}

/// [`attention`] in the way that is the fastest on a CPU (benches/results/profile-cpu.md): without
/// scores in memory where the processor has the vectors for it, otherwise by libtorch's matrix
/// products in bf16, and by its fused kernel where products are to be float32.
pub fn quick_attention(query: &Tensor, key: &Tensor, value: &Tensor, heads: i64) -> Result<Tensor> {
    let inputs = [query, key, value];
    #[cfg(target_arch = "x86_64")]
    if let Some(set) = flash::Set::of(inputs, heads)? {
        return flash::flash(set, query, key, value, heads);
    }
    let here = inputs.iter().all(|x| x.device() == Device::Cpu && x.f_kind().ok() == Some(Kind::BFloat16));
    if !here {
        return attention(query, key, value, heads);
    }
    let compute = compute_of(query)?;
    if compute != Kind::BFloat16 {
        let wide = |x: &Tensor| x.f_to_kind(compute);
        return Ok(attention(&wide(query)?, &wide(key)?, &wide(value)?, heads)?.f_to_kind(Kind::BFloat16)?);
    }
    let learns = inputs.iter().any(|x| x.requires_grad());
    if learns && query.size3()?.1 * key.size3()?.1 > KEPT {
        return attention(query, key, value, heads);
    }
    blocks::in_blocks(query, key, value, heads)
}

#[cfg(test)]
mod tests;
