//! `_native.Denoiser`: what every native denoiser does.

use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use tch::Tensor;

use super::enter::enter;
use super::tensor::{optional, Given, PyTensor};
use crate::denoiser::pull::{leaf, pull};
use crate::denoiser::{Condition, Denoiser, KeysValues, Query};
use crate::error::{DivaError, Result};

const OP: &str = "Denoiser";

/// A native network in the teacher's place; its classes say which.
#[pyclass(frozen, subclass, name = "Denoiser", module = "diva_rs._native")]
pub struct PyDenoiser {
    core: Arc<Mutex<dyn Denoiser>>,
    #[pyo3(get)]
    condition_width: i64,
}

impl PyDenoiser {
    pub(super) fn new(core: impl Denoiser + 'static, condition_width: i64) -> Self {
        PyDenoiser { core: Arc::new(Mutex::new(core)), condition_width }
    }

    /// The same network, for a step of its own.
    pub(super) fn core(&self) -> Arc<Mutex<dyn Denoiser>> {
        self.core.clone()
    }
}

#[pymethods]
impl PyDenoiser {
    /// Prediction (B, C, h, w) for `noisy` (B, C, h, w), `timesteps` (B,) and `condition` (B, S, `condition_width`).
    /// `text` (1 | B, L, `condition_width`): positions behind those of the condition, without a gradient.
    #[pyo3(signature = (noisy, timesteps, condition, text=None))]
    fn predict(
        &self,
        py: Python<'_>,
        noisy: Given,
        timesteps: Given,
        condition: Given,
        text: Option<Given>,
    ) -> PyResult<PyTensor> {
        let (core, asked) = (self.core(), Asked::new(noisy, timesteps, condition, text)?);
        enter(py, move || asked.predict(&core)).map(PyTensor)
    }

    /// (prediction, the gradient at the condition), given the gradient at the prediction: recomputing, where the
    /// configuration says so.
    #[pyo3(signature = (noisy, timesteps, condition, at_prediction, text=None))]
    fn gradient(
        &self,
        py: Python<'_>,
        noisy: Given,
        timesteps: Given,
        condition: Given,
        at_prediction: Given,
        text: Option<Given>,
    ) -> PyResult<(PyTensor, PyTensor)> {
        let (core, at_prediction) = (self.core(), at_prediction.named("at_prediction")?);
        let asked = Asked::new(noisy, timesteps, condition, text)?;
        enter(py, move || asked.gradient(&core, &at_prediction))
            .map(|(prediction, gradient)| (PyTensor(prediction), PyTensor(gradient)))
    }
}

/// The tensors of a [`Query`], with its text not yet read.
struct Asked {
    noisy: Tensor,
    timesteps: Tensor,
    condition: Tensor,
    text: Option<Tensor>,
}

impl Asked {
    fn new(noisy: Given, timesteps: Given, condition: Given, text: Option<Given>) -> PyResult<Self> {
        Ok(Asked {
            noisy: noisy.named("noisy")?,
            timesteps: timesteps.named("timesteps")?,
            condition: condition.named("condition")?,
            text: optional(text, "text")?,
        })
    }

    fn of<T>(
        &self,
        network: &dyn Denoiser,
        condition: &Condition,
        answer: impl FnOnce(&Query) -> Result<T>,
    ) -> Result<T> {
        let text = self.text.as_ref().map(|text| read(network, text)).transpose()?;
        let Asked { noisy, timesteps, .. } = self;
        answer(&Query { noisy, timesteps, condition, text: text.as_ref() })
    }

    fn predict(&self, network: &dyn Denoiser) -> Result<Tensor> {
        let condition = network.slots().fill(&self.condition)?;
        self.of(network, &condition, |query| network.predict(query))
    }

    /// The prediction, and the gradient at the condition given the one at the prediction.
    fn gradient(&self, network: &dyn Denoiser, at_prediction: &Tensor) -> Result<(Tensor, Tensor)> {
        let source = leaf(&self.condition)?;
        let filled = network.slots().fill(&source)?;
        let mut seen = None;
        let mut loss_gradient = |prediction: &Tensor| {
            seen = Some(prediction.f_detach()?);
            Ok(at_prediction.shallow_clone())
        };
        let detached = filled.detached()?;
        let found = self.of(network, &detached, |query| network.gradient(query, &mut loss_gradient))?;
        if let (Some(gradients), Some(prediction)) = (found, seen) {
            return Ok((prediction, filled.pull(&gradients, &source)?));
        }
        let prediction = self.of(network, &filled, |query| network.predict(query))?;
        let gradient = pull(&prediction, at_prediction, &[&source])?.swap_remove(0);
        Ok((prediction.f_detach()?, gradient))
    }
}

fn read(network: &dyn Denoiser, text: &Tensor) -> Result<KeysValues> {
    let read = network.read(text)?;
    read.ok_or_else(|| DivaError::config(OP, "this network reads no text apart from its condition"))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyDenoiser>()
}
