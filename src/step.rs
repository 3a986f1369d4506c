//! The student's side of a training step: tokens from the vision tower, feedback at cut 1, gradients into `.grad`.
//!
//! The tower runs forward and backward once per sample and step, whatever the number of draws. A term that sees the whole
//! batch costs a second forward pass where the batch goes through in several micro-batches: the first pass, without a
//! graph, gives the term its tokens, embeddings and predictions, and the second one takes the term's gradients at them
//! (gradient caching: Gao et al., arXiv 2101.06983).

use std::sync::{Arc, Mutex};

use crate::torch::{no_grad_guard, Tensor};

use crate::autograd::pull::push;
use crate::autograd::set_grad;
use crate::condition::{embed, Head};
use crate::error::{DivaError, Poll, Result};
use crate::feedback::{part, Feedback, LossAndGrad, Losses, Make, SampleData, Samples, TermGrads};
use crate::nn::Wide;

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

/// The untouched model that terms hold the student to.
pub struct Original {
    pub tower: Box<dyn VisionTower>,
    pub head: Head,
}

pub struct Step {
    pub tower: Box<dyn VisionTower>,
    pub feedback: Feedback,
    pub original: Option<Arc<Mutex<Original>>>,
    /// Samples that go through the step at a time; `None`: all.
    pub micro_batch: Option<usize>,
    /// Whether bf16 matrices on a CPU are multiplied in float32.
    pub wide: bool,
}

impl Step {
    /// Adds `share` times the gradient of the mean loss over `images` (B | 2B, 3, H, W), where the augmented views that a
    /// term needs follow, to the `.grad` of every parameter that requires one. `train_tower`: whether the tower has such parameters; without any it runs outside any graph.
    /// `whole`: nothing is added to these gradients before the update. `poll` is called after each micro-batch.
    pub fn accumulate(
        &self,
        images: &Tensor,
        data: &SampleData,
        share: f64,
        train_tower: bool,
        whole: bool,
        poll: Poll,
    ) -> Result<Losses> {
        let samples = self.samples(images)?;
        let cached = self.cached(images, data, samples, |start, length| {
            poll()?;
            self.tower.tokens(&images.f_narrow(0, start, length)?)
        })?;
        let whole = whole && self.width(samples) >= samples;
        let (mut losses, mut trained) = (Losses::default(), false);
        for (start, length) in self.micro_batches(samples) {
            let images = part(images, samples, start, length)?;
            let (tokens, carry) = self.tokens(&images, train_tower)?;
            let share_of = cached.as_ref().map(|cached| cached.narrow(samples, start, length)).transpose()?;
            let data = data.narrow(start, length)?;
            let original = self.original(&images.f_narrow(0, 0, length)?);
            let part = Samples { tokens: &tokens, data: &data, original, of: samples };
            let found = self.feedback.loss_and_grad(part, share_of)?;
            losses.add_all(&found.losses)?;
            let carried = carry.is_some();
            if let Some(carry) = carry {
                carry(&scaled(found.tokens.shallow_clone(), share)?)?;
            }
            trained |= self.backward(&tokens, found, share, whole)? || carried;
            poll()?;
        }
        if !trained {
            return Err(DivaError::config("accumulate", "nothing to train: every parameter is frozen"));
        }
        self.feedback.with_total(&losses)
    }

    /// Losses and gradients at given `tokens` (B | 2B, 1+P, W), for callers who run the tower themselves.
    pub fn at_tokens(&self, tokens: &Tensor, images: &Tensor, data: &SampleData) -> Result<LossAndGrad> {
        let _products = Wide::set(self.wide);
        let samples = self.samples(tokens)?;
        let cached =
            self.cached(images, data, samples, |start, length| Ok(tokens.f_narrow(0, start, length)?))?;
        let mut whole: Option<LossAndGrad> = None;
        let mut at_tokens = Vec::new();
        for (start, length) in self.micro_batches(samples) {
            let (tokens, images) =
                (part(tokens, samples, start, length)?, images.f_narrow(0, start, length)?);
            let share_of = cached.as_ref().map(|cached| cached.narrow(samples, start, length)).transpose()?;
            let data = data.narrow(start, length)?;
            let part =
                Samples { tokens: &tokens, data: &data, original: self.original(&images), of: samples };
            let found = self.feedback.loss_and_grad(part, share_of)?;
            at_tokens.push(found.tokens.f_split(length, 0)?);
            match &mut whole {
                Some(sum) => sum.add(&found)?,
                None => whole = Some(found),
            }
        }
        let whole = whole.ok_or_else(|| DivaError::config("feedback", "the batch is empty"))?;
        // Those of the images, then those of their augmented views.
        let views = (0..self.feedback.views() as usize)
            .flat_map(|view| at_tokens.iter().map(move |found| &found[view]));
        let tokens = Tensor::f_cat(&views.collect::<Vec<_>>(), 0)?;
        Ok(LossAndGrad { losses: self.feedback.with_total(&whole.losses)?, tokens, ..whole })
    }

    /// The first pass of terms that see the whole batch, where it takes several micro-batches.
    fn cached(
        &self,
        images: &Tensor,
        data: &SampleData,
        samples: i64,
        tokens: impl Fn(i64, i64) -> Result<Tensor>,
    ) -> Result<Option<TermGrads>> {
        let width = self.width(samples);
        if width >= samples || !self.feedback.has_batch_terms() {
            return Ok(None);
        }
        let tokens = {
            let _no_grad = no_grad_guard();
            let rows = parts_of(samples * self.feedback.views(), width);
            let parts: Result<Vec<_>> = rows.map(|(start, length)| tokens(start, length)).collect();
            Tensor::f_cat(&parts?, 0)?
        };
        let original = self.original(&images.f_narrow(0, 0, samples)?);
        let whole = Samples { tokens: &tokens, data, original, of: samples };
        self.feedback.batch_terms(whole, width).map(Some)
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

    /// Computes the untouched model's embeddings (B, D) of `images`, where there is such a model.
    fn original(&self, images: &Tensor) -> Option<Make> {
        let (original, images) = (self.original.clone()?, images.shallow_clone());
        let width = self.width(images.size().first().copied().unwrap_or(0));
        Some(Box::new(move || {
            let _frozen = no_grad_guard();
            let Original { tower, head } = &*original.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let parts: Result<Vec<_>> = parts_of(images.size()[0], width)
                .map(|(start, length)| embed(head, &tower.tokens(&images.f_narrow(0, start, length)?)?))
                .collect();
            Ok(Tensor::f_cat(&parts?, 0)?)
        }))
    }

    /// Cut 1 joined again: adds the given gradients to every `.grad` through autograd's own accumulation. Each is dropped
    /// as soon as it is added: a denoiser that trains has gigabytes of them. The `whole` gradient of a denoiser's parameter
    /// stays in the dtype in which it was computed. False: there is none.
    fn backward(&self, tokens: &Tensor, found: LossAndGrad, share: f64, whole: bool) -> Result<bool> {
        let denoiser = self.feedback.teacher.as_ref().map(|teacher| teacher.params()).unwrap_or_default();
        let bridge = self.feedback.bridge.params().into_iter().map(|(_, param)| param).zip(found.bridge);
        let mut trained = false;
        let leaves = bridge.chain(denoiser.iter().zip(found.denoiser));
        for (value, gradient) in [(tokens, Some(found.tokens))].into_iter().chain(leaves) {
            if let Some(gradient) = gradient.filter(|_| value.requires_grad()) {
                trained = true;
                if whole && gradient.f_kind()? != value.f_kind()? {
                    set_grad(value, Some(&gradient));
                } else {
                    push(value, scaled(gradient, share)?)?;
                }
            }
        }
        Ok(trained)
    }

    /// How many samples have these images or tokens.
    fn samples(&self, rows: &Tensor) -> Result<i64> {
        let views = self.feedback.views();
        match rows.size().first() {
            Some(&found) if found > 0 && found % views == 0 => Ok(found / views),
            _ => {
                let expected = format!("a batch of at least one sample, {views} rows for each");
                Err(DivaError::shape("step", "images", rows, expected))
            }
        }
    }

    fn width(&self, samples: i64) -> i64 {
        self.micro_batch.map_or(samples, |width| width as i64).max(1)
    }

    fn micro_batches(&self, samples: i64) -> impl Iterator<Item = (i64, i64)> {
        parts_of(samples, self.width(samples))
    }
}

/// (start, length) of the parts of a batch.
fn parts_of(samples: i64, width: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..samples).step_by(width as usize).map(move |start| (start, width.min(samples - start)))
}

fn scaled(gradient: Tensor, share: f64) -> Result<Tensor> {
    Ok(if share == 1.0 { gradient } else { gradient.f_mul_scalar(share)? })
}
