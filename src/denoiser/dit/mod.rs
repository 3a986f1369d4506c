//! diffusers' `DiTTransformer2DModel` (arXiv 2212.09748), conditioned through its label embedding.
//!
//! [`config`]: what a DiT is built from; [`block`]: what it is made of; [`positions`]: where its patches are.

use crate::torch::{no_grad_guard, Kind, Tensor};

use super::condition::{Condition, Slots};
use super::embeddings::Sinusoids;
use super::frozen::frozen;
use super::layers::{conv, linear, stream_of};
use super::pull::{leaf, pull};
use super::{Denoiser, Gradients, LossGradient, Query};
use crate::error::{floating, DivaError, Result};
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
    /// Of the sums between matrix products: [`stream_of`] the weights' dtype.
    stream: Kind,
    config: Config,
}

const POSITIONS: &str = "pos_embed.pos_embed";

impl DiTTransformer2D {
    /// Over the weights of a checkpoint, by its keys, and its stored positions as `pos_embed.pos_embed`: these may have
    /// another dtype, as diffusers computes them in float32 whatever it loads the weights as. Beside bf16 weights any may
    /// be float32: it was not rounded.
    pub fn new(config: Config, weights: Vec<(String, Tensor)>) -> Result<Self> {
        config.check()?;
        let _frozen = no_grad_guard();
        let store = frozen(OP, weights, &[POSITIONS])?;
        let root = store.root();
        let (width, patch) = (config.width, config.patch_size);
        let embed = &root / "pos_embed";
        let patches = conv(&(&embed / "proj"), (config.in_channels, width), patch, patch, 0)?;
        let (flip, shift) = (config.flip_sin_to_cos, config.freq_shift);
        let stream = stream_of(patches.weight.f_kind()?);
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
            stream,
            config,
        };
        store.finish()?;
        Ok(network)
    }

    /// Patches along a side.
    fn check(&self, query: &Query) -> Result<i64> {
        query.without_text(OP)?;
        let Query { noisy, timesteps, .. } = *query;
        let condition = query.condition.pooled(OP)?;
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
        if condition.size() != [batch, width] {
            let expected = format!("[{batch}, {width}]: one vector per sample");
            return Err(DivaError::shape(OP, "condition.pooled", condition, expected));
        }
        for (name, tensor) in [("noisy", noisy), ("condition", condition)] {
            floating(OP, name, tensor)?;
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

/// What every block reads beside its input.
struct Given {
    sinusoids: Tensor, // (B, T)
    label: Tensor,     // (B, W): the pooled condition
}

impl DiTTransformer2D {
    /// On the network's device, in the dtype of its sums.
    fn here(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.f_to_other(&self.time_proj.place().f_to_kind(self.stream)?, false, false)?)
    }

    /// pooled (B, W)
    fn given(&self, timesteps: &Tensor, pooled: &Tensor) -> Result<Given> {
        let label = self.here(pooled)?;
        let sinusoids = self.time_proj.forward(timesteps)?.f_to_kind(self.stream)?;
        Ok(Given { sinusoids, label })
    }

    /// noisy (B, C, n, n) -> the input of the first block (B, P, W).
    fn enter(&self, noisy: &Tensor, side: i64) -> Result<Tensor> {
        let x = self.patches.forward(&self.here(noisy)?)?.f_flatten(2, 3)?.f_transpose(1, 2)?;
        Ok(x.f_add(&self.positions.at(side)?)?.f_to_kind(self.stream)?)
    }

    /// The output of the last block -> the prediction (B, C, n, n). The first block's embedding modulates it.
    fn leave(&self, x: &Tensor, given: &Given, side: i64) -> Result<Tensor> {
        let first = self.transformer_blocks.first();
        let first = first.ok_or_else(|| DivaError::config(OP, "a DiT without blocks"))?;
        let embedded = first.embed(&given.sinusoids, &given.label)?;
        let parts = self.proj_out_1.forward(&embedded.f_silu()?)?.f_unsqueeze(1)?; // (B, 1, 2 W)
        let width = self.config.width;
        let (shift, scale) = (parts.f_narrow(2, 0, width)?, parts.f_narrow(2, width, width)?);
        let x = self.proj_out_2.forward(&modulated(&self.norm_out, x, &scale, &shift)?)?;
        self.unpatchified(&x, side)
    }

    fn through(&self, block: &Block, x: &Tensor, given: &Given) -> Result<Tensor> {
        block.forward(x, &block.embed(&given.sinusoids, &given.label)?)
    }
}

impl Denoiser for DiTTransformer2D {
    fn slots(&self) -> Slots {
        Slots::POOLED
    }

    /// Of the label embedding.
    fn condition_width(&self) -> Option<i64> {
        Some(self.config.width)
    }

    /// In the dtype of the network's sums (float32 for bf16 weights), on the device of `noisy`; without a learned variance.
    fn predict(&self, query: &Query) -> Result<Tensor> {
        let side = self.check(query)?;
        let given = self.given(query.timesteps, query.condition.pooled(OP)?)?;
        let mut x = self.enter(query.noisy, side)?;
        for block in &self.transformer_blocks {
            x = self.through(block, &x, &given)?;
        }
        query.home(&self.leave(&x, &given, side)?)
    }

    /// Gradient checkpointing: the input of each block is kept, and the backward pass runs one block at a time again.
    fn gradient(&self, query: &Query, loss_gradient: LossGradient) -> Result<Option<Gradients>> {
        if !self.config.checkpoint {
            return Ok(None);
        }
        let side = self.check(query)?;
        let source = leaf(query.condition.pooled(OP)?)?;
        let entered = self.given(query.timesteps, &source)?;
        let label = entered.label.shallow_clone();
        let given = Given { label: leaf(&label)?, ..entered };
        let mut inputs = Vec::with_capacity(self.transformer_blocks.len() + 1);
        {
            let _no_grad = no_grad_guard();
            inputs.push(self.enter(query.noisy, side)?);
            for block in &self.transformer_blocks {
                let next = inputs.last().map(|x| self.through(block, x, &given)).transpose()?;
                inputs.extend(next);
            }
        }
        let last = inputs.pop().ok_or_else(|| DivaError::config(OP, "a DiT without blocks"))?;
        let last = leaf(&last)?;
        let prediction = self.leave(&last, &given, side)?;
        let at_prediction = loss_gradient(&query.home(&prediction.f_detach()?)?)?;
        let mut gradients = pull(&prediction, &at_prediction, &[&last, &given.label])?;
        let (mut total, mut gradient) = (gradients.swap_remove(1), gradients.swap_remove(0));
        for (block, x) in self.transformer_blocks.iter().zip(inputs).rev() {
            let x = leaf(&x)?;
            let mut gradients = pull(&self.through(block, &x, &given)?, &gradient, &[&x, &given.label])?;
            total = total.f_add(&gradients.swap_remove(1))?;
            gradient = gradients.swap_remove(0);
        }
        Ok(Some(Condition::of_pooled(pull(&label, &total, &[&source])?.swap_remove(0)).into()))
    }
}
