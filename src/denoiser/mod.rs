//! The teacher's networks: plain forward passes over libtorch's autograd, with weights that never ask for a gradient.
//!
//! Because no weight requires grad, autograd saves nothing before the first operation that the condition reaches: the
//! memory and the backward pass of a denoiser begin at its first cross-attention.

use std::sync::{Arc, Mutex};

use tch::Tensor;

use crate::error::Result;
use crate::feedback::Denoiser;

pub mod dit;
pub mod embeddings;
pub mod frozen;
pub mod layers;
pub mod unet_2d_condition;
pub mod vae;

/// One network for several owners: the object that Python holds and the step that runs it.
impl<T: Denoiser> Denoiser for Arc<Mutex<T>> {
    fn predict(&self, noisy: &Tensor, timesteps: &Tensor, condition: &Tensor) -> Result<Tensor> {
        // A network is not changed by a pass, so one that a panic interrupted is still whole.
        self.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).predict(noisy, timesteps, condition)
    }
}
