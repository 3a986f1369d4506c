//! `_native.DiTTransformer2D`.

use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::enter::enter;
use super::fields::{tensors, Fields};
use super::tensor::PyTensor;
use super::unet::gradient;
use crate::denoiser::dit::config::{Config, Label, OP};
use crate::denoiser::dit::DiTTransformer2D;
use crate::feedback::Denoiser;
use crate::nn::Activation;

/// A diffusers DiTTransformer2DModel on its own weights. `config` and `weights` as `diva_rs.native.dit` makes them.
#[pyclass(frozen, name = "DiTTransformer2D", module = "diva_rs._native")]
pub struct PyDiTTransformer2D {
    core: Arc<Mutex<DiTTransformer2D>>,
    #[pyo3(get)]
    condition_width: i64,
}

impl PyDiTTransformer2D {
    /// The same network, for a step of its own.
    pub(super) fn core(&self) -> Box<dyn Denoiser> {
        Box::new(self.core.clone())
    }
}

#[pymethods]
impl PyDiTTransformer2D {
    #[new]
    fn new(py: Python<'_>, config: &Bound<'_, PyDict>, weights: &Bound<'_, PyDict>) -> PyResult<Self> {
        let mut fields = Fields::new(OP, config);
        let config = read(&mut fields)?;
        fields.finish()?;
        let weights = tensors(weights)?;
        enter(py, move || {
            let core = DiTTransformer2D::new(config, weights)?;
            let condition_width = core.condition_width();
            Ok(PyDiTTransformer2D { core: Arc::new(Mutex::new(core)), condition_width })
        })
    }

    /// Prediction (B, C, n, n) for `noisy` (B, C, n, n), `timesteps` (B,) and `condition` (B, S, `condition_width`).
    fn predict(
        &self,
        py: Python<'_>,
        noisy: PyTensor,
        timesteps: PyTensor,
        condition: PyTensor,
    ) -> PyResult<PyTensor> {
        let (core, noisy, timesteps, condition) = (self.core(), noisy.0, timesteps.0, condition.0);
        enter(py, move || core.predict(&noisy, &timesteps, &condition)).map(PyTensor)
    }

    /// (prediction, the gradient at the condition), given the gradient at the prediction: recomputing, where the
    /// configuration says so.
    fn gradient(
        &self,
        py: Python<'_>,
        noisy: PyTensor,
        timesteps: PyTensor,
        condition: PyTensor,
        at_prediction: PyTensor,
    ) -> PyResult<(PyTensor, PyTensor)> {
        let (core, at_prediction) = (self.core(), at_prediction.0);
        let (noisy, timesteps, condition) = (noisy.0, timesteps.0, condition.0);
        enter(py, move || gradient(core.as_ref(), (&noisy, &timesteps, &condition, None), &at_prediction))
            .map(|(prediction, gradient)| (PyTensor(prediction), PyTensor(gradient)))
    }
}

fn read(fields: &mut Fields) -> PyResult<Config> {
    Ok(Config {
        in_channels: fields.get("in_channels")?,
        out_channels: fields.get("out_channels")?,
        patch_size: fields.get("patch_size")?,
        grid: fields.get("grid")?,
        width: fields.get("width")?,
        num_layers: fields.get("num_layers")?,
        heads: fields.get("heads")?,
        hidden: fields.get("hidden")?,
        activation: fields.parse("activation", Activation::parse)?,
        attention_bias: fields.get("attention_bias")?,
        norm_elementwise_affine: fields.get("norm_elementwise_affine")?,
        norm_eps: fields.get("norm_eps")?,
        time_channels: fields.get("time_channels")?,
        flip_sin_to_cos: fields.get("flip_sin_to_cos")?,
        freq_shift: fields.get("freq_shift")?,
        label: fields.parse("label", Label::parse)?,
        num_classes: fields.get("num_classes")?,
        label_rows: fields.get("label_rows")?,
        checkpoint: fields.get("checkpoint")?,
    })
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyDiTTransformer2D>()
}
