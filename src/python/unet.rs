//! `_native.UNet2DCondition`.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::denoiser::PyDenoiser;
use super::enter::{enter, raise};
use super::fields::{tensors, Fields};
use super::list::List;
use crate::denoiser::unet_2d_condition::config::{
    Block, BlockType, ClassEmbed, Config, TextTime, TimeScaleShift,
};
use crate::denoiser::unet_2d_condition::entry::Fixed;
use crate::denoiser::unet_2d_condition::UNet2DCondition;
use crate::error::{DivaError, Result};

const OP: &str = "UNet2DCondition";

/// A diffusers UNet2DConditionModel on its own weights. `config` and `weights` as `diva_rs.native.unet` makes them.
#[pyclass(frozen, extends = PyDenoiser, name = "UNet2DCondition", module = "diva_rs._native")]
pub struct PyUNet2DCondition;

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
    ) -> PyResult<(Self, PyDenoiser)> {
        let (config, weights) = (Fields::whole(OP, config, read)?, tensors(weights)?);
        let fixed = self::fixed(fixed)?;
        enter(py, move || {
            let core = UNet2DCondition::new(config, weights, &fixed)?;
            let width = core.condition_width();
            Ok((PyUNet2DCondition, PyDenoiser::new(core, width)))
        })
    }
}

/// (diffusers' block type, transformer layers beside each ResNet, heads)
type BlockArgs = (String, List<usize>, i64);

fn block(args: BlockArgs, parse: impl Fn(&str) -> Result<BlockType>) -> PyResult<Block> {
    let (name, List(depths), heads) = args;
    Ok(Block { kind: parse(&name).map_err(raise)?, depths, heads })
}

fn read(fields: &mut Fields) -> PyResult<Config> {
    let down: Vec<BlockArgs> = fields.list("down_blocks")?;
    let mid: Option<BlockArgs> = fields.get("mid_block")?;
    let up: Vec<BlockArgs> = fields.list("up_blocks")?;
    let addition: Option<(i64, i64)> = fields.get("text_time")?;
    Ok(Config {
        in_channels: fields.get("in_channels")?,
        out_channels: fields.get("out_channels")?,
        block_out_channels: fields.list("block_out_channels")?,
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
