//! Multimodal diffusion transformers (arXiv 2403.03206): diffusers' `FluxTransformer2DModel` and `SD3Transformer2DModel`,
//! frozen or trained.
//!
//! [`config`]: what one is built from; [`entry`]: how latents, timestep and pooled condition enter, and how a prediction
//! leaves; [`blocks`]: what it is made of; [`attention`]: of two streams as one; [`rotary`]: where its patches are;
//! [`recompute`]: the same gradients with the memory of one block.

use crate::torch::{Kind, Tensor};

use super::condition::{Condition, Slots};
use super::frozen::{check, frozen};
use super::layers::{linear, stream_of};
use super::{Denoiser, Gradients, LossGradient, Query};
use crate::error::{floating, DivaError, Result};
use crate::nn::{Compute, Linear, Path, Store};

pub mod attention;
pub mod blocks;
pub mod config;
pub mod entry;
mod recompute;
pub mod rotary;

use blocks::{Block, Given, Joint, Single, State};
use config::{Config, Form, OP};
use entry::{Embedding, Patches, POSITIONS};
use rotary::Rotary;

pub struct MMDiT {
    patches: Patches,
    embedding: Embedding,
    context: Linear,
    /// What fills a slot that is not the condition's: text (1, L, C), a vector (1, V).
    fixed: Condition,
    /// With what their keys begin.
    blocks: Vec<(String, Block)>,
    /// Of matrix products, and of the sums between them.
    products: Kind,
    stream: Kind,
    /// The weights, where they train.
    params: Vec<(String, Tensor)>,
    /// Where their gradients arrive: there, or at leaves of another dtype.
    leaves: Vec<Tensor>,
    config: Config,
}

impl MMDiT {
    /// Over the weights of a checkpoint, by its keys; the stored positions of SD3 may have another dtype. Beside bf16
    /// weights any may be float32: it was not rounded.
    /// `fixed`: "encoder_hidden_states" (1, L, C) or "pooled_projections" (1, V) where that slot is not the condition's.
    pub fn new(config: Config, weights: Vec<(String, Tensor)>, fixed: Vec<(String, Tensor)>) -> Result<Self> {
        config.check()?;
        let fixed = config.fixed(fixed)?;
        let mut params = Vec::new();
        let store = if let Some(train) = config.train {
            check(OP, &weights, &[POSITIONS])?;
            let all = weights.iter().filter(|(key, _)| key != POSITIONS);
            params.extend(all.map(|(key, weight)| (key.clone(), weight.shallow_clone())));
            let narrow =
                |weight: &Tensor| config.checkpoint && weight.dim() == 2 && weight.kind() != train.kind();
            let keys = params.iter().filter(|(_, weight)| narrow(weight)).map(|(key, _)| key.as_str());
            Store::new(weights).with_leaves(keys, train.kind())?
        } else {
            frozen(OP, weights, &[POSITIONS])?
        };
        let root = store.root();
        let context = linear(&(&root / "context_embedder"), config.tokens_width, config.width())?;
        let kind = context.weight.f_kind()?;
        let network = MMDiT {
            patches: Patches::load(&root, &config)?,
            embedding: Embedding::load(&(&root / "time_text_embed"), &config, &context.weight)?,
            blocks: blocks(&root, &config)?,
            products: config.train.map_or(kind, Compute::kind),
            stream: stream_of(kind),
            context,
            fixed: Condition::default(),
            leaves: params
                .iter()
                .map(|(key, param)| root.leaf(key).unwrap_or(param.shallow_clone()))
                .collect(),
            params,
            config,
        };
        store.finish()?;
        let here = |slot: Option<Tensor>| slot.map(|text| network.here(&text)).transpose();
        let fixed = Condition { tokens: here(fixed.tokens)?, pooled: here(fixed.pooled)? };
        Ok(MMDiT { fixed, ..network })
    }

    /// What enters, checked: one slot, or both, from the condition.
    fn entries(&self, query: &Query) -> Result<Entries> {
        query.without_text(OP)?;
        let Query { noisy, timesteps, condition, .. } = *query;
        let grid = self.patches.grid(noisy)?;
        let batch = noisy.size4()?.0;
        if timesteps.size() != [batch] || timesteps.f_kind()? == Kind::Bool {
            let expected = format!("numbers [{batch}], one per sample");
            return Err(DivaError::shape(OP, "timesteps", timesteps, expected));
        }
        floating(OP, "noisy", noisy)?;
        let tokens = match &self.fixed.tokens {
            Some(text) => text.f_expand([batch, -1, -1], false)?,
            None => self.config.tokens("condition.tokens", condition.tokens(OP)?, batch)?,
        };
        let pooled = match &self.fixed.pooled {
            Some(text) => text.f_expand([batch, -1], false)?,
            None => self.config.pooled("condition.pooled", condition.pooled(OP)?, batch)?,
        };
        Ok(Entries { grid, tokens, pooled })
    }

    /// On the network's device, in the dtype of its sums.
    fn here(&self, tensor: &Tensor) -> Result<Tensor> {
        let like = self.embedding.place().f_to_kind(self.stream)?;
        Ok(tensor.f_to_other(&like, false, false)?)
    }

    /// The input of the first block, and what every block reads beside its input.
    fn enter(&self, query: &Query, Entries { grid, tokens, pooled }: &Entries) -> Result<(State, Given)> {
        let rotary = match &self.config.form {
            Form::Flux(flux) => Some(Rotary::of(flux, self.embedding.place(), tokens.size3()?.1, *grid)?),
            Form::Sd3(_) => None,
        };
        let embedded = self.embedding.forward(query.timesteps, &self.here(pooled)?)?;
        let text = self.context.forward(&self.here(tokens)?.f_to_kind(self.products)?)?;
        let image = self.patches.enter(&self.here(query.noisy)?, *grid)?;
        let state = State { image, text: Some(text.f_to_kind(self.stream)?) };
        Ok((state, Given { embedded, rotary, products: self.products }))
    }
}

/// What a pass starts from beside latents and timesteps.
struct Entries {
    /// (height, width) in patches.
    grid: (i64, i64),
    tokens: Tensor, // (B, S, C)
    pooled: Tensor, // (B, V)
}

/// The blocks, with what their keys begin.
fn blocks(root: &Path, config: &Config) -> Result<Vec<(String, Block)>> {
    let mut blocks = Vec::new();
    for i in 0..config.num_layers {
        let key = format!("transformer_blocks.{i}");
        let (last, dual) = match &config.form {
            Form::Flux(_) => (false, false),
            Form::Sd3(sd3) => (i + 1 == config.num_layers, sd3.dual_layers.contains(&i)),
        };
        let joint = Joint::load(&(root / &key), config, last, dual)?;
        blocks.push((key + ".", Block::Joint(Box::new(joint))));
    }
    if let Form::Flux(flux) = &config.form {
        for i in 0..flux.num_single_layers {
            let key = format!("single_transformer_blocks.{i}");
            let single = Single::load(&(root / &key), config)?;
            blocks.push((key + ".", Block::Single(Box::new(single))));
        }
    }
    Ok(blocks)
}

impl Denoiser for MMDiT {
    fn slots(&self) -> Slots {
        let (tokens, pooled) = (self.fixed.tokens.is_none(), self.fixed.pooled.is_none());
        Slots { tokens, pooled, split: (tokens && pooled).then_some(self.config.tokens_width) }
    }

    fn condition_width(&self) -> Option<i64> {
        let Config { tokens_width, pooled_width, .. } = self.config;
        Some(match self.slots() {
            Slots { split: Some(_), .. } => tokens_width + pooled_width,
            Slots { tokens: true, .. } => tokens_width,
            _ => pooled_width,
        })
    }

    /// In the dtype of the network's sums (float32 for bf16 weights), on the device of `noisy`.
    fn predict(&self, query: &Query) -> Result<Tensor> {
        let entries = self.entries(query)?;
        let (mut state, given) = self.enter(query, &entries)?;
        for (_, block) in &self.blocks {
            state = block.forward(&state, &given)?;
        }
        query.home(&self.patches.leave(&state.image, &given.embedded, entries.grid)?)
    }

    fn gradient(&self, query: &Query, loss_gradient: LossGradient) -> Result<Option<Gradients>> {
        self.config.checkpoint.then(|| self.recomputed(query, loss_gradient)).transpose()
    }

    fn params(&self) -> Vec<(String, Tensor)> {
        self.params.iter().map(|(key, param)| (key.clone(), param.shallow_clone())).collect()
    }
}
