//! diffusers' `UNet2DConditionModel`: Stable Diffusion 1, 2 and XL, and Stable unCLIP.
//!
//! [`config`]: what a UNet is built from; [`entry`]: how the condition gets in; [`blocks`], [`resnet`] and
//! [`transformer`]: what it is made of.

use tch::{no_grad_guard, Kind, Tensor};

use super::embeddings::{Sinusoids, TimestepEmbedding};
use super::layers::conv;
use crate::error::{DivaError, Result};
use crate::feedback::Denoiser;
use crate::nn::{Activation, Conv2d, GroupNorm, Store};

pub mod blocks;
pub mod config;
pub mod entry;
pub mod resnet;
pub mod transformer;

use blocks::{DownBlock, MidBlock, UpBlock};
use config::Config;
use entry::{AddedEntry, ClassEntry, Fixed};

const OP: &str = "UNet2DCondition";

pub struct UNet2DCondition {
    conv_in: Conv2d,
    time_proj: Sinusoids,
    time_embedding: TimestepEmbedding,
    class: Option<ClassEntry>,
    added: Option<AddedEntry>,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    config: Config,
}

impl UNet2DCondition {
    /// Over the weights of a checkpoint, by its keys. They are shared, and detached: the teacher is frozen whatever the
    /// module around it says.
    pub fn new(config: Config, weights: Vec<(String, Tensor)>, fixed: &Fixed) -> Result<Self> {
        config.check()?;
        let _frozen = no_grad_guard();
        let detached = weights.into_iter().map(|(key, tensor)| Ok((key, tensor.f_detach()?)));
        let store = Store::new(detached.collect::<Result<Vec<_>>>()?);
        let root = store.root();

        let widths = config.block_out_channels.clone();
        let (Some(&first), Some(&deepest)) = (widths.first(), widths.last()) else {
            return Err(DivaError::config(OP, "block_out_channels is empty"));
        };
        let conv_in = conv(&(&root / "conv_in"), (config.in_channels, first), 3, 1, 1)?;
        let like = &conv_in.weight;
        let class = config
            .class_embed_type
            .map(|kind| ClassEntry::load(&(&root / "class_embedding"), &config, kind, fixed, like))
            .transpose()?;
        let added = AddedEntry::load(&(&root / "add_embedding"), &config, fixed, like)?;
        let time_proj = Sinusoids::new(first, config.flip_sin_to_cos, config.freq_shift, like)?;
        let time = &root / "time_embedding";
        let time_embedding =
            TimestepEmbedding::load(&time, first, config.time_embedding_dim, Activation::Silu)?;

        // Channels of the residuals, pushed on the way down and popped on the way up.
        let mut residuals = vec![first];
        let mut inputs = first;
        let mut down_blocks = Vec::with_capacity(widths.len());
        for (i, (block, &outputs)) in config.down_blocks.iter().zip(&widths).enumerate() {
            let (path, last) = (&root / "down_blocks" / i, i + 1 == widths.len());
            down_blocks.push(DownBlock::load(
                &path,
                &config,
                block,
                (inputs, outputs),
                last,
                &mut residuals,
            )?);
            inputs = outputs;
        }
        let mid = &root / "mid_block";
        let mid_block = config
            .mid_block
            .as_ref()
            .map(|block| MidBlock::load(&mid, &config, block, deepest))
            .transpose()?;
        let mut up_blocks = Vec::with_capacity(widths.len());
        for (i, (block, &outputs)) in config.up_blocks.iter().zip(widths.iter().rev()).enumerate() {
            let (path, last) = (&root / "up_blocks" / i, i + 1 == widths.len());
            up_blocks.push(UpBlock::load(&path, &config, block, (inputs, outputs), last, &mut residuals)?);
            inputs = outputs;
        }
        let (groups, eps) = (config.norm_num_groups, config.norm_eps);
        let conv_norm_out = GroupNorm::load(&(&root / "conv_norm_out"), first, groups, eps)?;
        let conv_out = conv(&(&root / "conv_out"), (first, config.out_channels), 3, 1, 1)?;
        store.finish()?;
        Ok(UNet2DCondition {
            conv_in,
            time_proj,
            time_embedding,
            class,
            added,
            down_blocks,
            mid_block,
            up_blocks,
            conv_norm_out,
            conv_out,
            config,
        })
    }

    /// C of the condition (B, S, C).
    pub fn condition_width(&self) -> i64 {
        self.class.as_ref().map_or(self.config.cross_attention_dim, |class| class.width)
    }

    fn check(&self, noisy: &Tensor, timesteps: &Tensor, condition: &Tensor) -> Result<()> {
        let (channels, width) = (self.config.in_channels, self.condition_width());
        for (name, tensor) in [("noisy", noisy), ("condition", condition)] {
            let kind = tensor.f_kind()?;
            if !matches!(kind, Kind::Half | Kind::BFloat16 | Kind::Float | Kind::Double) {
                let expected = "floating point".to_string();
                return Err(DivaError::Kind { op: OP, name: name.to_string(), got: kind, expected });
            }
        }
        let batch = match noisy.size()[..] {
            [batch, found, height, side] if found == channels && batch * height * side > 0 => batch,
            _ => {
                return Err(DivaError::shape(
                    OP,
                    "noisy",
                    noisy,
                    format!("(B, {channels}, h, w), nothing of it empty"),
                ))
            }
        };
        if timesteps.size() != [batch] {
            return Err(DivaError::shape(OP, "timesteps", timesteps, format!("[{batch}], one per sample")));
        }
        match condition.size()[..] {
            [samples, length, found] if samples == batch && found == width && length > 0 => Ok(()),
            _ => {
                Err(DivaError::shape(OP, "condition", condition, format!("({batch}, S, {width}) with S > 0")))
            }
        }
    }

    /// The time embedding (B, T) after the SiLU that every ResNet begins with, and what is cross-attended.
    fn embed(&self, timesteps: &Tensor, condition: &Tensor, size: (i64, i64)) -> Result<(Tensor, Tensor)> {
        let sinusoids = self.time_proj.forward(timesteps)?.f_to_kind(condition.f_kind()?)?;
        let mut time = self.time_embedding.forward(&sinusoids)?;
        let mut hidden = condition.shallow_clone();
        if let Some(class) = &self.class {
            let (embedded, text) = class.forward(condition)?;
            time = time.f_add(&embedded)?;
            hidden = text;
        }
        if let Some(added) = &self.added {
            time = time.f_add(&added.forward(size)?)?;
        }
        Ok((time.f_silu()?, hidden))
    }
}

impl Denoiser for UNet2DCondition {
    /// In the network's dtype, on the device of `noisy`; without a learned variance.
    fn predict(&self, noisy: &Tensor, timesteps: &Tensor, condition: &Tensor) -> Result<Tensor> {
        self.check(noisy, timesteps, condition)?;
        let (_, channels, height, width) = noisy.size4()?;
        let here = |tensor: &Tensor| tensor.f_to_other(&self.conv_in.weight, false, false);
        let (mut x, condition) = (here(noisy)?, here(condition)?);
        let (time, hidden) = self.embed(timesteps, &condition, (height, width))?;
        if self.config.center_input_sample {
            x = x.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?;
        }
        x = self.conv_in.forward(&x)?;
        let mut residuals = vec![x.shallow_clone()];
        for block in &self.down_blocks {
            x = block.forward(x, &time, &hidden, &mut residuals)?;
        }
        if let Some(block) = &self.mid_block {
            x = block.forward(&x, &time, &hidden)?;
        }
        for block in &self.up_blocks {
            x = block.forward(x, &time, &hidden, &mut residuals)?;
        }
        let x = self.conv_out.forward(&self.conv_norm_out.forward(&x)?.f_silu()?)?;
        let home: Kind = x.f_kind()?;
        Ok(x.f_narrow(1, 0, channels)?.f_to_other(&noisy.f_to_kind(home)?, false, false)?)
    }
}
