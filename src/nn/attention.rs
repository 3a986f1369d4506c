//! Multi-head attention between projected queries, keys and values.

use tch::Tensor;

use crate::error::Result;

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

/// softmax(q k^T / sqrt(d)) v over (B, L, width) inputs, `heads` at a time, through libtorch's fused kernels.
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
