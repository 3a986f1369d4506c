//! diffusers' `DiTTransformer2DModel` (arXiv 2212.09748), conditioned through its label embedding.
//!
//! [`config`]: what a DiT is built from; [`block`]: what it is made of; [`positions`]: where its patches are.

use tch::{no_grad_guard, Kind, Tensor};

use super::embeddings::Sinusoids;
use super::frozen::{frozen, is_floating};
use super::layers::{conv, linear};
use crate::error::{DivaError, Result};
use crate::feedback::Denoiser;
use crate::nn::{Conv2d, LayerNorm, Linear};

pub mod block;
pub mod config;
pub mod positions;

use block::{modulated, Block};
use config::{Config, OP};
use positions::Positions;

pub struct DiTTransformer2D {
    patches: Conv2d,
    positions: Positions,
    time_proj: Sinusoids,
    transformer_blocks: Vec<Block>,
    norm_out: LayerNorm,
    proj_out_1: Linear, // (W) -> (2 W): shift and scale
    proj_out_2: Linear, // (W) -> (patch^2 C)
    config: Config,
}

impl DiTTransformer2D {
    /// Over the weights of a checkpoint, by its keys, and its stored positions as `pos_embed.pos_embed`: these alone may
    /// have another dtype, as diffusers computes them in float32 whatever it loads the weights as.
    pub fn new(config: Config, weights: Vec<(String, Tensor)>) -> Result<Self> {
        config.check()?;
        let _frozen = no_grad_guard();
        let store = frozen(OP, weights, Some("pos_embed.pos_embed"))?;
        let root = store.root();
        let (width, patch) = (config.width, config.patch_size);
        let embed = &root / "pos_embed";
        let patches = conv(&(&embed / "proj"), (config.in_channels, width), patch, patch, 0)?;
        let (flip, shift) = (config.flip_sin_to_cos, config.freq_shift);
        let network = DiTTransformer2D {
            positions: Positions::load(&embed, &config)?,
            time_proj: Sinusoids::new(config.time_channels, flip, shift, &patches.weight)?,
            patches,
            transformer_blocks: (0..config.num_layers)
                .map(|i| Block::load(&(&root / "transformer_blocks" / i), &config))
                .collect::<Result<_>>()?,
            norm_out: LayerNorm::plain(width, config.norm_eps.2),
            proj_out_1: linear(&(&root / "proj_out_1"), width, 2 * width)?,
            proj_out_2: linear(&(&root / "proj_out_2"), width, patch * patch * config.out_channels)?,
            config,
        };
        store.finish()?;
        Ok(network)
    }

    /// C of the condition (B, S, C): the width of the label embedding.
    pub fn condition_width(&self) -> i64 {
        self.config.width
    }

    /// Patches along a side.
    fn check(&self, noisy: &Tensor, timesteps: &Tensor, condition: &Tensor) -> Result<i64> {
        let Config { in_channels: channels, patch_size: patch, width, .. } = self.config;
        let (batch, side) = match noisy.size()[..] {
            [batch, found, height, side]
                if found == channels && batch > 0 && side > 0 && height == side && side % patch == 0 =>
            {
                (batch, side / patch)
            }
            _ => {
                let expected = format!(
                    "(B, {channels}, n, n), n a multiple of the patch size {patch}, nothing of it empty"
                );
                return Err(DivaError::shape(OP, "noisy", noisy, expected));
            }
        };
        if timesteps.size() != [batch] || timesteps.f_kind()? == Kind::Bool {
            let expected = format!("numbers [{batch}], one per sample");
            return Err(DivaError::shape(OP, "timesteps", timesteps, expected));
        }
        if !matches!(condition.size()[..], [b, length, w] if b == batch && w == width && length > 0) {
            let expected = format!("({batch}, S, {width}) with S > 0");
            return Err(DivaError::shape(OP, "condition", condition, expected));
        }
        for (name, tensor) in [("noisy", noisy), ("condition", condition)] {
            if !is_floating(tensor)? {
                let (name, got, expected) =
                    (name.to_string(), tensor.f_kind()?, "floating point".to_string());
                return Err(DivaError::Kind { op: OP, name, got, expected });
            }
        }
        Ok(side)
    }

    /// (B, P, patch^2 C') -> (B, C, n, n): each patch to its place, without a learned variance.
    fn unpatchified(&self, x: &Tensor, side: i64) -> Result<Tensor> {
        let Config { in_channels, out_channels, patch_size: patch, .. } = self.config;
        let x = x.f_view([-1, side, side, patch, patch, out_channels])?; // (B, h, w, p, q, C')
        let x = x.f_narrow(5, 0, in_channels)?.f_permute([0, 5, 1, 3, 2, 4])?; // (B, C, h, p, w, q)
        Ok(x.f_reshape([-1, in_channels, side * patch, side * patch])?)
    }
}

impl Denoiser for DiTTransformer2D {
    /// In the network's dtype, on the device of `noisy`; without a learned variance.
    fn predict(&self, noisy: &Tensor, timesteps: &Tensor, condition: &Tensor) -> Result<Tensor> {
        let side = self.check(noisy, timesteps, condition)?;
        let here = |tensor: &Tensor| tensor.f_to_other(&self.patches.weight, false, false);
        let label = here(condition)?.f_mean_dim([1i64].as_slice(), false, None::<Kind>)?; // (B, W)
        let kind = label.f_kind()?;
        let sinusoids = self.time_proj.forward(timesteps)?.f_to_kind(kind)?; // (B, T)

        let x = self.patches.forward(&here(noisy)?)?.f_flatten(2, 3)?.f_transpose(1, 2)?; // (B, P, W)
        let mut x = x.f_add(&self.positions.at(side)?)?.f_to_kind(kind)?;
        let mut first = None;
        for block in &self.transformer_blocks {
            let embedded = block.embed(&sinusoids, &label)?;
            x = block.forward(&x, &embedded)?;
            first.get_or_insert(embedded);
        }
        // The first block's embedding modulates the output too.
        let first = first.ok_or_else(|| DivaError::config(OP, "a DiT without blocks"))?;
        let parts = self.proj_out_1.forward(&first.f_silu()?)?.f_unsqueeze(1)?; // (B, 1, 2 W)
        let width = self.config.width;
        let (shift, scale) = (parts.f_narrow(2, 0, width)?, parts.f_narrow(2, width, width)?);
        let x = self.proj_out_2.forward(&modulated(&self.norm_out, &x, &scale, &shift)?)?;
        let prediction = self.unpatchified(&x, side)?;
        Ok(prediction.f_to_other(&noisy.f_to_kind(kind)?, false, false)?)
    }
}
