//! A whole training step: from images to updated weights, without leaving this crate.

use crate::torch::{no_grad_guard, Tensor};

use crate::error::{DivaError, Poll, Result};
use crate::feedback::Losses;
use crate::inputs::{Batch, Reader};
use crate::nn::Wide;
use crate::optim::Optimizer;
use crate::step::Step;

/// How a batch counts, and whether it completes a step.
pub struct Part {
    /// The batch's share of the samples since the last update.
    pub share: f64,
    /// Whether the vision tower has parameters that train.
    pub train_tower: bool,
    /// `None`: the gradient waits in `.grad` for more.
    pub update: Option<Update>,
}

pub struct Update {
    /// Of the gradient; `None`: not clipped.
    pub max_norm: Option<f64>,
    /// On the learning rate of each group.
    pub factors: Vec<f64>,
    /// The mean loss of the batches before this one (0-dim): the step is skipped where it is not finite.
    pub loss: Option<Tensor>,
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
    let _products = Wide::set(step.wide);
    let (images, data) = reader.read(batch, poll)?;
    if part.share < 1.0 {
        optimizer.scale_grads(1.0 - part.share)?;
    }
    let whole = part.share == 1.0 && part.update.is_some();
    let losses = step.accumulate(&images, &data, part.share, part.train_tower, whole, poll)?;
    hold()?;
    let Some(update) = &part.update else { return Ok((losses, None)) };
    let norm = update.apply(optimizer, losses.get("loss"))?;
    Ok((losses, Some(norm)))
}

impl Update {
    /// Clips the gradient, moves the weights, and gives the norm before clipping. Nothing moves
    /// where the norm, `self.loss` or `loss` is not finite.
    pub fn apply(&self, optimizer: &mut Optimizer, loss: Option<&Tensor>) -> Result<Tensor> {
        let losses: Vec<&Tensor> = self.loss.iter().chain(loss).collect();
        if let Some(loss) = losses.iter().find(|loss| loss.dim() != 0) {
            return Err(DivaError::shape("Optimizer.update", "loss", loss, "()"));
        }
        let _guard = no_grad_guard();
        let (norm, clip) = optimizer.clip(self.max_norm)?;
        let mut sum = norm.shallow_clone();
        for loss in losses {
            sum = sum.f_add(&loss.f_to_other(&norm, true, false)?)?;
        }
        // A number that is not finite has no difference of zero to itself.
        let finite = sum.f_sub(&sum)?.f_eq(0.0)?;
        optimizer.step_if(&finite, clip.as_ref(), &self.factors)?;
        Ok(norm)
    }
}
