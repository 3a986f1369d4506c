//! The teacher's networks: plain forward passes over libtorch's autograd, with weights that never ask for a gradient.
//!
//! Because no weight requires grad, autograd saves nothing before the first operation that the condition reaches: the
//! memory and the backward pass of a denoiser begin at its first cross-attention.

use std::sync::{Arc, Mutex, MutexGuard};

use tch::Tensor;

use crate::error::Result;
use crate::feedback::{Denoiser, Judge, KeysValues};

pub mod dit;
pub mod embeddings;
pub mod frozen;
pub mod layers;
pub mod pull;
pub mod unet_2d_condition;
pub mod vae;

/// One network for several owners: the object that Python holds and the step that runs it.
impl<T: Denoiser> Denoiser for Arc<Mutex<T>> {
    fn predict(&self, noisy: &Tensor, timesteps: &Tensor, condition: &Tensor) -> Result<Tensor> {
        held(self).predict(noisy, timesteps, condition)
    }

    fn read(&self, text: &Tensor) -> Result<Option<KeysValues>> {
        held(self).read(text)
    }

    fn predict_with(
        &self,
        noisy: &Tensor,
        timesteps: &Tensor,
        condition: &Tensor,
        text: Option<&KeysValues>,
    ) -> Result<Tensor> {
        held(self).predict_with(noisy, timesteps, condition, text)
    }

    fn gradient(
        &self,
        noisy: &Tensor,
        timesteps: &Tensor,
        condition: &Tensor,
        text: Option<&KeysValues>,
        judge: Judge,
    ) -> Result<Option<Tensor>> {
        held(self).gradient(noisy, timesteps, condition, text, judge)
    }
}

/// A network is not changed by a pass, so one that a panic interrupted is still whole.
fn held<T>(network: &Mutex<T>) -> MutexGuard<'_, T> {
    network.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
