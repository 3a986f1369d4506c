//! What a batch is denoised from, as a tuple of tensors.

use pyo3::prelude::*;

use super::tensor::{optional, Given, PyTensor};
use crate::feedback::Targets;

/// latents (B, ...), noise (B, N, ...), timesteps (B, N), choice (B, N, k) or None, text (1 | B, L, C), noise at a pooled condition
/// (B, N, C) or None.
pub type PyTargets = (PyTensor, PyTensor, PyTensor, Option<PyTensor>, PyTensor, Option<PyTensor>);

pub type GivenTargets = (Given, Given, Given, Option<Given>, Given, Option<Given>);

pub fn targets(parts: GivenTargets) -> PyResult<Targets> {
    let (latents, noise, timesteps, choice, text, pooled) = parts;
    Ok(Targets {
        latents: latents.named("latents")?,
        noise: noise.named("noise")?,
        timesteps: timesteps.named("timesteps")?,
        choice: optional(choice, "choice")?,
        text: text.named("text")?,
        pooled: optional(pooled, "pooled")?,
    })
}

pub fn untargets(targets: Targets) -> PyTargets {
    let Targets { latents, noise, timesteps, choice, text, pooled } = targets;
    let (choice, pooled) = (choice.map(PyTensor), pooled.map(PyTensor));
    (PyTensor(latents), PyTensor(noise), PyTensor(timesteps), choice, PyTensor(text), pooled)
}
