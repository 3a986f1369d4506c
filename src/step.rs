//! The student's side of a training step: tokens from the vision tower, feedback at cut 1, gradients into `.grad`.
//!
//! The tower runs forward and backward once per sample and step, whatever the number of draws.

use std::sync::Arc;

use tch::{no_grad_guard, Tensor};

use crate::condition::{embed, Bridge, Head};
use crate::denoiser::Denoiser;
use crate::error::{DivaError, Result};
use crate::feedback::{Feedback, Objective, Targets, Teaching};
use crate::inputs::Poll;
use crate::schedule::Schedule;

/// The student: the vision tower of a CLIP.
pub trait VisionTower: Send {
    /// Tokens (B, 1+P, W) of `images` (B, 3, H, W), differentiable with respect to the tower's parameters.
    fn tokens(&self, images: &Tensor) -> Result<Tensor>;

    /// The same tokens outside any graph, and what carries their gradient back: for towers that compute their blocks
    /// again in the backward pass instead of keeping every activation. `None`: this one keeps them.
    fn record(&self, _images: &Tensor) -> Result<Option<(Tensor, Carry)>> {
        Ok(None)
    }
}

/// Adds to every `.grad` of a tower, given the gradient of its tokens.
pub type Carry = Box<dyn FnOnce(&Tensor) -> Result<()>>;

/// The untouched model that the anchor penalty holds the student to.
pub struct Original {
    pub tower: Box<dyn VisionTower>,
    pub head: Head,
}

pub struct Step {
    pub tower: Box<dyn VisionTower>,
    pub denoiser: Box<dyn Denoiser>,
    pub bridge: Bridge,
    pub schedule: Arc<Schedule>,
    pub objective: Objective,
    pub original: Option<Original>,
    /// Samples that go through the step at a time; `None`: all.
    pub micro_batch: Option<usize>,
}

/// The losses of a step, 0-dim, on the device: reading them is the caller's decision.
pub struct Losses {
    pub loss: Tensor,
    pub denoising: Tensor,
    pub anchor: Tensor,
}

impl Step {
    /// Adds `share` times the gradient of the mean loss over `images` (B, 3, H, W) to the `.grad` of every trained
    /// parameter. With `train_tower` false only the projector gets a gradient (its warm-up). `poll` is called after each
    /// micro-batch.
    pub fn accumulate(
        &self,
        images: &Tensor,
        targets: &Targets,
        share: f64,
        train_tower: bool,
        poll: Poll,
    ) -> Result<Losses> {
        let samples = batch_of(images)?;
        let mut losses: Option<Losses> = None;
        for (start, length) in self.micro_batches(samples) {
            let images = images.f_narrow(0, start, length)?;
            let (tokens, carry) = self.tokens(&images, train_tower)?;
            let heard = self.feedback(&tokens, &images, &targets.narrow(start, length)?, samples)?;
            if let Some(carry) = carry {
                carry(&scaled(&heard.tokens, share)?)?;
            }
            self.backward(&tokens, &heard, share, train_tower)?;
            losses = Some(sum(losses, heard)?);
            poll()?;
        }
        losses.ok_or_else(|| DivaError::Data { op: "accumulate", what: "the batch is empty".to_string() })
    }

    /// The tower's tokens: in a graph, recorded with what carries their gradient back, or, untrained, neither.
    fn tokens(&self, images: &Tensor, train_tower: bool) -> Result<(Tensor, Option<Carry>)> {
        if train_tower {
            return match self.tower.record(images)? {
                Some((tokens, carry)) => Ok((tokens, Some(carry))),
                None => Ok((self.tower.tokens(images)?, None)),
            };
        }
        let _frozen = no_grad_guard();
        Ok((self.tower.tokens(images)?, None))
    }

    /// Loss and gradients at given `tokens` (B, 1+P, W), for callers who run the tower themselves.
    pub fn at_tokens(&self, tokens: &Tensor, images: &Tensor, targets: &Targets) -> Result<Feedback> {
        let samples = batch_of(tokens)?;
        let mut parts: Vec<Feedback> = Vec::new();
        for (start, length) in self.micro_batches(samples) {
            let part = tokens.f_narrow(0, start, length)?;
            let images = images.f_narrow(0, start, length)?;
            parts.push(self.feedback(&part, &images, &targets.narrow(start, length)?, samples)?);
        }
        join(parts)
    }

    fn feedback(
        &self,
        tokens: &Tensor,
        images: &Tensor,
        targets: &Targets,
        samples: i64,
    ) -> Result<Feedback> {
        let original = match &self.original {
            Some(original) if self.objective.anchor != 0.0 => {
                let _frozen = no_grad_guard();
                Some(embed(&original.head, &original.tower.tokens(images)?)?)
            }
            _ => None,
        };
        let teaching = Teaching {
            bridge: &self.bridge,
            schedule: &self.schedule,
            denoiser: self.denoiser.as_ref(),
            objective: &self.objective,
        };
        teaching.feedback(tokens, original.as_ref(), targets, samples)
    }

    /// Cut 1 joined again: the backward pass of the scalar sum(tokens * d_tokens) + sum(param * d_param), whose
    /// gradient is the given one exactly, adds to every `.grad` through autograd's own accumulation.
    fn backward(&self, tokens: &Tensor, heard: &Feedback, share: f64, train_tower: bool) -> Result<()> {
        let mut terms = Vec::new();
        if tokens.requires_grad() {
            terms.push((tokens, &heard.tokens));
        }
        for ((name, param), gradient) in self.bridge.params().into_iter().zip(&heard.params) {
            if param.requires_grad() && (train_tower || name.starts_with("projector")) {
                terms.push((param, gradient));
            }
        }
        let mut scalar: Option<Tensor> = None;
        for (value, gradient) in terms {
            let product = value.f_mul(&scaled(gradient, share)?)?;
            let term = product.f_sum(product.kind())?;
            scalar = Some(match scalar {
                Some(sum) => sum.f_add(&term.f_type_as(&sum)?)?,
                None => term,
            });
        }
        match scalar {
            Some(scalar) => Ok(scalar.f_backward()?),
            None => Err(DivaError::config("accumulate", "nothing to train: every parameter is frozen")),
        }
    }

    fn micro_batches(&self, samples: i64) -> impl Iterator<Item = (i64, i64)> {
        let width = self.micro_batch.map_or(samples, |width| width as i64).max(1);
        (0..samples).step_by(width as usize).map(move |start| (start, width.min(samples - start)))
    }
}

fn scaled(gradient: &Tensor, share: f64) -> Result<Tensor> {
    Ok(if share == 1.0 { gradient.shallow_clone() } else { gradient.f_mul_scalar(share)? })
}

fn batch_of(tensor: &Tensor) -> Result<i64> {
    match tensor.size().first() {
        Some(&samples) if samples > 0 => Ok(samples),
        _ => Err(DivaError::shape("step", "images", tensor, "a batch of at least one sample")),
    }
}

fn sum(before: Option<Losses>, heard: Feedback) -> Result<Losses> {
    Ok(match before {
        None => Losses { loss: heard.loss, denoising: heard.denoising, anchor: heard.anchor },
        Some(before) => Losses {
            loss: before.loss.f_add(&heard.loss)?,
            denoising: before.denoising.f_add(&heard.denoising)?,
            anchor: before.anchor.f_add(&heard.anchor)?,
        },
    })
}

/// Micro-batches of one batch: losses and parameter gradients add up, token gradients stand side by side.
fn join(parts: Vec<Feedback>) -> Result<Feedback> {
    let tokens = Tensor::f_cat(&parts.iter().map(|part| &part.tokens).collect::<Vec<_>>(), 0)?;
    let mut parts = parts.into_iter();
    let mut whole = parts
        .next()
        .ok_or_else(|| DivaError::Data { op: "feedback", what: "the batch is empty".to_string() })?;
    for part in parts {
        whole.loss = whole.loss.f_add(&part.loss)?;
        whole.denoising = whole.denoising.f_add(&part.denoising)?;
        whole.anchor = whole.anchor.f_add(&part.anchor)?;
        for (sum, gradient) in whole.params.iter_mut().zip(&part.params) {
            *sum = sum.f_add(gradient)?;
        }
    }
    whole.tokens = tokens;
    Ok(whole)
}
