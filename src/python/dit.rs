//! `_native.DiTTransformer2D`.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::denoiser::PyDenoiser;
use super::enter::enter;
use super::fields::{tensors, Fields};
use crate::denoiser::dit::config::{Config, Label, OP};
use crate::denoiser::dit::DiTTransformer2D;
use crate::nn::Activation;

/// A diffusers DiTTransformer2DModel on its own weights. `config` and `weights` as `diva_rs.native.dit` makes them.
#[pyclass(frozen, extends = PyDenoiser, name = "DiTTransformer2D", module = "diva_rs._native")]
pub struct PyDiTTransformer2D;

#[pymethods]
impl PyDiTTransformer2D {
    #[new]
    fn new(
        py: Python<'_>,
        config: &Bound<'_, PyDict>,
        weights: &Bound<'_, PyDict>,
    ) -> PyResult<(Self, PyDenoiser)> {
        let (config, weights) = (Fields::whole(OP, config, read)?, tensors(weights)?);
        enter(py, move || {
            let core = DiTTransformer2D::new(config, weights)?;
            let width = core.condition_width();
            Ok((PyDiTTransformer2D, PyDenoiser::new(core, width)))
        })
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
