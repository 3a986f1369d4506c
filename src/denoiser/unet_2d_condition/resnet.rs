//! ResNet blocks and the changes of resolution between them.

use crate::torch::Tensor;

use super::config::{Config, TimeScaleShift};
use crate::denoiser::layers::{conv, linear, narrowed};
use crate::error::Result;
use crate::nn::{narrow_silu, Conv2d, GroupNorm, Linear, Path};

/// diffusers resnet.py `ResnetBlock2D`, with SiLU.
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Linear,
    time_scale_shift: TimeScaleShift,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    output_scale_factor: f64,
}

impl ResnetBlock {
    pub fn load(
        path: &Path,
        config: &Config,
        channels: (i64, i64),
        output_scale_factor: f64,
    ) -> Result<Self> {
        let (inputs, outputs) = channels;
        let (groups, eps) = (config.norm_num_groups, config.norm_eps);
        let time_scale_shift = config.resnet_time_scale_shift;
        let time_outputs = match time_scale_shift {
            TimeScaleShift::Default => outputs,
            TimeScaleShift::ScaleShift => 2 * outputs,
        };
        let conv_shortcut = (inputs != outputs).then(|| conv(&(path / "conv_shortcut"), channels, 1, 1, 0));
        Ok(ResnetBlock {
            norm1: GroupNorm::load(&(path / "norm1"), inputs, groups, eps)?,
            conv1: conv(&(path / "conv1"), channels, 3, 1, 1)?,
            time_emb_proj: linear(&(path / "time_emb_proj"), config.time_embedding_dim, time_outputs)?,
            time_scale_shift,
            norm2: GroupNorm::load(&(path / "norm2"), outputs, groups, eps)?,
            conv2: conv(&(path / "conv2"), (outputs, outputs), 3, 1, 1)?,
            conv_shortcut: conv_shortcut.transpose()?,
            output_scale_factor,
        })
    }

    /// x (B, C, h, w), time (B, T) after its SiLU -> (B, C', h, w). The sum has the dtype of `x`, and
    /// what lies between the convolutions that of their weights.
    pub fn forward(&self, x: &Tensor, time: &Tensor) -> Result<Tensor> {
        let kind = self.conv1.weight.f_kind()?;
        let hidden = self.conv1.forward(&self.norm1.silu(x, kind)?)?;
        let time = self.time_emb_proj.forward(time)?.f_unsqueeze(-1)?.f_unsqueeze(-1)?; // (B, C' | 2 C', 1, 1)
        let ready = match self.time_scale_shift {
            TimeScaleShift::Default => {
                self.norm2.silu(&hidden.f_add(&narrowed(&time, &self.conv1.weight)?)?, kind)?
            }
            TimeScaleShift::ScaleShift => {
                let half = time.size4()?.1 / 2;
                let (scale, shift) = (time.f_narrow(1, 0, half)?, time.f_narrow(1, half, half)?);
                let normed = self.norm2.forward(&hidden)?;
                narrow_silu(&normed.f_mul(&scale.f_add_scalar(1.0)?)?.f_add(&shift)?, kind)?
            }
        };
        let hidden = self.conv2.forward(&ready)?;
        let sum = match &self.conv_shortcut {
            Some(shortcut) => {
                shortcut.forward(&narrowed(x, &shortcut.weight)?)?.f_to_kind(x.f_kind()?)?.f_add(&hidden)?
            }
            None => x.f_add(&hidden)?,
        };
        Ok(if self.output_scale_factor == 1.0 { sum } else { sum.f_div_scalar(self.output_scale_factor)? })
    }
}

/// diffusers downsampling.py `Downsample2D`: a convolution with stride 2.
pub struct Downsample {
    conv: Conv2d,
}

impl Downsample {
    pub fn load(path: &Path, channels: i64, padding: i64) -> Result<Self> {
        Ok(Downsample { conv: conv(&(path / "conv"), (channels, channels), 3, 2, padding)? })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let narrow = narrowed(x, &self.conv.weight)?;
        let padded = if self.conv.padding != 0 { narrow } else { narrow.f_constant_pad_nd([0, 1, 0, 1])? };
        Ok(self.conv.forward(&padded)?.f_to_kind(x.f_kind()?)?)
    }
}

/// diffusers upsampling.py `Upsample2D`: nearest neighbours, then a convolution.
pub struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    pub fn load(path: &Path, channels: i64) -> Result<Self> {
        Ok(Upsample { conv: conv(&(path / "conv"), (channels, channels), 3, 1, 1)? })
    }

    /// To the size of the residual that comes next. Where every side halves evenly that is twice the size; where one
    /// does not, it is what diffusers forces the output to.
    pub fn forward(&self, x: &Tensor, size: (i64, i64)) -> Result<Tensor> {
        // libtorch's nearest-neighbour kernel for channels-last tensors fails on large batches.
        let narrow = narrowed(x, &self.conv.weight)?.f_contiguous()?;
        let large = narrow.f_upsample_nearest2d([size.0, size.1], None, None)?;
        Ok(self.conv.forward(&large)?.f_to_kind(x.f_kind()?)?)
    }
}
