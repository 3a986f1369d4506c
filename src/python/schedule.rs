//! `_native.Schedule`.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3_tch::PyTensor;

use super::enter::{enter, raise};
use crate::error::DivaError;
use crate::schedule::{Betas, Prediction, Schedule};

#[pyclass(frozen, name = "Schedule", module = "diva_rs._native")]
pub struct PySchedule(pub Arc<Schedule>);

#[pymethods]
impl PySchedule {
    #[staticmethod]
    #[pyo3(signature = (beta_schedule="linear", num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02,
                        trained_betas=None, rescale_betas_zero_snr=false, prediction_type="epsilon"))]
    #[allow(clippy::too_many_arguments)] // the names and defaults of diffusers' DDPMScheduler
    fn ddpm(
        py: Python<'_>,
        beta_schedule: &str,
        num_train_timesteps: i64,
        beta_start: f64,
        beta_end: f64,
        trained_betas: Option<&Bound<'_, PyAny>>,
        rescale_betas_zero_snr: bool,
        prediction_type: &str,
    ) -> PyResult<Self> {
        let trained = trained_betas.map(numbers).transpose()?;
        enter(py, move || {
            let betas = match trained {
                Some(values) => Betas::Trained(values),
                None => Betas::parse(beta_schedule, beta_start, beta_end)?,
            };
            let prediction = Prediction::parse(prediction_type)?;
            let steps = usize::try_from(num_train_timesteps).unwrap_or(0); // 0 is refused as well
            Ok(Self(Arc::new(Schedule::ddpm(&betas, steps, rescale_betas_zero_snr, prediction)?)))
        })
    }

    #[staticmethod]
    #[pyo3(signature = (alphas_cumprod, prediction_type="epsilon"))]
    fn from_alphas_cumprod(
        py: Python<'_>,
        alphas_cumprod: PyTensor,
        prediction_type: &str,
    ) -> PyResult<Self> {
        enter(py, move || {
            let prediction = Prediction::parse(prediction_type)?;
            Ok(Self(Arc::new(Schedule::from_alphas_cumprod(&alphas_cumprod.0, prediction)?)))
        })
    }

    #[staticmethod]
    #[pyo3(signature = (sigmas, num_train_timesteps=1000.0))]
    fn flow(py: Python<'_>, sigmas: PyTensor, num_train_timesteps: f64) -> PyResult<Self> {
        enter(py, move || Ok(Self(Arc::new(Schedule::flow(&sigmas.0, num_train_timesteps)?))))
    }

    fn add_noise(
        &self,
        py: Python<'_>,
        latents: PyTensor,
        noise: PyTensor,
        timesteps: PyTensor,
    ) -> PyResult<(PyTensor, PyTensor, PyTensor)> {
        let noised = enter(py, move || self.0.add_noise(&latents.0, &noise.0, &timesteps.0))?;
        Ok((PyTensor(noised.noisy), PyTensor(noised.target), PyTensor(noised.model_timesteps)))
    }

    fn weights(
        &self,
        py: Python<'_>,
        timesteps: PyTensor,
        min_snr: f64,
        like: PyTensor,
    ) -> PyResult<PyTensor> {
        enter(py, move || self.0.weights(&timesteps.0, min_snr, &like.0)).map(PyTensor)
    }

    #[getter]
    fn alphas_cumprod(&self, py: Python<'_>) -> PyResult<PyTensor> {
        enter(py, || self.0.alphas_cumprod()).map(PyTensor)
    }

    #[getter]
    fn sigmas(&self, py: Python<'_>) -> PyResult<PyTensor> {
        enter(py, || self.0.sigmas()).map(PyTensor)
    }

    #[getter]
    fn prediction_type(&self) -> &'static str {
        self.0.prediction().name()
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn __repr__(&self) -> String {
        format!("Schedule(prediction_type='{}', len={})", self.0.prediction().name(), self.0.len())
    }
}

/// Floats from a list, a tuple, a NumPy array or a 1-D tensor.
fn numbers(values: &Bound<'_, PyAny>) -> PyResult<Vec<f64>> {
    let read = || values.try_iter()?.map(|item| item?.extract::<f64>()).collect::<PyResult<Vec<f64>>>();
    read().map_err(|err| {
        raise(DivaError::config("Schedule.ddpm", format!("trained_betas must be numbers: {err}")))
    })
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PySchedule>()
}
