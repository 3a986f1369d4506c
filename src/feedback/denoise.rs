//! The second cut: N denoising losses and their gradient at the condition.

use tch::{no_grad_guard, Tensor};

use super::objective::enough;
use super::{Objective, Targets, Teaching};
use crate::condition::{Recap, TextJoin};
use crate::denoiser::{KeysValues, Query};
use crate::error::{DivaError, Result};
use crate::schedule::Noised;

impl Teaching<'_> {
    /// The N denoising losses and their gradient at the condition (B, N', S, C), N' = N or 1: the second cut.
    pub(super) fn denoise(
        &self,
        condition: &Tensor,
        targets: &Targets,
        samples: i64,
    ) -> Result<(Tensor, Tensor)> {
        let batch = targets.latents.size().first().map_or(1, |&batch| batch.max(1));
        let Objective { draw_weights, denoiser_batch, room, .. } = self.objective;
        let most = denoiser_batch.unwrap_or_else(|| enough(&targets.latents));
        let draws = draw_weights.len() as i64;
        let shared = condition.size().get(1) == Some(&1); // every draw sees the same condition
        let learns = self.bridge.recap != Recap::Text;
        let text = if learns { self.text(targets)? } else { None };
        let behind = if text.is_some() { targets.text.size3()?.1 } else { 0 };
        let positions = condition.size4()?.2 - behind;
        let mut total: Option<Tensor> = None;
        let mut gradients: Vec<Tensor> = Vec::new();
        let mut start = 0;
        while start < draws {
            let (count, width) = room.pass(most, batch, draws - start);
            let part =
                if shared { condition.shallow_clone() } else { condition.f_narrow(1, start, count)? };
            let part = part.f_narrow(2, 0, positions)?; // what is learned: (B, n | 1, S, C)
            let weights = &draw_weights[start as usize..(start + count) as usize];
            let batch = Batch { targets, start, weights, samples, text: text.as_ref() };
            let (loss, gradient) = match self.in_widths(&part, &batch, width, learns) {
                // Nothing has changed but what is known of the memory: the same draws again, fewer images at a time.
                Err(err) if err.is_out_of_memory() && room.shrink(count * width) => continue,
                other => other?,
            };
            gradients.extend(gradient);
            total = Some(match total {
                Some(sum) => sum.f_add(&loss)?,
                None => loss,
            });
            start += count;
        }
        let total =
            total.ok_or_else(|| DivaError::config("feedback", "no draws: `draws` must be at least 1"))?;
        let gradient = if !learns {
            condition.f_zeros_like()?
        } else if shared {
            Tensor::f_stack(&gradients, 0)?.f_sum_dim_intlist(0, false, condition.kind())?
        } else {
            Tensor::f_cat(&gradients, 1)?
        };
        if behind == 0 {
            return Ok((total, gradient));
        }
        Ok((total, gradient.f_constant_pad_nd([0, 0, 0, behind])?)) // the text learns nothing
    }

    /// The text behind the visual positions, read once for all draws, where the denoiser can do so.
    fn text(&self, targets: &Targets) -> Result<Option<KeysValues>> {
        if self.bridge.join != TextJoin::Concat {
            return Ok(None);
        }
        self.denoiser.read(&targets.text)
    }

    /// [`Self::taught`] of `width` samples at a time.
    fn in_widths(
        &self,
        condition: &Tensor,
        batch: &Batch,
        width: i64,
        learns: bool,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let samples = condition.size().first().copied().unwrap_or(0);
        let mut total: Option<Tensor> = None;
        let mut gradients: Vec<Tensor> = Vec::new(); // (width, n | 1, S, C) each
        for first in (0..samples).step_by(width as usize) {
            let length = width.min(samples - first);
            let targets = batch.targets.narrow(first, length)?;
            let text = batch.text.map(|text| text.narrow(first, length)).transpose()?;
            let leaf = condition.f_narrow(0, first, length)?.f_detach()?.f_set_requires_grad(learns)?;
            let part = Batch { targets: &targets, text: text.as_ref(), ..*batch };
            let (loss, gradient) = self.taught(&leaf, &part)?;
            gradients.extend(gradient);
            total = Some(match total {
                Some(sum) => sum.f_add(&loss)?,
                None => loss,
            });
        }
        let total = total.ok_or_else(|| DivaError::config("feedback", "the batch is empty"))?;
        let gradient = if gradients.is_empty() { None } else { Some(Tensor::f_cat(&gradients, 0)?) };
        Ok((total, gradient))
    }

    /// The loss of a batch of draws, and its gradient at their `condition` (B, n | 1, S, C) where that learns.
    fn taught(&self, condition: &Tensor, batch: &Batch) -> Result<(Tensor, Option<Tensor>)> {
        let noised = self.noised(batch)?;
        let mut shape = condition.size();
        if let Some(count) = shape.get_mut(1) {
            *count = batch.weights.len() as i64;
        }
        let wide = side_by_side(&condition.f_expand(&shape, false)?)?;
        let (noisy, timesteps) = (&noised.noisy, &noised.model_timesteps);
        let filled = self.denoiser.slots().fill(&wide)?;
        let query = Query { noisy, timesteps, condition: &filled, text: batch.text };
        if !condition.requires_grad() {
            let _no_grad = no_grad_guard();
            let prediction = self.denoiser.predict(&query)?;
            return Ok((self.loss_of(&prediction, &noised.target, batch)?, None));
        }
        let mut loss = None;
        let mut loss_gradient = |prediction: &Tensor| {
            let prediction = prediction.f_detach()?.f_set_requires_grad(true)?;
            let found = self.loss_of(&prediction, &noised.target, batch)?;
            let mut gradient = Tensor::f_run_backward(&[&found], &[&prediction], false, false)?;
            loss = Some(found.f_detach()?);
            Ok(gradient.swap_remove(0))
        };
        let detached = filled.detached()?;
        let recomputed =
            self.denoiser.gradient(&Query { condition: &detached, ..query }, &mut loss_gradient)?;
        if let (Some(gradients), Some(loss)) = (recomputed, loss) {
            return Ok((loss, Some(filled.pull(&gradients, condition)?)));
        }
        let prediction = self.denoiser.predict(&query)?;
        if !prediction.requires_grad() {
            return Err(DivaError::config(
                "feedback",
                "the denoiser's prediction does not depend on the condition: a model without conditioning has nothing to teach",
            ));
        }
        let loss = self.loss_of(&prediction, &noised.target, batch)?;
        let mut gradient = Tensor::f_run_backward(&[&loss], &[condition], false, false)?;
        Ok((loss.f_detach()?, Some(gradient.swap_remove(0))))
    }

    /// What a batch of draws denoises: n * B images, draw by draw.
    fn noised(&self, batch: &Batch) -> Result<Noised> {
        let (targets, draws) = (batch.targets, batch.weights.len() as i64);
        let mut wide = targets.latents.size();
        wide.insert(1, draws);
        let latents = side_by_side(&targets.latents.f_unsqueeze(1)?.f_expand(&wide, false)?)?;
        let noise = side_by_side(&targets.noise.f_narrow(1, batch.start, draws)?)?;
        self.schedule.add_noise(&latents, &noise, &batch.timesteps()?)
    }

    /// The loss (0-dim) of n * B predictions: weighted by draw, summed over the samples with weight 1 / `samples`.
    fn loss_of(&self, prediction: &Tensor, target: &Tensor, batch: &Batch) -> Result<Tensor> {
        let mut per_sample = self.objective.loss.per_sample(prediction, target)?;
        if let Some(gamma) = self.objective.min_snr {
            let weights = self.schedule.weights(&batch.timesteps()?, gamma, &per_sample)?;
            per_sample = per_sample.f_mul(&weights)?;
        }
        let each = per_sample.size1()? / batch.weights.len() as i64;
        let mut total: Option<Tensor> = None;
        for (draw, &weight) in (0..).zip(batch.weights) {
            let loss =
                per_sample.f_narrow(0, draw * each, each)?.f_sum(per_sample.kind())?.f_mul_scalar(weight)?;
            total = Some(match total {
                Some(sum) => sum.f_add(&loss)?,
                None => loss,
            });
        }
        let total =
            total.ok_or_else(|| DivaError::config("feedback", "no draws: `draws` must be at least 1"))?;
        Ok(total.f_mul_scalar(1.0 / batch.samples as f64)?)
    }
}

/// The draws that go through the denoiser together, from `start`, one of `weights` each.
struct Batch<'a> {
    targets: &'a Targets,
    start: i64,
    weights: &'a [f64],
    samples: i64,
    text: Option<&'a KeysValues>,
}

impl Batch<'_> {
    /// (n * B,)
    fn timesteps(&self) -> Result<Tensor> {
        side_by_side(&self.targets.timesteps.f_narrow(1, self.start, self.weights.len() as i64)?)
    }
}

/// (B, n, ...) -> (n * B, ...), draw by draw.
fn side_by_side(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.f_transpose(0, 1)?.f_flatten(0, 1)?)
}
