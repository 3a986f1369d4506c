//! The units of a UNet in the order of its forward pass, and the residuals that pass between them.
//!
//! Down, mid and up blocks are names in the checkpoint alone: what runs is one list of ResNets (with the transformer
//! behind each, where there is one) and changes of resolution.

use crate::torch::Tensor;

use super::config::{Block, Config, OP};
use super::given::Given;
use super::resnet::{Downsample, ResnetBlock, Upsample};
use super::transformer::{CrossAttention, Transformer2D};
use crate::error::{DivaError, Result};
use crate::nn::Path;

/// What a unit takes from the units before it.
pub struct Input {
    pub x: Tensor, // (B, C, h, w)
    /// The residual that an up block's ResNet takes.
    pub residual: Option<Tensor>,
    /// What an upsampling goes to: the size of the next residual.
    pub size: Option<(i64, i64)>,
}

enum Part {
    Resnet(Box<ResnetBlock>, Option<Transformer2D>),
    Downsample(Downsample),
    Upsample(Upsample),
}

pub struct Unit {
    part: Part,
    /// Whether the input is joined with the last residual that is left.
    takes: bool,
    /// Whether the output is a residual, too.
    leaves: bool,
}

impl Unit {
    /// Whether the condition enters through a cross-attention here.
    pub fn attends(&self) -> bool {
        matches!(self.part, Part::Resnet(_, Some(_)))
    }

    pub fn reads_time(&self) -> bool {
        matches!(self.part, Part::Resnet(..))
    }

    pub fn leaves(&self) -> bool {
        self.leaves
    }

    pub fn attentions(&self) -> impl Iterator<Item = &CrossAttention> {
        let transformer = match &self.part {
            Part::Resnet(_, transformer) => transformer.as_ref(),
            _ => None,
        };
        transformer.into_iter().flat_map(Transformer2D::attentions)
    }

    pub fn attentions_mut(&mut self) -> impl Iterator<Item = &mut CrossAttention> {
        let transformer = match &mut self.part {
            Part::Resnet(_, transformer) => transformer.as_mut(),
            _ => None,
        };
        transformer.into_iter().flat_map(Transformer2D::attentions_mut)
    }

    /// The input made of `x` and the residuals at hand, of which one may be taken.
    pub fn input(&self, x: Tensor, residuals: &mut Vec<Tensor>) -> Result<Input> {
        let residual = if self.takes { Some(residuals.pop().ok_or_else(exhausted)?) } else { None };
        let mut size = None;
        if let Part::Upsample(_) = self.part {
            let (_, _, height, width) = residuals.last().ok_or_else(exhausted)?.size4()?;
            size = Some((height, width));
        }
        Ok(Input { x, residual, size })
    }

    pub fn forward(&self, input: &Input, given: &Given) -> Result<Tensor> {
        match &self.part {
            Part::Resnet(resnet, transformer) => {
                let x = match &input.residual {
                    Some(residual) => {
                        resnet.forward(&Tensor::f_cat(&[&input.x, residual], 1)?, &given.time)?
                    }
                    None => resnet.forward(&input.x, &given.time)?,
                };
                transformer.as_ref().map_or(Ok(x.shallow_clone()), |part| part.forward(&x, given))
            }
            Part::Downsample(downsample) => downsample.forward(&input.x),
            Part::Upsample(upsample) => upsample.forward(&input.x, input.size.ok_or_else(exhausted)?),
        }
    }
}

/// The list as it grows, with the channels of the residuals that wait to be taken.
pub struct Units<'a> {
    pub units: Vec<Unit>,
    pub residuals: Vec<i64>,
    pub config: &'a Config,
}

impl Units<'_> {
    /// diffusers `DownBlock2D` and `CrossAttnDownBlock2D`.
    pub fn down(&mut self, path: &Path, block: &Block, channels: (i64, i64), last: bool) -> Result<()> {
        let (mut inputs, outputs) = channels;
        for i in 0..block.depths.len() {
            self.resnet(path, block, i, (inputs, outputs), (false, true))?;
            inputs = outputs;
            self.residuals.push(outputs);
        }
        if !last {
            let path = path / "downsamplers" / 0;
            let part = Part::Downsample(Downsample::load(&path, outputs, self.config.downsample_padding)?);
            self.units.push(Unit { part, takes: false, leaves: true });
            self.residuals.push(outputs);
        }
        Ok(())
    }

    /// diffusers `UNetMidBlock2DCrossAttn`: a transformer between each two ResNets.
    pub fn mid(&mut self, path: &Path, block: &Block, channels: i64) -> Result<()> {
        for i in 0..=block.depths.len() {
            self.resnet(path, block, i, (channels, channels), (false, false))?;
        }
        Ok(())
    }

    /// diffusers `UpBlock2D` and `CrossAttnUpBlock2D`.
    pub fn up(&mut self, path: &Path, block: &Block, channels: (i64, i64), last: bool) -> Result<()> {
        let (mut inputs, outputs) = channels;
        for i in 0..block.depths.len() {
            let residual = self.residuals.pop().ok_or_else(exhausted)?;
            self.resnet(path, block, i, (inputs + residual, outputs), (true, false))?;
            inputs = outputs;
        }
        if !last {
            let part = Part::Upsample(Upsample::load(&(path / "upsamplers" / 0), outputs)?);
            self.units.push(Unit { part, takes: false, leaves: false });
        }
        Ok(())
    }

    fn resnet(
        &mut self,
        path: &Path,
        block: &Block,
        i: usize,
        channels: (i64, i64),
        (takes, leaves): (bool, bool),
    ) -> Result<()> {
        let depth = block.depths.get(i).copied().unwrap_or(0);
        let attention = path / "attentions" / i;
        let transformer = (depth > 0)
            .then(|| Transformer2D::load(&attention, self.config, channels.1, depth, block.heads))
            .transpose()?;
        // Only the middle has ResNets that neither take nor leave a residual; only its output may be scaled.
        let scale = if takes || leaves { 1.0 } else { self.config.mid_block_scale_factor };
        let resnet = ResnetBlock::load(&(path / "resnets" / i), self.config, channels, scale)?;
        self.units.push(Unit { part: Part::Resnet(Box::new(resnet), transformer), takes, leaves });
        Ok(())
    }
}

fn exhausted() -> DivaError {
    DivaError::config(OP, "the up blocks take more residuals than the down blocks leave")
}
