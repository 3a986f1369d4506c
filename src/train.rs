//! A whole training step: from images to updated weights, without leaving this crate.

use tch::Tensor;

use crate::error::Result;
use crate::inputs::{Batch, Poll, Reader};
use crate::optim::Optimizer;
use crate::step::{Losses, Step};

/// How a batch counts, and whether it completes a step.
pub struct Part {
    /// The batch's share of the samples since the last update.
    pub share: f64,
    /// False: CLIP is frozen while the projector warms up.
    pub train_tower: bool,
    /// `None`: the gradient waits in `.grad` for more.
    pub update: Option<Update>,
}

pub struct Update {
    /// Of the gradient; `None`: not clipped.
    pub max_norm: Option<f64>,
    /// On the learning rate.
    pub factor: f64,
}

/// Runs a batch forward and backward, and updates the weights where the step is complete; gives the losses of the batch,
/// and the norm of the gradient that was applied.
///
/// `poll` is called between the parts, and `hold` once when all gradients are there: from then on nothing interrupts.
pub fn train(
    reader: &Reader,
    step: &Step,
    optimizer: &mut Optimizer,
    batch: &Batch,
    part: &Part,
    poll: Poll,
    hold: Poll,
) -> Result<(Losses, Option<Tensor>)> {
    let (images, targets) = reader.read(batch, poll)?;
    if part.share < 1.0 {
        optimizer.scale_grads(1.0 - part.share)?;
    }
    let losses = step.accumulate(&images, &targets, part.share, part.train_tower, poll)?;
    hold()?;
    let norm =
        part.update.as_ref().map(|update| update.apply(optimizer, &[part.train_tower, true])).transpose()?;
    Ok((losses, norm))
}

impl Update {
    /// Clips the gradient, moves the weights of the `active` groups, and gives the norm before clipping.
    pub fn apply(&self, optimizer: &mut Optimizer, active: &[bool]) -> Result<Tensor> {
        let norm = optimizer.clip_grad_norm(self.max_norm)?;
        optimizer.step(self.factor, active)?;
        Ok(norm)
    }
}
