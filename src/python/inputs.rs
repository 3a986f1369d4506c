//! `_native.Pixels` and `_native.Reader`: from a batch as the loader gave it to the tensors of a step.

use std::sync::Mutex;

use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use tch::Tensor;

use super::draws::DrawPlan;
use super::enter::{enter, enter_step, lock, raise};
use super::list::List;
use super::network::PyNetwork;
use super::number::number;
use super::step::{untargets, Callback, PyTargets};
use super::tensor::{optional, Given, PyTensor};
use crate::error::{DivaError, Result};
use crate::inputs::{Batch, Drawn, Encoder, Reader};
use crate::pixels::{Convention, Filter, Pixels, VaePixels};

/// How the images of a run are read: the fields of a recipe of these names, and CLIP's mean and std per channel.
///
/// Raises ConfigError for an unknown name.
///
/// >>> import torch
/// >>> half = (0.5, 0.5, 0.5)
/// >>> pixels = Pixels("unit", "symmetric", "bicubic", True, half, half)
/// >>> pixels.clip_input(torch.zeros(1, 3, 64, 48), (32, 32)).unique()
/// tensor([-1.])
#[pyclass(frozen, name = "Pixels", module = "diva_rs._native")]
struct PyPixels(Pixels);

#[pymethods]
impl PyPixels {
    #[new]
    fn new(
        pixels: &str,
        vae_pixels: &str,
        resize: &str,
        antialias: bool,
        #[pyo3(from_py_with = number)] mean: [f64; 3],
        #[pyo3(from_py_with = number)] std: [f64; 3],
    ) -> PyResult<Self> {
        let read = || -> Result<Pixels> {
            Ok(Pixels {
                convention: Convention::parse(pixels)?,
                vae: VaePixels::parse(vae_pixels)?,
                filter: Filter::parse(resize)?,
                antialias,
                mean,
                std,
            })
        };
        read().map(PyPixels).map_err(raise)
    }

    /// Pixels in [0, 1] of images in the declared convention.
    fn to_unit(&self, py: Python<'_>, images: Given) -> PyResult<PyTensor> {
        let images = images.named("images")?;
        enter(py, move || self.0.to_unit(&images, self.0.convention)).map(PyTensor)
    }

    /// CLIP's input (B, 3, *size) of images (B, 3, H, W).
    fn clip_input(
        &self,
        py: Python<'_>,
        images: Given,
        #[pyo3(from_py_with = number)] size: (i64, i64),
    ) -> PyResult<PyTensor> {
        let images = images.named("images")?;
        enter(py, move || self.0.clip_input(&images, size)).map(PyTensor)
    }

    /// The VAE's input (B, 3, *size) of images (B, 3, H, W).
    fn vae_input(
        &self,
        py: Python<'_>,
        images: Given,
        #[pyo3(from_py_with = number)] size: (i64, i64),
    ) -> PyResult<PyTensor> {
        let images = images.named("images")?;
        enter(py, move || self.0.vae_input(&images, size, self.0.convention)).map(PyTensor)
    }
}

/// Makes the tensors of a step, on the device and in the dtype of ``home``; ``size`` is that of CLIP's input.
#[pyclass(frozen, name = "Reader", module = "diva_rs._native")]
pub struct PyReader(pub Mutex<Reader>);

#[pymethods]
impl PyReader {
    #[new]
    fn new(
        pixels: &PyPixels,
        #[pyo3(from_py_with = number)] size: (i64, i64),
        home: Given,
    ) -> PyResult<Self> {
        Ok(PyReader(Mutex::new(Reader { pixels: pixels.0, size, home: home.named("home")? })))
    }

    /// CLIP's input (B, 3, H, W) and the targets (latents, noise, timesteps, choice, text) of a `diva_rs.inputs.RawBatch`.
    fn read(&self, py: Python<'_>, batch: RawBatch<'_>) -> PyResult<(PyTensor, PyTargets)> {
        let batch = batch.core(py)?;
        let (images, targets) = enter_step(py, move || lock(&self.0).read(&batch, &|| Ok(())))?;
        Ok((PyTensor(images), untargets(targets)))
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

/// The attributes of a `diva_rs.inputs.RawBatch`.
#[derive(FromPyObject)]
pub struct RawBatch<'py> {
    images: Option<Given>,
    pixel_values: Option<Given>,
    latents: Option<Given>,
    text: Given,
    #[pyo3(from_py_with = number)]
    size: (i64, i64),
    encoder: Option<PyObject>,
    #[pyo3(from_py_with = number)]
    sampled: Option<List<usize>>,
    drawn: Bound<'py, PyAny>,
    keys: PyReadonlyArray1<'py, u64>,
    #[pyo3(from_py_with = number)]
    epoch: u64,
    #[pyo3(from_py_with = number)]
    seed: u64,
}

impl RawBatch<'_> {
    pub fn core(self, py: Python<'_>) -> PyResult<Batch> {
        let drawn = match self.drawn.downcast::<DrawPlan>() {
            Ok(plan) => Drawn::Keyed(plan.get().core.clone()),
            Err(_) => {
                let (timesteps, noise, choice): (Given, Given, Option<Given>) = self.drawn.extract()?;
                Drawn::Given {
                    timesteps: timesteps.named("timesteps")?,
                    noise: noise.named("noise")?,
                    choice: optional(choice, "choice")?,
                }
            }
        };
        Ok(Batch {
            images: optional(self.images, "images")?,
            pixel_values: optional(self.pixel_values, "pixel_values")?,
            latents: optional(self.latents, "latents")?,
            text: self.text.named("text")?,
            size: self.size,
            encoder: self.encoder.map(|object| encoder(py, object)).transpose()?,
            sampled: self.sampled.map(|List(items)| items),
            drawn,
            keys: self.keys.as_array().to_vec(),
            epoch: self.epoch,
            seed: self.seed,
        })
    }
}

/// A native VAE where the object is one, otherwise a callable `images[, noise] -> latents`.
fn encoder(py: Python<'_>, object: PyObject) -> PyResult<Box<dyn Encoder>> {
    match object.bind(py).downcast::<PyNetwork>() {
        Ok(native) => native.get().encoder(),
        Err(_) => Ok(Box::new(Callback(object))),
    }
}

/// Runs the handlers of signals that arrived.
pub fn signals() -> Result<()> {
    Python::with_gil(|py| py.check_signals()).map_err(|err| DivaError::Callback(Box::new(err)))
}

/// Tells the caller that from now on the step is not to be interrupted.
pub fn held(hold: &Option<PyObject>) -> Result<()> {
    let Some(hold) = hold else { return Ok(()) };
    Python::with_gil(|py| hold.call0(py).map(|_| ())).map_err(|err| DivaError::Callback(Box::new(err)))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyPixels>()?;
    module.add_class::<PyReader>()
}
