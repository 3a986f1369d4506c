//! Python callables in the place of native networks.

use crate::torch::Tensor;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::enter::raise;
use super::list::List;
use super::number::number;
use super::tensor::{tensors, Given, PyTensor};
use crate::denoiser::{Denoiser, Query, Slots};
use crate::error::{DivaError, Result};
use crate::inputs::Encoder;
use crate::step::VisionTower;

/// A Python callable of tensors that returns a tensor. It takes the GIL for its own length only.
pub struct Callback(pub PyObject);

impl Callback {
    pub fn call(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        python(|py| {
            let inputs = inputs.iter().map(|tensor| PyTensor(tensor.shallow_clone()).into_pyobject(py));
            let inputs = inputs.collect::<PyResult<Vec<_>>>()?;
            let output = self.0.bind(py).call1(PyTuple::new(py, inputs)?)?;
            output.extract::<Given>()?.named("what the module returned")
        })
    }
}

/// Runs `work` with the GIL; its exception ends the step and reaches the caller unchanged.
pub fn python<T>(work: impl FnOnce(Python<'_>) -> PyResult<T>) -> Result<T> {
    Python::with_gil(work).map_err(|err| DivaError::Callback(Box::new(err)))
}

impl VisionTower for Callback {
    fn tokens(&self, images: &Tensor) -> Result<Tensor> {
        self.call(&[images])
    }
}

impl Encoder for Callback {
    fn encode(&self, images: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        match noise {
            Some(noise) => self.call(&[images, noise]),
            None => self.call(&[images]),
        }
    }
}

/// A denoiser in Python: `noisy`, `timesteps` and one tensor for each slot -> prediction.
pub struct CallbackDenoiser {
    callback: Callback,
    slots: Slots,
    params: Vec<(String, Tensor)>,
}

impl CallbackDenoiser {
    /// The attribute `slots` names the slots ("tokens", "pooled"; by default the tokens), `split` is the width of
    /// the tokens' columns where each slot has its own, and `trained` holds the parameters that train, by name (by
    /// default none).
    pub fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let slots = match object.getattr_opt("slots")? {
            None => Slots::TOKENS,
            Some(names) => {
                let List::<String>(names) = names.extract()?;
                let split = object.getattr_opt("split")?.map(|split| number(&split)).transpose()?.flatten();
                Slots::named(names.iter().map(String::as_str), split).map_err(raise)?
            }
        };
        let params = match object.getattr_opt("trained")? {
            Some(named) => tensors(named.downcast::<PyDict>()?)?,
            None => Vec::new(),
        };
        Ok(CallbackDenoiser { callback: Callback(object.clone().unbind()), slots, params })
    }
}

impl Denoiser for CallbackDenoiser {
    fn slots(&self) -> Slots {
        self.slots
    }

    fn predict(&self, query: &Query) -> Result<Tensor> {
        query.without_text("Denoiser")?;
        let mut inputs = vec![query.noisy, query.timesteps];
        inputs.extend(query.condition.tensors());
        self.callback.call(&inputs)
    }

    fn params(&self) -> Vec<(String, Tensor)> {
        self.params.iter().map(|(name, param)| (name.clone(), param.shallow_clone())).collect()
    }
}
