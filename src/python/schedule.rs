//! `_native.Schedule`.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::enter::enter;
use super::number::number;
use super::tensor::{Given, PyTensor};
use crate::schedule::{Prediction, Schedule};

/// How much noise a sample gets at a timestep, and what the denoiser predicts there.
///
/// Made by ``from_alphas_cumprod`` or ``flow``; immutable. ``len(schedule)`` is the number T of timesteps,
/// valid ones are the integers 0 to T - 1, and the noise rises with them.
///
/// >>> import torch
/// >>> betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
/// >>> schedule = Schedule.from_alphas_cumprod(torch.cumprod(1 - betas, 0))
/// >>> schedule
/// Schedule(prediction_type='epsilon', len=1000)
/// >>> latents, noise = torch.zeros(2, 4, 8, 8), torch.ones(2, 4, 8, 8)
/// >>> noisy, target, model_timesteps = schedule.add_noise(latents, noise, torch.tensor([0, 999]))
/// >>> noisy[:, 0, 0, 0]
/// tensor([0.0292, 0.9977])
#[pyclass(frozen, name = "Schedule", module = "diva_rs._native")]
pub struct PySchedule(pub Arc<Schedule>);

#[pymethods]
impl PySchedule {
    /// A schedule from the ``alphas_cumprod`` of any variance-preserving scheduler: a float32 or float64 tensor (T,) in [0, 1]
    /// that never increases. It is copied. ``prediction_type``: ``"epsilon"``, ``"v_prediction"`` or
    /// ``"sample"``.
    ///
    /// Raises ShapeError for another rank or dtype, ConfigError for values that no schedule has.
    ///
    /// >>> import torch
    /// >>> len(Schedule.from_alphas_cumprod(torch.tensor([0.9, 0.5, 0.1]), "v_prediction"))
    /// 3
    #[staticmethod]
    #[pyo3(signature = (alphas_cumprod, prediction_type="epsilon"))]
    fn from_alphas_cumprod(py: Python<'_>, alphas_cumprod: Given, prediction_type: &str) -> PyResult<Self> {
        let table = alphas_cumprod.named("alphas_cumprod")?;
        enter(py, move || {
            let prediction = Prediction::parse(prediction_type)?;
            Ok(Self(Arc::new(Schedule::from_alphas_cumprod(&table, prediction)?)))
        })
    }

    /// Flow matching: ``x_t = (1 - sigma) x_0 + sigma noise``, target ``noise - x_0``. ``sigmas``: a float32 or float64 tensor (T,) in
    /// [0, 1], strictly rising, or strictly falling (as diffusers keeps it) which is reversed. The model takes
    /// ``sigma * num_train_timesteps`` as its timestep.
    ///
    /// Raises ShapeError for another rank or dtype, ConfigError for other values.
    ///
    /// >>> import torch
    /// >>> schedule = Schedule.flow(torch.tensor([1.0, 0.5, 0.25]))
    /// >>> x = torch.zeros(1, 4, 8, 8)
    /// >>> schedule.add_noise(x, x, torch.tensor([0]))[2]
    /// tensor([250.])
    #[staticmethod]
    #[pyo3(signature = (sigmas, num_train_timesteps=1000.0))]
    fn flow(
        py: Python<'_>,
        sigmas: Given,
        #[pyo3(from_py_with = number)] num_train_timesteps: f64,
    ) -> PyResult<Self> {
        let sigmas = sigmas.named("sigmas")?;
        enter(py, move || Ok(Self(Arc::new(Schedule::flow(&sigmas, num_train_timesteps)?))))
    }

    /// ``(noisy, target, model_timesteps)`` for latents (B, ...) of a floating dtype, noise of the same shape, dtype and
    /// device, and timesteps (B,) int64 on that device or on the CPU.
    ///
    /// ``noisy`` and ``target`` are like the latents, ``model_timesteps`` (B,) is the timesteps, or float32 for flow matching.
    /// No gradient passes. For ``"epsilon"`` and ``"sample"`` the target shares the memory of the noise or the latents. On the CPU
    /// float32 and float64 take one fused pass; every device and dtype gives what diffusers' ``add_noise``, ``get_velocity`` and
    /// ``scale_noise`` give.
    ///
    /// Raises ShapeError for shapes or dtypes that do not fit, DeviceError for tensors apart, DataError for timesteps
    /// out of range (seen on the host only when they are there).
    ///
    /// >>> import torch
    /// >>> schedule = Schedule.from_alphas_cumprod(torch.linspace(1, 0, 1000), "v_prediction")
    /// >>> x = torch.ones(1, 4, 8, 8)
    /// >>> noisy, target, model_timesteps = schedule.add_noise(x, 0 * x, torch.tensor([500]))
    /// >>> bool(torch.allclose(noisy ** 2 + target ** 2, x)), model_timesteps
    /// (True, tensor([500]))
    fn add_noise(
        &self,
        py: Python<'_>,
        latents: Given,
        noise: Given,
        timesteps: Given,
    ) -> PyResult<(PyTensor, PyTensor, PyTensor)> {
        let (latents, noise) = (latents.named("latents")?, noise.named("noise")?);
        let timesteps = timesteps.named("timesteps")?;
        let noised = enter(py, move || self.0.add_noise(&latents, &noise, &timesteps))?;
        Ok((PyTensor(noised.noisy), PyTensor(noised.target), PyTensor(noised.model_timesteps)))
    }

    /// Min-SNR loss weights (B,) of timesteps (B,) int64, on the device and in the dtype of ``like`` (arXiv 2303.09556; in
    /// float32 inside, as diffusers' ``compute_snr``). With ``snr = (signal / noise) ** 2`` and ``m = min(snr, min_snr)``: ``m`` for
    /// ``"sample"``, ``m / snr`` for ``"epsilon"``, ``m / (snr + 1)`` for ``"v_prediction"``, ``m * sigma ** 2`` for flow matching. Finite at every
    /// noise level, zero terminal SNR included.
    ///
    /// Raises ConfigError unless ``min_snr`` is above 0 and finite, and what ``add_noise`` raises for timesteps.
    ///
    /// >>> import torch
    /// >>> schedule = Schedule.from_alphas_cumprod(torch.tensor([0.99, 0.5, 0.1]))
    /// >>> schedule.weights(torch.tensor([0, 2]), 5.0, like=torch.zeros(1))
    /// tensor([0.0505, 1.0000])
    fn weights(
        &self,
        py: Python<'_>,
        timesteps: Given,
        #[pyo3(from_py_with = number)] min_snr: f64,
        like: Given,
    ) -> PyResult<PyTensor> {
        let (timesteps, like) = (timesteps.named("timesteps")?, like.named("like")?);
        enter(py, move || self.0.weights(&timesteps, min_snr, &like)).map(PyTensor)
    }

    /// A copy of the table (T,) on the CPU. ConfigError for flow matching, which has ``sigmas``.
    #[getter]
    fn alphas_cumprod(&self, py: Python<'_>) -> PyResult<PyTensor> {
        enter(py, || self.0.alphas_cumprod()).map(PyTensor)
    }

    /// A copy of the rising table (T,) on the CPU. ConfigError unless this is flow matching.
    #[getter]
    fn sigmas(&self, py: Python<'_>) -> PyResult<PyTensor> {
        enter(py, || self.0.sigmas()).map(PyTensor)
    }

    /// ``"epsilon"``, ``"v_prediction"``, ``"sample"`` or ``"flow"``.
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

    /// Copies and pickles by the table: a teacher can be sent to a worker process.
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let class = py.get_type::<Self>();
        match self.0.train_timesteps() {
            Some(count) => Ok((class.getattr("flow")?, (self.sigmas(py)?, count).into_pyobject(py)?)),
            None => {
                let args = (self.alphas_cumprod(py)?, self.prediction_type()).into_pyobject(py)?;
                Ok((class.getattr("from_alphas_cumprod")?, args))
            }
        }
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PySchedule>()
}
