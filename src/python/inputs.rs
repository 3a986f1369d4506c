//! `_native.Pixels` and `_native.Reader`: from a batch as the loader gave it to the tensors of a step.

use std::sync::Mutex;

use numpy::PyReadonlyArray1;
use pyo3::prelude::*;

use super::callback::Callback;
use super::draws::DrawPlan;
use super::enter::{enter, enter_step, lock, raise};
use super::list::List;
use super::network::PyNetwork;
use super::number::number;
use super::targets::{untargets, PyTargets};
use super::tensor::{optional, Given, PyTensor};
use crate::error::{DivaError, Result};
use crate::inputs::{Batch, Drawn, Encoder, Query, Reader};
use crate::nn::Wide;
use crate::pixels::{Convention, Filter, Pixels, VaePixels};
use crate::resample::{resample, Window};

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

    /// CLIP's input (B | 2B, 3, H, W), where augmented views follow, and the targets (latents, noise, timesteps, choice, text) of a batch; None for these where
    /// there is no denoiser. `wide`: multiply the bf16 matrices of a native VAE on a CPU in float32.
    #[pyo3(signature = (batch, wide=false))]
    fn read(&self, py: Python<'_>, batch: &PyBatch, wide: bool) -> PyResult<(PyTensor, Option<PyTargets>)> {
        let (images, data) = enter_step(py, || {
            let _products = Wide::set(wide);
            lock(&self.0).read(&lock(&batch.0), &|| Ok(()))
        })?;
        Ok((PyTensor(images), data.targets.map(untargets)))
    }
}

/// A loader's batch of B samples, checked and not yet computed on.
///
/// ``images`` (B, 3, H, W) are in the declared convention, ``pixel_values`` and ``augmented``, the augmented views (B, 3, h,
/// w) that a term needs, ready for CLIP, ``latents`` (B, C, h, w) scaled; ``text`` (1 | B, L, C) is on the student's device. ``size`` is that of the images that latents are
/// made from, by ``encoder``, where none are given; ``sampled`` is the shape of a latent where it is drawn from the
/// posterior; ``pooled_noise`` (V,) the standard deviation of the noise at the pooled condition of each draw. ``drawn``: a `DrawPlan`, or timesteps, noise and token choices. Where there is no denoiser, ``text`` and
/// ``drawn`` are None.
#[pyclass(frozen, name = "Batch", module = "diva_rs._native")]
pub struct PyBatch(pub Mutex<Batch>);

#[pymethods]
impl PyBatch {
    #[new]
    #[pyo3(signature = (*, keys, text=None, drawn=None, epoch=0, seed=0, images=None, pixel_values=None, augmented=None, latents=None, size=(0, 0), encoder=None, sampled=None, pooled_noise=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        keys: PyReadonlyArray1<'_, u64>,
        text: Option<Given>,
        drawn: Option<Bound<'_, PyAny>>,
        #[pyo3(from_py_with = number)] epoch: u64,
        #[pyo3(from_py_with = number)] seed: u64,
        images: Option<Given>,
        pixel_values: Option<Given>,
        augmented: Option<Given>,
        latents: Option<Given>,
        #[pyo3(from_py_with = number)] size: (i64, i64),
        encoder: Option<PyObject>,
        #[pyo3(from_py_with = number)] sampled: Option<List<usize>>,
        pooled_noise: Option<Given>,
    ) -> PyResult<Self> {
        let query = match (text, drawn) {
            (Some(text), Some(drawn)) => {
                Some(Query { text: text.named("text")?, drawn: self::drawn(&drawn)? })
            }
            (None, None) => None,
            _ => {
                return Err(raise(DivaError::config(
                    "Batch",
                    "text and drawn go together: give both or none",
                )))
            }
        };
        Ok(PyBatch(Mutex::new(Batch {
            images: optional(images, "images")?,
            pixel_values: optional(pixel_values, "pixel_values")?,
            augmented: optional(augmented, "augmented")?,
            latents: optional(latents, "latents")?,
            size,
            encoder: encoder.map(|object| self::encoder(py, object)).transpose()?,
            sampled: sampled.map(|List(items)| items),
            pooled_noise: optional(pooled_noise, "pooled_noise")?,
            query,
            keys: keys.as_array().to_vec(),
            epoch,
            seed,
        })))
    }

    fn __len__(&self) -> usize {
        lock(&self.0).keys.len()
    }
}

/// A plan, or timesteps, noise and token choices.
fn drawn(object: &Bound<'_, PyAny>) -> PyResult<Drawn> {
    if let Ok(plan) = object.downcast::<DrawPlan>() {
        return Ok(Drawn::Keyed(plan.get().core.clone()));
    }
    let (timesteps, noise, choice): (Given, Given, Option<Given>) = object.extract()?;
    Ok(Drawn::Given {
        timesteps: timesteps.named("timesteps")?,
        noise: noise.named("noise")?,
        choice: optional(choice, "choice")?,
    })
}

/// A native VAE where the object is one, otherwise a callable `images[, noise] -> latents`.
fn encoder(py: Python<'_>, object: PyObject) -> PyResult<Box<dyn Encoder>> {
    match object.bind(py).downcast::<PyNetwork>() {
        Ok(native) => native.get().encoder(),
        Err(_) => Ok(Box::new(Callback(object))),
    }
}

/// The window (top, left, height, width) of a picture of RGB bytes, `width` pixels wide, at another size (h, w), as by
/// Pillow's bicubic resize, and of that the window `kept`: (3, kept height, kept width) float32 in [0, 1].
#[pyfunction]
fn resampled(
    py: Python<'_>,
    picture: PyReadonlyArray1<'_, u8>,
    width: usize,
    window: (usize, usize, usize, usize),
    size: (usize, usize),
    kept: (usize, usize, usize, usize),
) -> PyResult<PyTensor> {
    let [window, kept] = [window, kept].map(|(top, left, height, width)| Window { top, left, height, width });
    let picture = picture.as_slice()?;
    enter(py, || resample(picture, width, window, size, kept)).map(PyTensor)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyBatch>()?;
    module.add_class::<PyPixels>()?;
    module.add_class::<PyReader>()?;
    module.add_function(wrap_pyfunction!(resampled, module)?)
}
