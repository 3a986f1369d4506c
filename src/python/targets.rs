//! What a batch is denoised from, as a tuple of tensors.

use pyo3::prelude::*;

use super::tensor::{optional, Given, PyTensor};
use crate::feedback::Targets;

/// latents (B, ...), noise (B, N, ...), timesteps (B, N), choice (B, N, k) or None, text (1 | B, L, C).
pub type PyTargets = (PyTensor, PyTensor, PyTensor, Option<PyTensor>, PyTensor);

pub type GivenTargets = (Given, Given, Given, Option<Given>, Given);

pub fn targets(parts: GivenTargets) -> PyResult<Targets> {
    let (latents, noise, timesteps, choice, text) = parts;
    Ok(Targets {
        latents: latents.named("latents")?,
        noise: noise.named("noise")?,
        timesteps: timesteps.named("timesteps")?,
        choice: optional(choice, "choice")?,
        text: text.named("text")?,
    })
}

pub fn untargets(targets: Targets) -> PyTargets {
    let Targets { latents, noise, timesteps, choice, text } = targets;
    (PyTensor(latents), PyTensor(noise), PyTensor(timesteps), choice.map(PyTensor), PyTensor(text))
}
