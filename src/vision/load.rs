//! Loading where the configuration, not the checkpoint, says whether a bias exists: a missing one is an error.

use crate::torch::Tensor;

use crate::error::Result;
use crate::nn::{LayerNorm, Linear, Path};

pub fn linear(path: &Path, inputs: i64, outputs: i64, bias: bool) -> Result<Linear> {
    pair(path, ("weight", "bias"), inputs, outputs, bias)
}

/// A linear layer whose weight and bias have keys of their own.
pub fn pair(path: &Path, keys: (&str, &str), inputs: i64, outputs: i64, bias: bool) -> Result<Linear> {
    let weight = path.get(keys.0, &[outputs, inputs])?;
    let bias = bias.then(|| path.get(keys.1, &[outputs])).transpose()?;
    Ok(Linear::new(weight, bias))
}

pub fn norm(path: &Path, width: i64, eps: f64) -> Result<LayerNorm> {
    let (weight, bias) = (path.get("weight", &[width])?, path.get("bias", &[width])?);
    Ok(LayerNorm { weight: Some(weight), bias: Some(bias), width, eps })
}

/// (.., rows, width) as (1, rows, width), sharing storage; taken at every forward pass, for it is part of the graph.
pub fn rows(tensor: &Tensor, width: i64) -> Result<Tensor> {
    Ok(tensor.f_view([1, -1, width])?)
}
