//! What the encoder is made of: ResNets without a timestep, halving of the resolution, attention between pixels.

use crate::torch::Tensor;

use super::config::Config;
use crate::denoiser::layers::{conv, linear};
use crate::error::Result;
use crate::nn::{attention, Conv2d, GroupNorm, Linear, Path};

/// diffusers resnet.py `ResnetBlock2D` with `temb_channels=None`, and SiLU.
pub struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl Resnet {
    pub fn load(path: &Path, config: &Config, channels: (i64, i64)) -> Result<Self> {
        let (inputs, outputs) = channels;
        let norm = |name: &str, channels: i64| group_norm(&(path / name), config, channels);
        let shortcut = (inputs != outputs).then(|| conv(&(path / "conv_shortcut"), channels, 1, 1, 0));
        Ok(Resnet {
            norm1: norm("norm1", inputs)?,
            conv1: conv(&(path / "conv1"), channels, 3, 1, 1)?,
            norm2: norm("norm2", outputs)?,
            conv2: conv(&(path / "conv2"), (outputs, outputs), 3, 1, 1)?,
            conv_shortcut: shortcut.transpose()?,
        })
    }

    /// (B, C, h, w) -> (B, C', h, w).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let kind = x.f_kind()?;
        let hidden = self.conv1.forward(&self.norm1.silu(x, kind)?)?;
        let hidden = self.conv2.forward(&self.norm2.silu(&hidden, kind)?)?;
        Ok(match &self.conv_shortcut {
            Some(shortcut) => shortcut.forward(x)?.f_add_(&hidden)?,
            None => x.f_add(&hidden)?,
        })
    }
}

/// diffusers unet_2d_blocks.py `DownEncoderBlock2D`.
pub struct DownBlock {
    resnets: Vec<Resnet>,
    downsampler: Option<Conv2d>,
}

impl DownBlock {
    /// `last`: the resolution stays.
    pub fn load(path: &Path, config: &Config, channels: (i64, i64), last: bool) -> Result<Self> {
        let (inputs, outputs) = channels;
        let from = |i: usize| if i == 0 { inputs } else { outputs };
        let resnets = (0..config.layers_per_block)
            .map(|i| Resnet::load(&(path / "resnets" / i), config, (from(i), outputs)))
            .collect::<Result<_>>()?;
        let downsampler = path / "downsamplers" / 0 / "conv";
        let downsampler = (!last).then(|| conv(&downsampler, (outputs, outputs), 3, 2, 0)).transpose()?;
        Ok(DownBlock { resnets, downsampler })
    }

    /// (B, C, h, w) -> (B, C', h / 2, w / 2), or (B, C', h, w) for the last.
    pub fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        for resnet in &self.resnets {
            x = resnet.forward(&x)?;
        }
        match &self.downsampler {
            // Padded to the right and below alone: diffusers downsampling.py `Downsample2D` with `padding=0`.
            Some(downsampler) => downsampler.forward(&x.f_constant_pad_nd([0, 1, 0, 1])?),
            None => Ok(x),
        }
    }
}

/// diffusers unet_2d_blocks.py `UNetMidBlock2D`.
pub struct MidBlock {
    first: Resnet,
    layers: Vec<(Option<PixelAttention>, Resnet)>,
}

impl MidBlock {
    pub fn load(path: &Path, config: &Config, channels: i64) -> Result<Self> {
        let resnet = |i: usize| Resnet::load(&(path / "resnets" / i), config, (channels, channels));
        let attention =
            |i: usize, heads| PixelAttention::load(&(path / "attentions" / i), config, channels, heads);
        Ok(MidBlock {
            first: resnet(0)?,
            layers: (0..config.mid_layers)
                .map(|i| Ok((config.mid_heads.map(|heads| attention(i, heads)).transpose()?, resnet(i + 1)?)))
                .collect::<Result<_>>()?,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.first.forward(x)?;
        for (attention, resnet) in &self.layers {
            if let Some(attention) = attention {
                x = attention.forward(&x)?;
            }
            x = resnet.forward(&x)?;
        }
        Ok(x)
    }
}

/// diffusers attention_processor.py `Attention` with a group norm and a residual, over all pixels.
struct PixelAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: i64,
}

impl PixelAttention {
    fn load(path: &Path, config: &Config, channels: i64, heads: i64) -> Result<Self> {
        let projection = |name: &str| linear(&(path / name), channels, channels);
        Ok(PixelAttention {
            group_norm: group_norm(&(path / "group_norm"), config, channels)?,
            to_q: projection("to_q")?,
            to_k: projection("to_k")?,
            to_v: projection("to_v")?,
            to_out: linear(&(path / "to_out" / 0), channels, channels)?,
            heads,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = x.size4()?;
        let pixels = self.group_norm.forward(&x.f_flatten(2, 3)?)?.f_transpose(1, 2)?; // (B, h w, C)
        let (query, key) = (self.to_q.forward(&pixels)?, self.to_k.forward(&pixels)?);
        let mixed = attention(&query, &key, &self.to_v.forward(&pixels)?, self.heads)?;
        // `x` comes first in the sum, which takes its layout: see `Transformer2D::forward`.
        let out = self.to_out.forward(&mixed)?.f_transpose(1, 2)?; // (B, C, h w)
        Ok(x.f_add(&out.f_reshape([batch, channels, height, width])?)?)
    }
}

pub fn group_norm(path: &Path, config: &Config, channels: i64) -> Result<GroupNorm> {
    GroupNorm::load(path, channels, config.norm_num_groups, config.norm_eps)
}
