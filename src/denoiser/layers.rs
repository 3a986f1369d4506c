//! Layers whose bias is known to be there, or known not to be: in a denoiser the architecture decides that, so a bias
//! that a checkpoint lacks is a missing key and not a layer without bias.

use crate::torch::{Kind, Tensor};

use crate::error::Result;
use crate::nn::{Conv2d, LayerNorm, Linear, Path};

/// torch.nn.Linear(inputs, outputs).
pub fn linear(path: &Path, inputs: i64, outputs: i64) -> Result<Linear> {
    let (weight, bias) = (path.get("weight", &[outputs, inputs])?, path.get("bias", &[outputs])?);
    Ok(Linear { leaf: path.leaf("weight"), holds: true, ..Linear::new(weight, Some(bias)) })
}

/// torch.nn.Linear(inputs, outputs, bias=False).
pub fn linear_without_bias(path: &Path, inputs: i64, outputs: i64) -> Result<Linear> {
    Ok(Linear::new(path.get("weight", &[outputs, inputs])?, None))
}

/// A convolution of one pixel as the linear layer over channels that it is: a view of its weight (out, in, 1, 1).
pub fn pointwise(path: &Path, inputs: i64, outputs: i64) -> Result<Linear> {
    let weight = path.get("weight", &[outputs, inputs, 1, 1])?.f_view([outputs, inputs])?;
    Ok(Linear::new(weight, Some(path.get("bias", &[outputs])?)))
}

/// torch.nn.Conv2d(channels.0, channels.1, kernel, stride, padding).
pub fn conv(path: &Path, channels: (i64, i64), kernel: i64, stride: i64, padding: i64) -> Result<Conv2d> {
    let weight = path.get("weight", &[channels.1, channels.0, kernel, kernel])?;
    Ok(Conv2d { weight, bias: Some(path.get("bias", &[channels.1])?), stride, padding })
}

/// torch.nn.LayerNorm(width, eps).
pub fn layer_norm(path: &Path, width: i64, eps: f64) -> Result<LayerNorm> {
    let (weight, bias) = (path.get("weight", &[width])?, path.get("bias", &[width])?);
    Ok(LayerNorm { weight: Some(weight), bias: Some(bias), width, eps })
}

/// `x` in the dtype of `weight`, for a matrix product in that dtype. The sums between the products of a bf16 network are
/// float32 ([`stream_of`]): each rounding to bf16 costs 2e-3, and a denoiser would make a hundred of them one after the other.
pub fn narrowed(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    Ok(x.f_to_kind(weight.f_kind()?)?)
}

/// The dtype of a network's sums, norms and small products, whose weights have dtype `weights`.
pub fn stream_of(weights: Kind) -> Kind {
    match weights {
        Kind::BFloat16 | Kind::Half => Kind::Float,
        wide => wide,
    }
}
