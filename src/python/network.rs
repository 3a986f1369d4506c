//! `_native.Network`: every native network, made by kind.

use std::sync::{Arc, Mutex};

use crate::torch::Tensor;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyList, PyTuple};
use pythonize::depythonize;

use super::enter::{enter, lock, raise};
use super::number::number;
use super::tensor::{optional, tensors, Given, PyTensor};
use crate::denoiser::pull::{leaf, push};
use crate::denoiser::vae::AutoencoderEncoder;
use crate::denoiser::{Condition, Denoiser, Query};
use crate::error::{DivaError, Result};
use crate::inputs::Encoder;
use crate::networks::{read, Network};
use crate::step::VisionTower;
use crate::vision::{Recording, Vit};

const OP: &str = "Network";

/// A native network over the caller's weights. `config` and `weights` as `diva_rs.native` makes them.
#[pyclass(frozen, name = "Network", module = "diva_rs._native")]
pub struct PyNetwork {
    #[pyo3(get)]
    kind: String,
    core: Network,
}

/// What `Network.backward` needs of one pass of `record`; it can be used once.
#[pyclass(frozen, name = "Recording", module = "diva_rs._native")]
struct PyRecording(Mutex<Option<Recording>>);

impl PyNetwork {
    /// The same network, for a step.
    pub(super) fn tower(&self) -> PyResult<Box<dyn VisionTower>> {
        Ok(Box::new(self.vit("tokens")?.clone()))
    }

    pub(super) fn denoiser(&self) -> PyResult<Arc<Mutex<dyn Denoiser>>> {
        Ok(self.denoises("predict")?.clone())
    }

    pub(super) fn encoder(&self) -> PyResult<Box<dyn Encoder>> {
        Ok(Box::new(self.encodes("encode")?.clone()))
    }

    fn vit(&self, method: &str) -> PyResult<&Arc<Mutex<Vit>>> {
        match &self.core {
            Network::Tower(tower) => Ok(tower),
            _ => Err(self.absent(method)),
        }
    }

    fn denoises(&self, method: &str) -> PyResult<&Arc<Mutex<dyn Denoiser>>> {
        match &self.core {
            Network::Denoiser(denoiser) => Ok(denoiser),
            _ => Err(self.absent(method)),
        }
    }

    fn encodes(&self, method: &str) -> PyResult<&Arc<Mutex<AutoencoderEncoder>>> {
        match &self.core {
            Network::Encoder(encoder) => Ok(encoder),
            _ => Err(self.absent(method)),
        }
    }

    fn absent(&self, method: &str) -> PyErr {
        raise(DivaError::config(OP, format!("a network of kind {:?} has no `{method}`", self.kind)))
    }
}

#[pymethods]
impl PyNetwork {
    /// `fixed`: inputs that are the same in every step. A UNet takes "encoder_hidden_states" (1, L, D), "text_embeds"
    /// (1, n) and "time_ids" (1, m), as its configuration needs them; an MMDiT "encoder_hidden_states" (1, L, D) or
    /// "pooled_projections" (1, V) for a slot that is not the condition's.
    #[new]
    #[pyo3(signature = (kind, config, weights, fixed=None))]
    fn new(
        py: Python<'_>,
        kind: String,
        config: &Bound<'_, PyDict>,
        weights: &Bound<'_, PyDict>,
        fixed: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        // By way of JSON values, which are strict: pythonize alone would read any object as a bool.
        finite("config", config)?;
        let config =
            depythonize(config).map_err(|err| raise(DivaError::config(OP, format!("config: {err}"))))?;
        let build = read(&kind, config).map_err(raise)?;
        let (weights, fixed) = (tensors(weights)?, fixed.map(tensors).transpose()?.unwrap_or_default());
        let core = enter(py, move || build(weights, fixed))?;
        Ok(PyNetwork { kind, core })
    }

    /// Of a tower: tokens (B, 1 + P, W) of images (B, 3, H, W), in the caller's grad mode.
    fn tokens(&self, py: Python<'_>, images: Given) -> PyResult<PyTensor> {
        let (tower, images) = (self.vit("tokens")?, images.named("images")?);
        enter(py, move || lock(tower).tokens(&images)).map(PyTensor)
    }

    /// The same tokens outside any graph, and what `backward` needs: the inputs of the blocks alone.
    fn record(&self, py: Python<'_>, images: Given) -> PyResult<(PyTensor, PyRecording)> {
        let (tower, images) = (self.vit("record")?, images.named("images")?);
        let (tokens, recording) = enter(py, move || lock(tower).record(&images))?;
        Ok((PyTensor(tokens), PyRecording(Mutex::new(Some(recording)))))
    }

    /// Adds to every weight's `.grad`, given the gradient of the tokens. Each block runs forward once more.
    fn backward(&self, py: Python<'_>, recording: &PyRecording, gradient: Given) -> PyResult<()> {
        let (tower, gradient) = (self.vit("backward")?, gradient.named("gradient")?);
        enter(py, move || {
            let recording = lock(&recording.0).take().ok_or_else(|| {
                DivaError::data("Network.backward", "the recording was used already: call record again")
            })?;
            lock(tower).backward(recording, &gradient)
        })
    }

    /// Of a denoiser: the slots of its condition, "tokens" or "pooled".
    #[getter]
    fn slots(&self) -> PyResult<Vec<&'static str>> {
        Ok(self.denoises("slots")?.slots().names())
    }

    /// Of a denoiser: the width of its condition.
    #[getter]
    fn condition_width(&self) -> PyResult<Option<i64>> {
        Ok(self.denoises("condition_width")?.condition_width())
    }

    /// Of a denoiser: prediction (B, C, h, w) for `noisy` (B, C, h, w), `timesteps` (B,) and `condition`
    /// (B, S, `condition_width`). `text` (1 | B, L, `condition_width`): positions behind those of the condition, without a
    /// gradient.
    #[pyo3(signature = (noisy, timesteps, condition, text=None))]
    fn predict(
        &self,
        py: Python<'_>,
        noisy: Given,
        timesteps: Given,
        condition: Given,
        text: Option<Given>,
    ) -> PyResult<PyTensor> {
        let (network, asked) = (self.denoiser()?, Asked::new(noisy, timesteps, condition, text)?);
        enter(py, move || asked.predict(&network)).map(PyTensor)
    }

    /// (prediction, the gradient at the condition), given the gradient at the prediction; those at the weights that train
    /// are added to their `.grad`. Where the configuration says `checkpoint`, the blocks are computed again in the
    /// backward pass.
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
        let (network, at_prediction) = (self.denoiser()?, at_prediction.named("at_prediction")?);
        let asked = Asked::new(noisy, timesteps, condition, text)?;
        enter(py, move || asked.gradient(&network, &at_prediction))
            .map(|(prediction, gradient)| (PyTensor(prediction), PyTensor(gradient)))
    }

    /// Of a VAE: latents (B, C, h, w) of images (B, 3, H, W) in [-1, 1], shifted and scaled, without gradients, in the
    /// dtype and on the device of `images`: the posterior's mean, or mean + std * `noise` (B, C, h, w).
    #[pyo3(signature = (images, noise=None, micro_batch=8))]
    fn encode(
        &self,
        py: Python<'_>,
        images: Given,
        noise: Option<Given>,
        #[pyo3(from_py_with = number)] micro_batch: i64,
    ) -> PyResult<PyTensor> {
        let encoder = self.encodes("encode")?;
        let (images, noise) = (images.named("images")?, optional(noise, "noise")?);
        enter(py, move || lock(encoder).encode(&images, noise.as_ref(), micro_batch)).map(PyTensor)
    }
}

/// Refuses NaN and infinities, which JSON values cannot hold: they would become null, and a `None` without a word.
fn finite(path: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
    if let Ok(fields) = value.downcast::<PyDict>() {
        return fields.iter().try_for_each(|(name, field)| finite(&format!("{path}.{name}"), &field));
    }
    if value.is_instance_of::<PyList>() || value.is_instance_of::<PyTuple>() {
        return (value.try_iter()?.enumerate())
            .try_for_each(|(i, item)| finite(&format!("{path}[{i}]"), &item?));
    }
    match value.downcast::<PyFloat>() {
        Ok(number) if !number.value().is_finite() => {
            Err(raise(DivaError::config(OP, format!("{path} is {}: it must be finite", number.value()))))
        }
        _ => Ok(()),
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
        let read = |text| {
            let no_text = || DivaError::config(OP, "this network reads no text apart from its condition");
            network.read(text)?.ok_or_else(no_text)
        };
        let text = self.text.as_ref().map(read).transpose()?;
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
            let trained = network.params().into_iter().map(|(_, param)| param).filter(Tensor::requires_grad);
            for (param, gradient) in trained.zip(gradients.params) {
                gradient.map_or(Ok(()), |gradient| push(&param, &gradient))?;
            }
            return Ok((prediction, filled.pull(&gradients.condition, &source)?));
        }
        let prediction = self.of(network, &filled, |query| network.predict(query))?;
        push(&prediction, at_prediction)?; // to the weights that train, and to the condition
        let gradient = source.f_grad()?;
        if !gradient.defined() {
            return Err(DivaError::config("backward", "the output was computed without a graph"));
        }
        Ok((prediction.f_detach()?, gradient))
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyNetwork>()?;
    module.add_class::<PyRecording>()
}
