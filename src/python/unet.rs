//! `_native.UNet2DCondition`.

use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use tch::Tensor;

use super::enter::{enter, raise};
use super::fields::{tensors, Fields};
use super::tensor::PyTensor;
use crate::denoiser::pull::{leaf, pull};
use crate::denoiser::unet_2d_condition::config::{
    Block, BlockType, ClassEmbed, Config, TextTime, TimeScaleShift,
};
use crate::denoiser::unet_2d_condition::entry::Fixed;
use crate::denoiser::unet_2d_condition::UNet2DCondition;
use crate::error::{DivaError, Result};
use crate::feedback::{Denoiser, KeysValues};

const OP: &str = "UNet2DCondition";

/// A diffusers UNet2DConditionModel on its own weights. `config` and `weights` as `diva_rs.native.unet` makes them.
#[pyclass(frozen, name = "UNet2DCondition", module = "diva_rs._native")]
pub struct PyUNet2DCondition {
    core: Arc<Mutex<UNet2DCondition>>,
    #[pyo3(get)]
    condition_width: i64,
}

impl PyUNet2DCondition {
    /// The same network, for a step of its own.
    pub(super) fn core(&self) -> Box<dyn Denoiser> {
        Box::new(self.core.clone())
    }
}

#[pymethods]
impl PyUNet2DCondition {
    /// `fixed`: "encoder_hidden_states" (1, L, D), "text_embeds" (1, n) and "time_ids" (1, m), as the network needs them.
    #[new]
    #[pyo3(signature = (config, weights, fixed=None))]
    fn new(
        py: Python<'_>,
        config: &Bound<'_, PyDict>,
        weights: &Bound<'_, PyDict>,
        fixed: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let mut fields = Fields::new(OP, config);
        let config = read(&mut fields)?;
        fields.finish()?;
        let (weights, fixed) = (tensors(weights)?, self::fixed(fixed)?);
        enter(py, move || {
            let core = UNet2DCondition::new(config, weights, &fixed)?;
            let condition_width = core.condition_width();
            Ok(PyUNet2DCondition { core: Arc::new(Mutex::new(core)), condition_width })
        })
    }

    /// Prediction (B, C, h, w) for `noisy` (B, C, h, w), `timesteps` (B,) and `condition` (B, S, `condition_width`).
    /// `text` (1 | B, L, `condition_width`): positions behind those of the condition, without a gradient.
    #[pyo3(signature = (noisy, timesteps, condition, text=None))]
    fn predict(
        &self,
        py: Python<'_>,
        noisy: PyTensor,
        timesteps: PyTensor,
        condition: PyTensor,
        text: Option<PyTensor>,
    ) -> PyResult<PyTensor> {
        let (core, noisy, timesteps, condition) = (self.core(), noisy.0, timesteps.0, condition.0);
        let text = text.map(|text| text.0);
        enter(py, move || {
            let text = kept(core.as_ref(), text)?;
            core.predict_with(&noisy, &timesteps, &condition, text.as_ref())
        })
        .map(PyTensor)
    }

    /// (prediction, the gradient at the condition), given the gradient at the prediction: recomputing, where the
    /// configuration says so.
    #[pyo3(signature = (noisy, timesteps, condition, at_prediction, text=None))]
    fn gradient(
        &self,
        py: Python<'_>,
        noisy: PyTensor,
        timesteps: PyTensor,
        condition: PyTensor,
        at_prediction: PyTensor,
        text: Option<PyTensor>,
    ) -> PyResult<(PyTensor, PyTensor)> {
        let (core, at_prediction) = (self.core(), at_prediction.0);
        let (noisy, timesteps, condition) = (noisy.0, timesteps.0, condition.0);
        let text = text.map(|text| text.0);
        enter(py, move || {
            let text = kept(core.as_ref(), text)?;
            let parts = (&noisy, &timesteps, &condition, text.as_ref());
            gradient(core.as_ref(), parts, &at_prediction)
        })
        .map(|(prediction, gradient)| (PyTensor(prediction), PyTensor(gradient)))
    }
}

fn kept(network: &dyn Denoiser, text: Option<Tensor>) -> Result<Option<KeysValues>> {
    match text {
        None => Ok(None),
        Some(text) => match network.read(&text)? {
            None => Err(DivaError::config(OP, "this network reads no text apart from its condition")),
            kept => Ok(kept),
        },
    }
}

type Parts<'a> = (&'a Tensor, &'a Tensor, &'a Tensor, Option<&'a KeysValues>);

/// (prediction, the gradient at the condition), given the gradient at the prediction.
pub(super) fn gradient(
    network: &dyn Denoiser,
    (noisy, timesteps, condition, text): Parts,
    at_prediction: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let mut seen = None;
    let mut judge = |prediction: &Tensor| {
        seen = Some(prediction.f_detach()?);
        Ok(at_prediction.shallow_clone())
    };
    if let Some(gradient) = network.gradient(noisy, timesteps, condition, text, &mut judge)? {
        return match seen {
            Some(prediction) => Ok((prediction, gradient)),
            None => Err(DivaError::config(OP, "the prediction was not judged")),
        };
    }
    let source = leaf(condition)?;
    let prediction = network.predict_with(noisy, timesteps, &source, text)?;
    let gradient = pull(&prediction, at_prediction, &[&source])?.swap_remove(0);
    Ok((prediction.f_detach()?, gradient))
}

/// (diffusers' block type, transformer layers beside each ResNet, heads)
type BlockArgs = (String, Vec<usize>, i64);

fn block(args: BlockArgs, parse: impl Fn(&str) -> Result<BlockType>) -> PyResult<Block> {
    let (name, depths, heads) = args;
    Ok(Block { kind: parse(&name).map_err(raise)?, depths, heads })
}

fn read(fields: &mut Fields) -> PyResult<Config> {
    let down: Vec<BlockArgs> = fields.get("down_blocks")?;
    let mid: Option<BlockArgs> = fields.get("mid_block")?;
    let up: Vec<BlockArgs> = fields.get("up_blocks")?;
    let addition: Option<(i64, i64)> = fields.get("text_time")?;
    Ok(Config {
        in_channels: fields.get("in_channels")?,
        out_channels: fields.get("out_channels")?,
        block_out_channels: fields.get("block_out_channels")?,
        down_blocks: down.into_iter().map(|args| block(args, BlockType::down)).collect::<PyResult<_>>()?,
        mid_block: mid.map(|args| block(args, BlockType::mid)).transpose()?,
        up_blocks: up.into_iter().map(|args| block(args, BlockType::up)).collect::<PyResult<_>>()?,
        center_input_sample: fields.get("center_input_sample")?,
        flip_sin_to_cos: fields.get("flip_sin_to_cos")?,
        freq_shift: fields.get("freq_shift")?,
        time_embedding_dim: fields.get("time_embedding_dim")?,
        downsample_padding: fields.get("downsample_padding")?,
        mid_block_scale_factor: fields.get("mid_block_scale_factor")?,
        norm_num_groups: fields.get("norm_num_groups")?,
        norm_eps: fields.get("norm_eps")?,
        resnet_time_scale_shift: fields.parse("resnet_time_scale_shift", TimeScaleShift::parse)?,
        cross_attention_dim: fields.get("cross_attention_dim")?,
        use_linear_projection: fields.get("use_linear_projection")?,
        attention_norm_eps: fields.get("attention_norm_eps")?,
        class_embed_type: fields.maybe("class_embed_type", ClassEmbed::parse)?,
        text_time: addition.map(|(addition_time_embed_dim, pixels_per_latent)| TextTime {
            addition_time_embed_dim,
            pixels_per_latent,
        }),
        projection_class_embeddings_input_dim: fields.get("projection_class_embeddings_input_dim")?,
        checkpoint: fields.get("checkpoint")?,
    })
}

fn fixed(dict: Option<&Bound<'_, PyDict>>) -> PyResult<Fixed> {
    let mut fixed = Fixed::default();
    for (name, tensor) in dict.map(tensors).transpose()?.into_iter().flatten() {
        let slot = match name.as_str() {
            "encoder_hidden_states" => &mut fixed.encoder_hidden_states,
            "text_embeds" => &mut fixed.text_embeds,
            "time_ids" => &mut fixed.time_ids,
            other => {
                let known = "known are encoder_hidden_states, text_embeds and time_ids";
                return Err(raise(DivaError::config(
                    OP,
                    format!("fixed has an unknown tensor {other:?}; {known}"),
                )));
            }
        };
        *slot = Some(tensor);
    }
    Ok(fixed)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyUNet2DCondition>()
}
