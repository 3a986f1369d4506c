//! Multi-head attention between projected queries, keys and values.

use tch::{no_grad_guard, Device, Kind, Tensor};

use crate::error::Result;

/// Scores that are computed at a time: 4 MiB of bf16, which the caches hold from one pass to the next.
const BLOCK: i64 = 1 << 21;
/// Scores of one head that a graph may keep for its backward pass. Beyond the 4,096 tokens of a 64 x 64 latent their
/// memory is dearer than the time that they save.
const KEPT: i64 = 1 << 24;
/// The largest score of a query is estimated from this many keys, or an eighth of all where that is more.
const SAMPLE: i64 = 64;

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

/// [`attention`] by matrix products where these are faster: in bf16 on a CPU, whose fused kernel takes 1.4 to 1.9 times
/// as long for 256 to 4,096 tokens, and four times as long for 64 (benches/results/profile-cpu.md). In float32 the
/// fused kernel is the faster one.
pub fn quick_attention(query: &Tensor, key: &Tensor, value: &Tensor, heads: i64) -> Result<Tensor> {
    let inputs = [query, key, value];
    let here = inputs.iter().all(|x| x.device() == Device::Cpu && x.f_kind().ok() == Some(Kind::BFloat16));
    let learns = inputs.iter().any(|x| x.requires_grad());
    let scores = query.size3()?.1 * key.size3()?.1;
    if !here || (learns && scores > KEPT) {
        return attention(query, key, value, heads);
    }
    let batch = query.size3()?.0;
    let apart = |x: &Tensor| -> Result<Tensor> { Ok(split_heads(x, heads)?.f_flatten(0, 1)?) }; // (B heads, L, d)
    let mixed = in_blocks(&apart(query)?, &apart(key)?, &apart(value)?, BLOCK)?;
    merge_heads(&mixed.f_unflatten(0, [batch, heads])?)
}

/// softmax(q k^T / sqrt(d)) v over (N, L, d) inputs, about `block` scores at a time: several heads together, or some
/// rows of one. A graph keeps the probabilities, so that the backward pass computes no score again.
fn in_blocks(query: &Tensor, key: &Tensor, value: &Tensor, block: i64) -> Result<Tensor> {
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

/// About the largest product of each query (n, L, d) with the keys (n, d, keys): (n, L, 1). Softmax does not see what is
/// subtracted from all scores of a query. But a matrix product rounds its results to bf16, by a share of their size:
/// the scores near the largest one, which make the result, are to be small.
fn estimate(query: &Tensor, key: &Tensor) -> Result<Tensor> {
    let _constant = no_grad_guard();
    let stride = (key.size3()?.2 / SAMPLE).clamp(1, 8);
    Ok(query.f_bmm(&key.f_slice(2, None, None, stride)?)?.f_amax([-1i64], true)?)
}

fn joined(mut parts: Vec<Tensor>, dim: i64) -> Result<Tensor> {
    Ok(if parts.len() == 1 { parts.swap_remove(0) } else { Tensor::f_cat(&parts, dim)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result, and the gradients at query, key and value of its sum weighted by `weight`.
    fn all(
        inputs: &[Tensor; 3],
        weight: &Tensor,
        attend: impl Fn([&Tensor; 3]) -> Result<Tensor>,
    ) -> Result<Vec<Tensor>> {
        let leaves = inputs.each_ref().map(|x| x.detach().set_requires_grad(true));
        let mixed = attend(leaves.each_ref())?;
        let loss = mixed.f_mul(weight)?.f_sum(weight.kind())?;
        let mut found = Tensor::f_run_backward(&[loss], &leaves, false, false)?;
        found.push(mixed.detach());
        Ok(found)
    }

    fn error(ours: &Tensor, theirs: &Tensor) -> Result<f64> {
        let (ours, theirs) = (ours.f_to_kind(Kind::Double)?, theirs.f_to_kind(Kind::Double)?);
        let (difference, size) = (ours.f_sub(&theirs)?.f_norm()?, theirs.f_norm()?);
        Ok(difference.f_double_value(&[])? / size.f_double_value(&[])?)
    }

    fn inputs(sizes: (i64, i64, i64), width: i64, size: f64) -> [Tensor; 3] {
        tch::manual_seed(0);
        let randn = |length| Tensor::randn([sizes.0, length, width], (Kind::Double, Device::Cpu));
        [randn(sizes.1) * size, randn(sizes.2), randn(sizes.2)]
    }

    #[test]
    fn blocks_of_any_size_make_the_same_result_and_gradients() -> Result<()> {
        for (sizes, width) in [((6, 13, 13), 5), ((2, 17, 3), 8), ((1, 1, 2), 1), ((3, 5, 9), 40)] {
            let inputs = inputs(sizes, width, 3.0);
            let weight = Tensor::randn([sizes.0, sizes.1, width], (Kind::Double, Device::Cpu));
            let expected = all(&inputs, &weight, |[query, key, value]| attention(query, key, value, 1))?;
            for block in [1, 10, 40, 170, 400, 1 << 20] {
                let found = all(&inputs, &weight, |[query, key, value]| in_blocks(query, key, value, block))?;
                for (mine, reference) in found.iter().zip(&expected) {
                    assert!(error(mine, reference)? <= 1e-10, "{sizes:?} {width} {block}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn bf16_is_about_as_near_as_the_fused_kernel_however_large_the_scores() -> Result<()> {
        for (size, heads) in [(0.3, 2), (2.0, 1), (8.0, 2)] {
            for keys in [300, 21] {
                let inputs = inputs((2, 300, keys), 64, size);
                let weight = Tensor::randn([2, 300, 64], (Kind::Double, Device::Cpu));
                let exact = all(&inputs, &weight, |[query, key, value]| attention(query, key, value, heads))?;
                let half = inputs.each_ref().map(|x| x.to_kind(Kind::BFloat16));
                let weight = weight.to_kind(Kind::BFloat16);
                let fused = all(&half, &weight, |[query, key, value]| attention(query, key, value, heads))?;
                let ours =
                    all(&half, &weight, |[query, key, value]| quick_attention(query, key, value, heads))?;
                for ((mine, other), reference) in ours.iter().zip(&fused).zip(&exact) {
                    assert_eq!(mine.kind(), Kind::BFloat16);
                    let (own, bound) = (error(mine, reference)?, 1.5 * error(other, reference)?);
                    assert!(own <= bound, "{size} {heads} {keys}: {own} {bound}");
                }
            }
        }
        Ok(())
    }
}
