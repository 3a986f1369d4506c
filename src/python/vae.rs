//! `_native.AutoencoderEncoder`.

use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use tch::Tensor;

use super::enter::{enter, lock};
use super::fields::{tensors, Fields};
use super::list::List;
use super::number::number;
use super::tensor::{Given, PyTensor};
use crate::denoiser::vae::config::{Config, Scaling, OP};
use crate::denoiser::vae::AutoencoderEncoder;
use crate::error::Result;
use crate::inputs::Encoder;

/// The encoder of a diffusers AutoencoderKL on its own weights. `config` and `weights` as `diva_rs.native.vae` makes
/// them.
#[pyclass(frozen, name = "AutoencoderEncoder", module = "diva_rs._native")]
pub struct PyAutoencoderEncoder {
    core: Arc<Mutex<AutoencoderEncoder>>,
}

impl PyAutoencoderEncoder {
    /// The same network, for a step of its own.
    pub(super) fn core(&self) -> Box<dyn Encoder> {
        Box::new(Shared(self.core.clone()))
    }
}

struct Shared(Arc<Mutex<AutoencoderEncoder>>);

impl Encoder for Shared {
    fn encode(&self, images: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        lock(&self.0).encode(images, noise, i64::MAX)
    }
}

#[pymethods]
impl PyAutoencoderEncoder {
    #[new]
    fn new(py: Python<'_>, config: &Bound<'_, PyDict>, weights: &Bound<'_, PyDict>) -> PyResult<Self> {
        let (config, weights) = (Fields::whole(OP, config, read)?, tensors(weights)?);
        enter(py, move || {
            Ok(PyAutoencoderEncoder { core: Arc::new(Mutex::new(AutoencoderEncoder::new(config, weights)?)) })
        })
    }

    /// Latents (B, C, h, w) of images (B, 3, H, W) in [-1, 1]: the posterior's mean, shifted and scaled, without
    /// gradients, in the dtype and on the device of `images`.
    #[pyo3(signature = (images, micro_batch=8))]
    fn encode(
        &self,
        py: Python<'_>,
        images: Given,
        #[pyo3(from_py_with = number)] micro_batch: i64,
    ) -> PyResult<PyTensor> {
        let images = images.named("images")?;
        enter(py, move || lock(&self.core).encode(&images, None, micro_batch)).map(PyTensor)
    }

    /// The same with mean + std * noise in place of the mean; `noise` is standard normal, (B, C, h, w).
    #[pyo3(signature = (images, noise, micro_batch=8))]
    fn encode_sample(
        &self,
        py: Python<'_>,
        images: Given,
        noise: Given,
        #[pyo3(from_py_with = number)] micro_batch: i64,
    ) -> PyResult<PyTensor> {
        let (images, noise) = (images.named("images")?, noise.named("noise")?);
        enter(py, move || lock(&self.core).encode(&images, Some(&noise), micro_batch)).map(PyTensor)
    }
}

fn read(fields: &mut Fields) -> PyResult<Config> {
    Ok(Config {
        in_channels: fields.get("in_channels")?,
        latent_channels: fields.get("latent_channels")?,
        block_out_channels: fields.list("block_out_channels")?,
        layers_per_block: fields.get("layers_per_block")?,
        mid_layers: fields.get("mid_layers")?,
        mid_heads: fields.get("mid_heads")?,
        norm_num_groups: fields.get("norm_num_groups")?,
        norm_eps: fields.get("norm_eps")?,
        quant_conv: fields.get("quant_conv")?,
        scaling: Scaling {
            factor: fields.get("scaling_factor")?,
            shift: fields.get("shift_factor")?,
            channels: fields
                .get::<Option<(List<f64>, List<f64>)>>("latents_mean_std")?
                .map(|(means, stds)| (means.0, stds.0)),
        },
    })
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyAutoencoderEncoder>()
}
