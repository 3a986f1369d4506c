//! The down, mid and up blocks of a UNet and the residuals that pass between them.

use tch::Tensor;

use super::config::{Block, Config};
use super::resnet::{Downsample, ResnetBlock, Upsample};
use super::transformer::Transformer2D;
use crate::error::{DivaError, Result};
use crate::nn::Path;

const OP: &str = "UNet2DCondition";

/// A ResNet and, in blocks with cross-attention, the transformer behind it.
struct Layer {
    resnet: ResnetBlock,
    attention: Option<Transformer2D>,
}

impl Layer {
    fn load(path: &Path, config: &Config, block: &Block, i: usize, channels: (i64, i64)) -> Result<Self> {
        let depth = block.depths.get(i).copied().unwrap_or(0);
        let attention = (depth > 0)
            .then(|| Transformer2D::load(&(path / "attentions" / i), config, channels.1, depth, block.heads));
        Ok(Layer {
            resnet: ResnetBlock::load(&(path / "resnets" / i), config, channels, 1.0)?,
            attention: attention.transpose()?,
        })
    }

    fn forward(&self, x: &Tensor, time: &Tensor, condition: &Tensor) -> Result<Tensor> {
        let x = self.resnet.forward(x, time)?;
        self.attention.as_ref().map_or(Ok(x.shallow_clone()), |attention| attention.forward(&x, condition))
    }
}

/// diffusers `DownBlock2D` and `CrossAttnDownBlock2D`.
pub struct DownBlock {
    layers: Vec<Layer>,
    downsample: Option<Downsample>,
}

impl DownBlock {
    /// `residuals`: channels of what the up blocks will take, pushed here and popped by `UpBlock::load`.
    pub fn load(
        path: &Path,
        config: &Config,
        block: &Block,
        channels: (i64, i64),
        last: bool,
        residuals: &mut Vec<i64>,
    ) -> Result<Self> {
        let (mut inputs, outputs) = channels;
        let mut layers = Vec::with_capacity(block.depths.len());
        for i in 0..block.depths.len() {
            layers.push(Layer::load(path, config, block, i, (inputs, outputs))?);
            inputs = outputs;
            residuals.push(outputs);
        }
        let mut downsample = None;
        if !last {
            downsample =
                Some(Downsample::load(&(path / "downsamplers" / 0), outputs, config.downsample_padding)?);
            residuals.push(outputs);
        }
        Ok(DownBlock { layers, downsample })
    }

    pub fn forward(
        &self,
        x: Tensor,
        time: &Tensor,
        condition: &Tensor,
        residuals: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        let mut x = x;
        for layer in &self.layers {
            x = layer.forward(&x, time, condition)?;
            residuals.push(x.shallow_clone());
        }
        if let Some(downsample) = &self.downsample {
            x = downsample.forward(&x)?;
            residuals.push(x.shallow_clone());
        }
        Ok(x)
    }
}

/// diffusers `UNetMidBlock2DCrossAttn`.
pub struct MidBlock {
    first: ResnetBlock,
    rest: Vec<(Transformer2D, ResnetBlock)>,
}

impl MidBlock {
    pub fn load(path: &Path, config: &Config, block: &Block, channels: i64) -> Result<Self> {
        let resnet = |i: usize| {
            let at = path / "resnets" / i;
            ResnetBlock::load(&at, config, (channels, channels), config.mid_block_scale_factor)
        };
        let rest = block.depths.iter().enumerate().map(|(i, &depth)| {
            let attention =
                Transformer2D::load(&(path / "attentions" / i), config, channels, depth, block.heads)?;
            Ok((attention, resnet(i + 1)?))
        });
        Ok(MidBlock { first: resnet(0)?, rest: rest.collect::<Result<_>>()? })
    }

    pub fn forward(&self, x: &Tensor, time: &Tensor, condition: &Tensor) -> Result<Tensor> {
        let mut x = self.first.forward(x, time)?;
        for (attention, resnet) in &self.rest {
            x = resnet.forward(&attention.forward(&x, condition)?, time)?;
        }
        Ok(x)
    }
}

/// diffusers `UpBlock2D` and `CrossAttnUpBlock2D`.
pub struct UpBlock {
    layers: Vec<Layer>,
    upsample: Option<Upsample>,
}

impl UpBlock {
    pub fn load(
        path: &Path,
        config: &Config,
        block: &Block,
        channels: (i64, i64),
        last: bool,
        residuals: &mut Vec<i64>,
    ) -> Result<Self> {
        let (mut inputs, outputs) = channels;
        let mut layers = Vec::with_capacity(block.depths.len());
        for i in 0..block.depths.len() {
            let residual = residuals.pop().ok_or_else(exhausted)?;
            layers.push(Layer::load(path, config, block, i, (inputs + residual, outputs))?);
            inputs = outputs;
        }
        let upsample = (!last).then(|| Upsample::load(&(path / "upsamplers" / 0), outputs));
        Ok(UpBlock { layers, upsample: upsample.transpose()? })
    }

    pub fn forward(
        &self,
        x: Tensor,
        time: &Tensor,
        condition: &Tensor,
        residuals: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        let mut x = x;
        for layer in &self.layers {
            let residual = residuals.pop().ok_or_else(exhausted)?;
            x = layer.forward(&Tensor::f_cat(&[x, residual], 1)?, time, condition)?;
        }
        if let Some(upsample) = &self.upsample {
            let (_, _, height, width) = residuals.last().ok_or_else(exhausted)?.size4()?;
            x = upsample.forward(&x, (height, width))?;
        }
        Ok(x)
    }
}

fn exhausted() -> DivaError {
    DivaError::config(OP, "the up blocks take more residuals than the down blocks leave")
}
