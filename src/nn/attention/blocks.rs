//! Attention by libtorch's matrix products, some scores at a time. In bf16 its fused CPU kernel
//! takes 1.4 to 1.9 times as long for 256 to 4,096 tokens, and four times as long for 64.

use crate::torch::{no_grad_guard, Tensor};

use super::{merge_heads, split_heads};
use crate::error::Result;

/// Scores that are computed at a time: 4 MiB of bf16, which the caches hold from one pass to the
/// next.
const BLOCK: i64 = 1 << 21;
/// The largest score of a query is estimated from this many keys, or an eighth of all where that is
/// more.
const SAMPLE: i64 = 64;

/// softmax(q k^T / sqrt(d)) v over (B, L, heads * d) inputs.
pub fn in_blocks(query: &Tensor, key: &Tensor, value: &Tensor, heads: i64) -> Result<Tensor> {
    let batch = query.size3()?.0;
    let apart = |x: &Tensor| -> Result<Tensor> { Ok(split_heads(x, heads)?.f_flatten(0, 1)?) }; // (B heads, L, d)
    let mixed = blocks_of(&apart(query)?, &apart(key)?, &apart(value)?, BLOCK)?;
    merge_heads(&mixed.f_unflatten(0, [batch, heads])?)
}

/// softmax(q k^T / sqrt(d)) v over (N, L, d) inputs, about `block` scores at a time: several heads
/// together, or some rows of one. A graph keeps the probabilities, so that the backward pass
/// computes no score again.
pub(super) fn blocks_of(query: &Tensor, key: &Tensor, value: &Tensor, block: i64) -> Result<Tensor> {
    let ((_, length, width), keys) = (query.size3()?, key.size3()?.1);
    let heads = (block / (length * keys).max(1)).max(1);
    let rows = (block / keys.max(1)).clamp(1, length.max(1));
    let scale = (width as f64).sqrt().recip();
    let split = |x: &Tensor| x.f_split(heads, 0);
    let mut mixed = Vec::new();
    for ((query, key), value) in split(query)?.iter().zip(&split(key)?).zip(&split(value)?) {
        let key = key.f_transpose(1, 2)?; // (heads, d, keys)
        let parts = query.f_split(rows, 1)?.into_iter().map(|query| {
            let largest = estimate(&query, &key)?;
            let scores = largest.f_baddbmm(&query, &key, -scale, scale)?;
            Ok(scores.f_softmax(-1, None)?.f_bmm(value)?)
        });
        mixed.push(joined(parts.collect::<Result<_>>()?, 1)?);
    }
    joined(mixed, 0)
}

/// About the largest product of each query (n, L, d) with the keys (n, d, keys): (n, L, 1). Softmax
/// does not see what is subtracted from all scores of a query. But a matrix product rounds its
/// results to bf16, by a share of their size: the scores near the largest one, which make the
/// result, are to be small.
fn estimate(query: &Tensor, key: &Tensor) -> Result<Tensor> {
    let _constant = no_grad_guard();
    let stride = (key.size3()?.2 / SAMPLE).clamp(1, 8);
    Ok(query.f_bmm(&key.f_slice(2, None, None, stride)?)?.f_amax([-1i64], true)?)
}

fn joined(mut parts: Vec<Tensor>, dim: i64) -> Result<Tensor> {
    Ok(if parts.len() == 1 { parts.swap_remove(0) } else { Tensor::f_cat(&parts, dim)? })
}
