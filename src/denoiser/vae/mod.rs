//! The encoder of diffusers' `AutoencoderKL` (arXiv 2112.10752): images to the latents that the denoiser works on.
//!
//! [`config`]: what it is built from; [`blocks`]: what it is made of. It never computes a gradient.

use crate::torch::{no_grad_guard, Tensor};

use super::frozen::frozen;
use super::layers::conv;
use crate::error::{floating, DivaError, Result};
use crate::nn::{Conv2d, GroupNorm};
use crate::slices;

pub mod blocks;
pub mod config;

use blocks::{group_norm, DownBlock, MidBlock};
use config::{Config, Scaling, OP};

pub struct AutoencoderEncoder {
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    quant_conv: Option<Conv2d>,
    scale: Scale,
    config: Config,
}

impl AutoencoderEncoder {
    /// Over the weights of a checkpoint, by its keys: those of `encoder` and `quant_conv`, without the decoder's.
    pub fn new(config: Config, weights: Vec<(String, Tensor)>) -> Result<Self> {
        config.check()?;
        let _frozen = no_grad_guard();
        let store = frozen(OP, weights, &[])?;
        let root = store.root();
        let encoder = &root / "encoder";
        let widths = &config.block_out_channels;
        let (Some(&first), Some(&deepest)) = (widths.first(), widths.last()) else {
            return Err(DivaError::config(OP, "block_out_channels is empty"));
        };
        let conv_in = conv(&(&encoder / "conv_in"), (config.in_channels, first), 3, 1, 1)?;
        let mut inputs = first;
        let mut down_blocks = Vec::with_capacity(widths.len());
        for (i, &outputs) in widths.iter().enumerate() {
            let (path, last) = (&encoder / "down_blocks" / i, i + 1 == widths.len());
            down_blocks.push(DownBlock::load(&path, &config, (inputs, outputs), last)?);
            inputs = outputs;
        }
        let moments = 2 * config.latent_channels;
        let quant_conv =
            config.quant_conv.then(|| conv(&(&root / "quant_conv"), (moments, moments), 1, 1, 0));
        let network = AutoencoderEncoder {
            mid_block: MidBlock::load(&(&encoder / "mid_block"), &config, deepest)?,
            conv_norm_out: group_norm(&(&encoder / "conv_norm_out"), &config, deepest)?,
            conv_out: conv(&(&encoder / "conv_out"), (deepest, moments), 3, 1, 1)?,
            quant_conv: quant_conv.transpose()?,
            scale: Scale::new(&config.scaling, &conv_in.weight)?,
            conv_in,
            down_blocks,
            config,
        };
        store.finish()?;
        Ok(network)
    }

    /// Images (B, C, H, W) with pixels in [-1, 1] -> latents (B, latent channels, h, w), shifted and scaled, in the dtype
    /// and on the device of `images`: the posterior's mean, or mean + std * noise with `noise` like the latents.
    /// `micro_batch` images are encoded at a time.
    pub fn encode(&self, images: &Tensor, noise: Option<&Tensor>, micro_batch: i64) -> Result<Tensor> {
        let _frozen = no_grad_guard();
        let batch = self.check(images, noise)?;
        if micro_batch < 1 {
            return Err(DivaError::config(
                OP,
                format!("micro_batch is {micro_batch}, expected at least 1 image"),
            ));
        }
        let mut parts = Vec::new();
        let mut start = 0;
        while start < batch {
            let length = micro_batch.min(batch - start);
            let rows = |tensor: &Tensor| -> Result<Tensor> {
                Ok(tensor.f_narrow(0, start, length)?.f_to_other(&self.conv_in.weight, false, false)?)
            };
            parts.push(self.latents(&rows(images)?, noise.map(rows).transpose()?)?);
            start += length;
        }
        Ok(Tensor::f_cat(&parts, 0)?.f_to_other(images, false, false)?)
    }

    fn latents(&self, images: &Tensor, noise: Option<Tensor>) -> Result<Tensor> {
        let moments = self.moments(images)?;
        let channels = self.config.latent_channels;
        let mut latents = moments.f_narrow(1, 0, channels)?;
        if let Some(noise) = noise {
            // diffusers vae.py `DiagonalGaussianDistribution`.
            let log_variance = moments.f_narrow(1, channels, channels)?.f_clamp(-30.0, 20.0)?;
            let std = log_variance.f_mul_scalar(0.5)?.f_exp()?;
            latents = latents.f_add(&std.f_mul(&noise)?)?;
        }
        self.scale.forward(&latents)
    }

    /// Mean and log variance (B, 2 latent channels, h, w).
    fn moments(&self, images: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(images)?;
        for block in &self.down_blocks {
            x = block.forward(x)?;
        }
        let x = self.mid_block.forward(&x)?;
        let x = self.conv_out.forward(&self.conv_norm_out.silu(&x, x.f_kind()?)?)?;
        match &self.quant_conv {
            Some(quant_conv) => quant_conv.forward(&x),
            None => Ok(x),
        }
    }

    /// B.
    fn check(&self, images: &Tensor, noise: Option<&Tensor>) -> Result<i64> {
        let (channels, latent_channels) = (self.config.in_channels, self.config.latent_channels);
        let factor = self.config.downscale();
        let latents = match images.size()[..] {
            [batch, found, height, width]
                if found == channels
                    && batch * height * width > 0
                    && height % factor == 0
                    && width % factor == 0 =>
            {
                [batch, latent_channels, height / factor, width / factor]
            }
            _ => {
                let expected =
                    format!("(B, {channels}, H, W), nothing of it empty, H and W multiples of {factor}");
                return Err(DivaError::shape(OP, "images", images, expected));
            }
        };
        for (name, tensor) in [("images", Some(images)), ("noise", noise)] {
            tensor.map(|tensor| floating(OP, name, tensor)).transpose()?;
        }
        match noise {
            Some(noise) if noise.size() != latents => {
                Err(DivaError::shape(OP, "noise", noise, format!("{latents:?} like the latents")))
            }
            _ => Ok(latents[0]),
        }
    }
}

/// [`Scaling`] on the network's device and in its dtype.
struct Scale {
    factor: f64,
    shift: Option<f64>,
    channels: Option<(Tensor, Tensor)>, // (1, C, 1, 1) each
}

impl Scale {
    fn new(scaling: &Scaling, like: &Tensor) -> Result<Self> {
        let tensor = |values: &[f64]| -> Result<Tensor> {
            Ok(slices::copied(values, &[1, values.len() as i64, 1, 1])?.f_to_other(like, false, false)?)
        };
        let channels = match &scaling.channels {
            Some((mean, std)) => Some((tensor(mean)?, tensor(std)?)),
            None => None,
        };
        Ok(Scale { factor: scaling.factor, shift: scaling.shift, channels })
    }

    /// As diffusers' training scripts: first shift, then scale; some SDXL models per channel.
    fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        if let Some((mean, std)) = &self.channels {
            return Ok(latents.f_sub(mean)?.f_mul_scalar(self.factor)?.f_div(std)?);
        }
        Ok(match self.shift {
            Some(shift) => latents.f_sub_scalar(shift)?.f_mul_scalar(self.factor)?,
            None => latents.f_mul_scalar(self.factor)?,
        })
    }
}
