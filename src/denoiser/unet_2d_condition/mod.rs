//! diffusers' `UNet2DConditionModel`: Stable Diffusion 1, 2 and XL, and Stable unCLIP.
//!
//! [`config`]: what a UNet is built from; [`entry`]: how the condition gets in; [`blocks`], [`resnet`] and
//! [`transformer`]: what it is made of; [`recompute`]: the same gradient with the memory of one unit.

use crate::torch::{no_grad_guard, Kind, Tensor};

use super::condition::{Condition, Slots};
use super::embeddings::{Sinusoids, TimestepEmbedding};
use super::frozen::frozen;
use super::layers::{conv, stream_of};
use super::{Denoiser, Gradients, KeysValues, LossGradient, Query};
use crate::error::{floating, DivaError, Result};
use crate::nn::{Activation, Conv2d, GroupNorm};

pub mod blocks;
pub mod config;
pub mod entry;
pub mod given;
mod recompute;
pub mod resnet;
pub mod transformer;

use blocks::{Unit, Units};
use config::{Config, OP};
use entry::{AddedEntry, ClassEntry, Fixed};
use given::Given;

pub struct UNet2DCondition {
    conv_in: Conv2d,
    time_proj: Sinusoids,
    time_embedding: TimestepEmbedding,
    class: Option<ClassEntry>,
    added: Option<AddedEntry>,
    units: Vec<Unit>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    /// Of the sums between matrix products: [`stream_of`] the weights' dtype.
    stream: Kind,
    config: Config,
}

impl UNet2DCondition {
    /// Over the weights of a checkpoint, by its keys. They are shared, and detached: the teacher is frozen whatever the
    /// module around it says.
    pub fn new(config: Config, weights: Vec<(String, Tensor)>, fixed: Vec<(String, Tensor)>) -> Result<Self> {
        config.check()?;
        let _frozen = no_grad_guard();
        let (store, fixed) = (frozen(OP, weights, &[])?, &Fixed::named(fixed)?);
        let root = store.root();

        let widths = config.block_out_channels.clone();
        let (Some(&first), Some(&deepest)) = (widths.first(), widths.last()) else {
            return Err(DivaError::config(OP, "block_out_channels is empty"));
        };
        let conv_in = conv(&(&root / "conv_in"), (config.in_channels, first), 3, 1, 1)?;
        let stream = stream_of(conv_in.weight.f_kind()?);
        let like = &conv_in.weight.f_to_kind(stream)?;
        let class = config
            .class_embed_type
            .map(|kind| ClassEntry::load(&(&root / "class_embedding"), &config, kind, fixed, like))
            .transpose()?;
        let added = AddedEntry::load(&(&root / "add_embedding"), &config, fixed, like)?;
        let time_proj = Sinusoids::new(first, config.flip_sin_to_cos, config.freq_shift, like)?;
        let time = &root / "time_embedding";
        let time_embedding =
            TimestepEmbedding::load(&time, first, config.time_embedding_dim, Activation::Silu)?;

        let mut list = Units { units: Vec::new(), residuals: vec![first], config: &config };
        let mut inputs = first;
        for (i, (block, &outputs)) in config.down_blocks.iter().zip(&widths).enumerate() {
            list.down(&(&root / "down_blocks" / i), block, (inputs, outputs), i + 1 == widths.len())?;
            inputs = outputs;
        }
        if let Some(block) = &config.mid_block {
            list.mid(&(&root / "mid_block"), block, deepest)?;
        }
        for (i, (block, &outputs)) in config.up_blocks.iter().zip(widths.iter().rev()).enumerate() {
            list.up(&(&root / "up_blocks" / i), block, (inputs, outputs), i + 1 == widths.len())?;
            inputs = outputs;
        }
        let mut units = list.units;
        for (index, attention) in units.iter_mut().flat_map(Unit::attentions_mut).enumerate() {
            attention.index = index;
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
            units,
            conv_norm_out,
            conv_out,
            stream,
            config,
        })
    }

    /// Of the condition.
    fn width(&self) -> i64 {
        self.class.as_ref().map_or(self.config.cross_attention_dim, |class| class.width)
    }

    /// What carries the condition: the pooled slot (B, V) where the class embedding does, otherwise the tokens (B, S, C).
    fn slot<'a>(&self, condition: &'a Condition) -> Result<&'a Tensor> {
        match self.class {
            Some(_) => condition.pooled(OP),
            None => condition.tokens(OP),
        }
    }

    fn check(&self, query: &Query) -> Result<()> {
        let Query { noisy, timesteps, .. } = *query;
        let condition = self.slot(query.condition)?;
        let (channels, width) = (self.config.in_channels, self.width());
        for (name, tensor) in [("noisy", noisy), ("condition", condition)] {
            floating(OP, name, tensor)?;
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
        let (name, fits, expected) = match condition.size()[..] {
            ref size if self.class.is_some() => (
                "condition.pooled",
                *size == [batch, width],
                format!("[{batch}, {width}]: one vector per sample"),
            ),
            [samples, length, found] if samples == batch && found == width && length > 0 => return Ok(()),
            _ => ("condition", false, format!("({batch}, S, {width}) with S > 0")),
        };
        if !fits {
            return Err(DivaError::shape(OP, name, condition, expected));
        }
        Ok(())
    }

    /// The time embedding (B, T) after the SiLU that every ResNet begins with, and what is cross-attended. `slot`: what
    /// carries the condition.
    fn given<'a>(&self, query: &Query<'a>, slot: &Tensor) -> Result<Given<'a>> {
        let sinusoids = self.time_proj.forward(query.timesteps)?.f_to_kind(self.stream)?;
        let mut time = self.time_embedding.forward(&sinusoids)?;
        let mut hidden = self.here(slot)?;
        if let Some(class) = &self.class {
            let (embedded, text) = class.forward(&hidden)?;
            time = time.f_add(&embedded)?;
            hidden = text;
        }
        if let Some(added) = &self.added {
            let (_, _, height, width) = query.noisy.size4()?;
            time = time.f_add(&added.forward((height, width))?)?;
        }
        Ok(Given { time: time.f_silu()?, condition: hidden, text: query.text })
    }

    /// On the network's device, in the dtype of its sums.
    fn here(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.f_to_other(&self.time_proj.place().f_to_kind(self.stream)?, false, false)?)
    }

    /// noisy (B, C, h, w) -> the input of the first unit.
    fn enter(&self, noisy: &Tensor) -> Result<Tensor> {
        let mut x = self.here(noisy)?;
        if self.config.center_input_sample {
            x = x.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?;
        }
        self.conv_in.forward(&x)
    }

    /// The output of the last unit -> the prediction, without a learned variance.
    fn leave(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.conv_out.forward(&self.conv_norm_out.silu(x, x.f_kind()?)?)?;
        Ok(x.f_narrow(1, 0, self.config.in_channels)?)
    }
}

impl Denoiser for UNet2DCondition {
    fn slots(&self) -> Slots {
        match self.class {
            Some(_) => Slots::POOLED,
            None => Slots::TOKENS,
        }
    }

    fn condition_width(&self) -> Option<i64> {
        Some(self.width())
    }

    /// In the dtype of the network's sums (float32 for bf16 weights), on the device of `noisy`; without a learned variance.
    fn predict(&self, query: &Query) -> Result<Tensor> {
        self.check(query)?;
        let given = self.given(query, self.slot(query.condition)?)?;
        let mut x = self.enter(query.noisy)?;
        let mut residuals = vec![x.shallow_clone()];
        for unit in &self.units {
            x = unit.forward(&unit.input(x, &mut residuals)?, &given)?;
            if unit.leaves() {
                residuals.push(x.shallow_clone());
            }
        }
        query.home(&self.leave(&x)?)
    }

    fn read(&self, text: &Tensor) -> Result<Option<KeysValues>> {
        if self.class.is_some() {
            return Ok(None); // its condition is pooled, and not cross-attended
        }
        let width = self.config.cross_attention_dim;
        if !matches!(text.size()[..], [samples, length, found] if samples * length > 0 && found == width) {
            return Err(DivaError::shape(
                OP,
                "text",
                text,
                format!("(1 | B, L, {width}), nothing of it empty"),
            ));
        }
        let _frozen = no_grad_guard();
        let text = self.here(text)?;
        let attentions = self.units.iter().flat_map(Unit::attentions);
        Ok(Some(KeysValues(attentions.map(|part| part.keys_values(&text)).collect::<Result<_>>()?)))
    }

    fn gradient(&self, query: &Query, loss_gradient: LossGradient) -> Result<Option<Gradients>> {
        if !self.config.checkpoint {
            return Ok(None);
        }
        self.check(query)?;
        Ok(Some(self.recomputed(query, loss_gradient)?.into()))
    }
}
