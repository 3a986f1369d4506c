//! The teacher's networks: plain forward passes over libtorch's autograd, with weights that never ask for a gradient.
//!
//! Because no weight requires grad, autograd saves nothing before the first operation that the condition reaches: the
//! memory and the backward pass of a denoiser begin at its first cross-attention.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::torch::Tensor;

use crate::error::{DivaError, Result};

pub mod attention;
pub mod condition;
pub mod dit;
pub mod embeddings;
pub mod frozen;
pub mod layers;
pub mod mmdit;
pub use crate::autograd::pull;
pub mod unet_2d_condition;
pub mod vae;

pub use condition::{Condition, Slots};

/// The teacher: a frozen diffusion model behind cut 2.
pub trait Denoiser: Send {
    /// The slots that a query's condition must fill.
    fn slots(&self) -> Slots;

    /// The width of the condition, where the network knows it.
    fn condition_width(&self) -> Option<i64> {
        None
    }

    /// Prediction (B, ...), on the device of `noisy`, differentiable with respect to the condition.
    fn predict(&self, query: &Query) -> Result<Tensor>;

    /// Keys and values of text positions (1 | B, L, C) that are the same in every draw, outside any graph. `None`: this
    /// network cannot compute them apart from the rest of the condition.
    fn read(&self, _text: &Tensor) -> Result<Option<KeysValues>> {
        Ok(None)
    }

    /// The gradients of the loss whose gradient at the prediction `loss_gradient` gives, for denoisers that compute their
    /// blocks again in the backward pass instead of keeping every activation. `None`: autograd finds them through
    /// `predict`.
    fn gradient(&self, _query: &Query, _loss_gradient: LossGradient) -> Result<Option<Gradients>> {
        Ok(None)
    }

    /// The trainable parameters by name; empty for a frozen denoiser.
    fn params(&self) -> Vec<(String, Tensor)> {
        Vec::new()
    }
}

/// The inputs of one prediction.
#[derive(Clone, Copy)]
pub struct Query<'a> {
    pub noisy: &'a Tensor,     // (B, ...)
    pub timesteps: &'a Tensor, // (B,), as the model counts them
    pub condition: &'a Condition,
    /// Positions behind the condition's tokens, from `Denoiser::read`.
    pub text: Option<&'a KeysValues>,
}

impl Query<'_> {
    /// An error where there is a text, for denoisers that read none apart.
    pub fn without_text(&self, op: &'static str) -> Result<()> {
        match self.text {
            None => Ok(()),
            Some(_) => Err(DivaError::config(op, "this network reads no text apart from its condition")),
        }
    }

    /// A prediction on the device of `noisy`, in its own dtype.
    pub fn home(&self, prediction: &Tensor) -> Result<Tensor> {
        Ok(prediction.f_to_other(&self.noisy.f_to_kind(prediction.f_kind()?)?, false, false)?)
    }
}

/// Gradients at the slots of a condition, and at those of `Denoiser::params` that require one.
#[derive(Default)]
pub struct Gradients {
    pub condition: Condition,
    pub params: Vec<Option<Tensor>>,
}

impl From<Condition> for Gradients {
    fn from(condition: Condition) -> Self {
        Gradients { condition, params: Vec::new() }
    }
}

/// From a prediction to the gradient of the loss at it.
pub type LossGradient<'a> = &'a mut dyn FnMut(&Tensor) -> Result<Tensor>;

/// Keys and values (1 | B, L, W) of a text, by cross-attention.
pub struct KeysValues(pub Vec<(Tensor, Tensor)>);

impl KeysValues {
    /// Those of the samples `start..start + length`, as views.
    pub fn narrow(&self, start: i64, length: i64) -> Result<KeysValues> {
        let part = |tensor: &Tensor| match tensor.size().first() {
            Some(&1) => Ok(tensor.shallow_clone()), // one text for all samples
            _ => tensor.f_narrow(0, start, length),
        };
        let parts = self.0.iter().map(|(keys, values)| Ok((part(keys)?, part(values)?)));
        Ok(KeysValues(parts.collect::<Result<_>>()?))
    }

    /// Those of the samples at `places`, in this order.
    pub fn at(&self, places: &[i64]) -> Result<KeysValues> {
        let rows = |tensor: &Tensor| match tensor.size().first() {
            Some(&1) => Ok(tensor.shallow_clone()),
            _ => {
                let rows: std::result::Result<Vec<_>, _> =
                    places.iter().map(|&place| tensor.f_narrow(0, place, 1)).collect();
                Tensor::f_cat(&rows?, 0)
            }
        };
        let parts = self.0.iter().map(|(keys, values)| Ok((rows(keys)?, rows(values)?)));
        Ok(KeysValues(parts.collect::<Result<_>>()?))
    }

    /// Those of the samples `index` (n,).
    pub fn select(&self, index: &Tensor) -> Result<KeysValues> {
        let row = |tensor: &Tensor| tensor.f_index_select(0, index);
        let parts = self.0.iter().map(|(keys, values)| Ok((row(keys)?, row(values)?)));
        Ok(KeysValues(parts.collect::<Result<_>>()?))
    }
}

/// One network for several owners: the object that Python holds and the step that runs it.
impl<T: Denoiser + ?Sized> Denoiser for Arc<Mutex<T>> {
    fn slots(&self) -> Slots {
        held(self).slots()
    }

    fn condition_width(&self) -> Option<i64> {
        held(self).condition_width()
    }

    fn predict(&self, query: &Query) -> Result<Tensor> {
        held(self).predict(query)
    }

    fn read(&self, text: &Tensor) -> Result<Option<KeysValues>> {
        held(self).read(text)
    }

    fn gradient(&self, query: &Query, loss_gradient: LossGradient) -> Result<Option<Gradients>> {
        held(self).gradient(query, loss_gradient)
    }

    fn params(&self) -> Vec<(String, Tensor)> {
        held(self).params()
    }
}

/// A network is not changed by a pass, so one that a panic interrupted is still whole.
fn held<T: ?Sized>(network: &Mutex<T>) -> MutexGuard<'_, T> {
    network.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
