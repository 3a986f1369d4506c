//! What the encoder of an AutoencoderKL is built from, and the checks that make building it safe.

use serde::Deserialize;

use crate::error::{DivaError, Result};

pub const OP: &str = "AutoencoderEncoder";

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub in_channels: i64,
    pub latent_channels: i64,
    /// Channels at each resolution; the side halves after every one but the last.
    pub block_out_channels: Vec<i64>,
    /// ResNets at each resolution.
    pub layers_per_block: usize,
    /// Pairs of attention and ResNet after the first ResNet of the mid block.
    pub mid_layers: usize,
    /// Heads of the mid block's attention; `None` where it has none.
    pub mid_heads: Option<i64>,
    pub norm_num_groups: i64,
    pub norm_eps: f64,
    /// Whether a convolution of one pixel follows the encoder.
    pub quant_conv: bool,
    pub scaling: Scaling,
}

/// From the posterior's latents to those of the denoiser: (z - shift) * scale / std.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scaling {
    pub factor: f64,
    /// diffusers' `shift_factor`.
    pub shift: Option<f64>,
    /// diffusers' `latents_mean` and `latents_std`, one value per channel; where given, they replace `shift`.
    pub channels: Option<(Vec<f64>, Vec<f64>)>,
}

impl Config {
    /// Pixels per latent along a side.
    pub fn downscale(&self) -> i64 {
        1 << self.block_out_channels.len().saturating_sub(1)
    }

    /// Every way in which building or running the network could divide by zero or index out of range.
    pub fn check(&self) -> Result<()> {
        let levels = self.block_out_channels.len();
        if !(1..=16).contains(&levels) {
            return refuse(format!("block_out_channels has {levels} entries, expected 1 to 16"));
        }
        let sizes = [self.in_channels, self.latent_channels, self.norm_num_groups];
        let mut sizes = sizes.iter().chain(&self.block_out_channels).chain(&self.mid_heads);
        if sizes.any(|size| !(1..=1 << 20).contains(size)) {
            return refuse(format!("each size must be from 1 to {}: {self:?}", 1 << 20));
        }
        let groups = self.norm_num_groups;
        if let Some(channels) = self.block_out_channels.iter().find(|&channels| channels % groups != 0) {
            return refuse(format!("{channels} channels cannot be normalised in {groups} groups"));
        }
        if let (Some(heads), Some(channels)) = (self.mid_heads, self.block_out_channels.last()) {
            if channels % heads != 0 {
                return refuse(format!("{channels} channels cannot be split into {heads} heads"));
            }
        }
        if !self.norm_eps.is_finite() || self.norm_eps < 0.0 {
            return refuse(format!("norm_eps {}: must be finite and not negative", self.norm_eps));
        }
        self.scaling.check(self.latent_channels)
    }
}

impl Scaling {
    fn check(&self, channels: i64) -> Result<()> {
        let (factor, shift) = (self.factor, self.shift.unwrap_or_default());
        if !factor.is_finite() || factor == 0.0 || !shift.is_finite() {
            return refuse(format!(
                "scaling_factor {factor} and shift_factor {shift}: must be finite, and the first not 0"
            ));
        }
        let Some((mean, std)) = &self.channels else { return Ok(()) };
        let fits = |values: &[f64]| {
            i64::try_from(values.len()) == Ok(channels) && values.iter().all(|v| v.is_finite())
        };
        if !fits(mean) || !fits(std) || std.contains(&0.0) {
            return refuse(format!(
                "latents_mean and latents_std: need {channels} finite values each, no std of 0"
            ));
        }
        Ok(())
    }
}

fn refuse<T>(what: String) -> Result<T> {
    Err(DivaError::config(OP, what))
}
