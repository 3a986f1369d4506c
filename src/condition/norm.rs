//! LayerNorm by libtorch operations, with a backward pass by hand: torch's `native_layer_norm_backward` is not
//! among the functions that tch exposes.

use tch::{Kind, Tensor};

use crate::error::Result;

/// Mean and reciprocal deviation of each row, (rows.., 1).
pub(super) struct Stats {
    mean: Tensor,
    rstd: Tensor,
}

/// Gradients of the input and of an elementwise weight and bias (W,), whether or not these exist.
pub(super) struct Grads {
    pub input: Tensor,
    pub weight: Tensor,
    pub bias: Tensor,
}

/// Normalises over the last axis; torch's `nn.LayerNorm`.
pub(super) fn forward(
    input: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<(Tensor, Stats)> {
    let width = input.size().last().copied().unwrap_or_default();
    let (output, mean, rstd) = input.f_native_layer_norm([width], weight, bias, eps)?;
    Ok((output, Stats { mean, rstd }))
}

/// With xhat = (x - mean) rstd and g = grad * weight over rows of W elements:
/// dx = rstd (g - mean(g) - xhat mean(g xhat)), dweight = sum grad xhat, dbias = sum grad.
pub(super) fn backward(
    input: &Tensor,
    stats: &Stats,
    weight: Option<&Tensor>,
    grad: &Tensor,
) -> Result<Grads> {
    let kind = input.f_kind()?;
    // Sums over many rows do not fit the 8 bits of a bfloat16 mantissa.
    let wide = if matches!(kind, Kind::Half | Kind::BFloat16) { Kind::Float } else { kind };
    let (grad, rstd) = (grad.f_to_kind(wide)?, stats.rstd.f_to_kind(wide)?);
    let xhat = input.f_to_kind(wide)?.f_sub(&stats.mean.f_to_kind(wide)?)?.f_mul(&rstd)?;
    let scaled = match weight {
        Some(weight) => grad.f_mul(&weight.f_to_kind(wide)?)?,
        None => grad.shallow_clone(),
    };
    let last = [-1i64];
    let along = scaled.f_mul(&xhat)?.f_mean_dim(last.as_slice(), true, wide)?;
    let dx = scaled
        .f_sub(&scaled.f_mean_dim(last.as_slice(), true, wide)?)?
        .f_sub(&xhat.f_mul(&along)?)?
        .f_mul(&rstd)?;
    Ok(Grads {
        input: dx.f_to_kind(kind)?,
        weight: over_rows(&grad.f_mul(&xhat)?)?.f_to_kind(kind)?,
        bias: over_rows(&grad)?.f_to_kind(kind)?,
    })
}

/// Sum over every axis but the last.
pub(super) fn over_rows(values: &Tensor) -> Result<Tensor> {
    let width = values.size().last().copied().unwrap_or_default();
    Ok(values.f_reshape([-1, width])?.f_sum_dim_intlist([0i64].as_slice(), false, values.f_kind()?)?)
}
