//! `_native.Judge`: the denoising losses of images under captions.

use numpy::PyReadonlyArray2;
use pyo3::prelude::*;

use super::enter::{enter_step, raise};
use super::number::number;
use super::schedule::PySchedule;
use super::step::{denoiser, signals};
use super::tensor::{Given, PyTensor};
use crate::error::DivaError;
use crate::feedback::{Captioned, Distance, MemoryLimit, Teacher};
use crate::nn::Wide;

/// A denoiser, native or a callable, and the most images at a time.
#[pyclass(frozen, module = "diva_rs._native")]
struct Judge {
    teacher: Teacher,
    distance: Distance,
    wide: bool,
}

#[pymethods]
impl Judge {
    /// `wide`: multiply the bf16 matrices of a native denoiser on a CPU in float32.
    #[new]
    #[pyo3(signature = (denoiser, schedule, loss="mse", batch=None, wide=false))]
    fn new(
        denoiser: &Bound<'_, PyAny>,
        schedule: PyRef<'_, PySchedule>,
        loss: &str,
        #[pyo3(from_py_with = number)] batch: Option<usize>,
        wide: bool,
    ) -> PyResult<Self> {
        let distance = Distance::parse(loss).map_err(raise)?;
        let (denoiser, schedule) = (self::denoiser(denoiser)?, schedule.0.clone());
        let teacher = Teacher { denoiser, schedule, batch, limit: MemoryLimit::default() };
        Ok(Judge { teacher, distance, wide })
    }

    /// The losses (R, N), by draw, of R pairs (image, text) int64 (R, 2), without gradients: latents (B, ...), noise
    /// (B, N, ...), timesteps (B, N), texts (M, L, C). All texts of an image see the same noise and timesteps. In float32, or
    /// float64 for such latents.
    fn losses(
        &self,
        py: Python<'_>,
        latents: Given,
        noise: Given,
        timesteps: Given,
        texts: Given,
        pairs: PyReadonlyArray2<'_, i64>,
    ) -> PyResult<PyTensor> {
        let pairs = pairs.as_array();
        if pairs.ncols() != 2 {
            let what = format!("`pairs` has shape {:?}, expected (R, 2): image and text", pairs.shape());
            return Err(raise(DivaError::data("Judge.losses", what)));
        }
        let pairs = pairs.rows().into_iter().map(|pair| (pair[0], pair[1])).collect();
        let given = Captioned {
            latents: latents.named("latents")?,
            noise: noise.named("noise")?,
            timesteps: timesteps.named("timesteps")?,
            texts: texts.named("texts")?,
            pairs,
        };
        let (teacher, distance, wide) = (self.teacher.clone(), self.distance, self.wide);
        enter_step(py, move || {
            let _products = Wide::set(wide);
            teacher.caption_losses(&given, distance, &signals)
        })
        .map(PyTensor)
    }

    /// The most images that fit into the denoiser's memory at a time; None while all have fitted.
    #[getter]
    fn limit(&self) -> Option<usize> {
        self.teacher.limit.limit()
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Judge>()
}
