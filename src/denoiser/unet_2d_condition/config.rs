//! What a UNet2DConditionModel is built from, under the names of diffusers' configuration, and the checks that make
//! building it safe.

use serde::Deserialize;

use crate::error::{DivaError, Result};

pub const OP: &str = "UNet2DCondition";

/// One block: the number of transformer layers beside each of its ResNets, 0 for all or for none. A mid block has one more
/// ResNet, before the first.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    pub depths: Vec<usize>,
    /// Attention heads; what diffusers' configuration calls `attention_head_dim`.
    pub heads: i64,
}

/// How the time embedding enters a ResNet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeScaleShift {
    /// Added between the convolutions.
    Default,
    /// Scales and shifts the second norm's output.
    ScaleShift,
}

/// An image embedding that enters through the time embedding (Stable unCLIP).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassEmbed {
    /// Two layers, as for timesteps.
    Projection,
    /// One linear layer.
    SimpleProjection,
}

/// SDXL's `addition_embed_type="text_time"` (arXiv 2307.01952): pooled text and sizes through the time embedding.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextTime {
    /// Width of the sinusoids of each size.
    pub addition_time_embed_dim: i64,
    /// Pixels per latent along a side, for the sizes of an image that is not cropped.
    pub pixels_per_latent: i64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub in_channels: i64,
    /// As `in_channels`, or twice that: a learned variance, which is computed and dropped.
    pub out_channels: i64,
    pub block_out_channels: Vec<i64>,
    pub down_blocks: Vec<Block>,
    pub mid_block: Option<Block>,
    pub up_blocks: Vec<Block>,
    pub center_input_sample: bool,
    pub flip_sin_to_cos: bool,
    pub freq_shift: f64,
    pub time_embedding_dim: i64,
    pub downsample_padding: i64,
    pub mid_block_scale_factor: f64,
    pub norm_num_groups: i64,
    pub norm_eps: f64,
    pub resnet_time_scale_shift: TimeScaleShift,
    pub cross_attention_dim: i64,
    pub use_linear_projection: bool,
    /// Of the group norm before a transformer, and of the layer norms in it.
    pub attention_norm_eps: (f64, f64),
    pub class_embed_type: Option<ClassEmbed>,
    pub text_time: Option<TextTime>,
    /// Input width of the class embedding or of the added embedding.
    pub projection_class_embeddings_input_dim: Option<i64>,
    /// Whether a step computes each unit again in the backward pass instead of keeping its activations.
    pub checkpoint: bool,
}

impl Config {
    /// Every way in which building or running the network could divide by zero, index out of range or compute another
    /// network than diffusers would.
    pub fn check(&self) -> Result<()> {
        let levels = self.block_out_channels.len();
        if levels == 0 || self.down_blocks.len() != levels || self.up_blocks.len() != levels {
            return refuse(format!(
                "block_out_channels has {levels} entries, down_blocks {}, up_blocks {}: all need the same number, \
                 at least 1",
                self.down_blocks.len(),
                self.up_blocks.len()
            ));
        }
        let sizes =
            [self.in_channels, self.time_embedding_dim, self.norm_num_groups, self.cross_attention_dim];
        if sizes.iter().chain(&self.block_out_channels).any(|size| !(1..=1 << 20).contains(size)) {
            return refuse(format!("each size must be from 1 to {}: {self:?}", 1 << 20));
        }
        if self.out_channels != self.in_channels && self.out_channels != 2 * self.in_channels {
            return refuse(format!(
                "{} channels in and {} out: neither as many nor twice as many",
                self.in_channels, self.out_channels
            ));
        }
        if let Some(channels) =
            self.block_out_channels.iter().find(|&channels| channels % self.norm_num_groups != 0)
        {
            return refuse(format!(
                "{channels} channels cannot be normalised in {} groups",
                self.norm_num_groups
            ));
        }
        if !matches!(self.downsample_padding, 0 | 1) {
            return refuse(format!("downsample_padding {}: must be 0 or 1", self.downsample_padding));
        }
        if !self.mid_block_scale_factor.is_finite() || self.mid_block_scale_factor == 0.0 {
            return refuse(format!(
                "mid_block_scale_factor {}: must be finite and not 0",
                self.mid_block_scale_factor
            ));
        }
        self.check_blocks()
    }

    fn check_blocks(&self) -> Result<()> {
        let channels = &self.block_out_channels;
        for (block, &channels) in self.down_blocks.iter().zip(channels) {
            block.check(channels)?;
        }
        for (block, &channels) in self.mid_block.iter().zip(channels.last()) {
            block.check(channels)?;
        }
        // The residuals of a down block, one per ResNet and one per change of resolution, are what its up block takes.
        for ((down, up), &channels) in
            self.down_blocks.iter().rev().zip(&self.up_blocks).zip(channels.iter().rev())
        {
            up.check(channels)?;
            if up.depths.len() != down.depths.len() + 1 {
                return refuse(format!(
                    "an up block has {} ResNets where the down block of its resolution has {}: needs one more",
                    up.depths.len(),
                    down.depths.len()
                ));
            }
        }
        Ok(())
    }

    /// The input width that the class or the added embedding must have.
    pub fn projection_width(&self) -> Result<i64> {
        match self.projection_class_embeddings_input_dim {
            Some(width) if width > 0 => Ok(width),
            other => {
                refuse(format!("projection_class_embeddings_input_dim is {other:?}: the embedding needs it"))
            }
        }
    }
}

impl Block {
    /// Whether a transformer stands beside each ResNet.
    fn attends(&self) -> bool {
        self.depths.iter().any(|&depth| depth > 0)
    }

    fn check(&self, channels: i64) -> Result<()> {
        let attends = self.attends();
        if self.depths.is_empty() || self.depths.iter().any(|&depth| (depth > 0) != attends) {
            return refuse(format!(
                "transformer layers {:?}: each ResNet of a block has some, or none has",
                self.depths
            ));
        }
        if attends && !(1..=channels).contains(&self.heads) {
            return refuse(format!("{} attention heads for {channels} channels", self.heads));
        }
        Ok(())
    }
}

fn refuse<T>(what: String) -> Result<T> {
    Err(DivaError::config(OP, what))
}
