//! What the teacher says about a batch of tokens: everything between the two cuts.
//!
//! tokens (a leaf) -> condition (a leaf) -> N denoising losses -> gradient at the condition -> gradient at the tokens.
//! The vision tower is on the far side of cut 1, so its cost does not depend on the number of draws N.
//!
//! [`targets`]: what a batch is denoised from; [`objective`]: what is minimised; [`denoise`]: the second cut, N draws in
//! as many passes as memory allows; [`anchor`]: the penalty that keeps the student near the model that it was.

use tch::Tensor;

use crate::condition::Bridge;
use crate::denoiser::Denoiser;
use crate::error::Result;
use crate::schedule::Schedule;

mod anchor;
mod denoise;
mod objective;
mod targets;

use anchor::anchor;
pub use objective::{Loss, Objective, Room};
pub use targets::Targets;

/// A loss and its gradients, nothing of which is attached to a graph.
pub struct Feedback {
    pub loss: Tensor,        // 0-dim: denoising + anchor
    pub denoising: Tensor,   // 0-dim
    pub anchor: Tensor,      // 0-dim, already weighted
    pub tokens: Tensor,      // (B, 1+P, W)
    pub params: Vec<Tensor>, // in the order of `Bridge::params`
}

/// Everything on the far side of cut 1.
pub struct Teaching<'a> {
    pub bridge: &'a Bridge,
    pub schedule: &'a Schedule,
    pub denoiser: &'a dyn Denoiser,
    pub objective: &'a Objective,
}

impl Teaching<'_> {
    /// Loss and gradients at the `tokens` (B, 1+P, W) of a batch. The losses of the samples are summed with weight
    /// 1/`samples` each, so that micro-batches of one batch of `samples` add up to its mean. `original` (B, D) is the
    /// untouched model's embedding.
    pub fn feedback(
        &self,
        tokens: &Tensor,
        original: Option<&Tensor>,
        targets: &Targets,
        samples: i64,
    ) -> Result<Feedback> {
        targets.check(tokens, self.objective.draw_weights.len())?;
        let tokens = tokens.f_detach()?;
        let (condition, tape) = self.bridge.forward(&tokens, &targets.text, targets.choice.as_ref())?;
        let (denoising, d_condition) = self.denoise(&condition, targets, samples)?;
        let mut grads = self.bridge.backward(&tape, &d_condition)?;
        let anchor = match original {
            Some(original) if self.objective.anchor != 0.0 => {
                let weight = self.objective.anchor / samples as f64;
                anchor(self.bridge, &tokens, original, weight, &mut grads)?
            }
            _ => denoising.f_zeros_like()?,
        };
        let loss = denoising.f_add(&anchor.f_type_as(&denoising)?)?;
        Ok(Feedback { loss, denoising, anchor, tokens: grads.tokens, params: grads.params })
    }
}
