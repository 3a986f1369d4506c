//! What the teacher says about a batch of tokens: everything between the two cuts.
//!
//! tokens (a leaf) -> condition (a leaf) -> N denoising losses -> gradient at the condition -> gradient at the tokens.
//! The vision tower is on the far side of cut 1, so its cost does not depend on the number of draws N.

use std::cell::Cell;

use tch::{no_grad_guard, Kind, Tensor};

use crate::condition::{embed, Bridge, BridgeGrads, Recap, TextJoin};
use crate::denoiser::pull::pull;
use crate::error::{DivaError, Result};
use crate::schedule::{Noised, Schedule};

/// The teacher: a frozen diffusion model behind cut 2.
pub trait Denoiser: Send {
    /// Prediction (B, ...) for `noisy` (B, ...) at the model's own `timesteps` (B,) under `condition` (B, S, C),
    /// differentiable with respect to the condition.
    fn predict(&self, noisy: &Tensor, timesteps: &Tensor, condition: &Tensor) -> Result<Tensor>;

    /// What the model computes of text positions (1 | B, L, C) that are the same in every draw, outside any graph.
    /// `None`: nothing that could be computed apart from the rest of the condition.
    fn read(&self, _text: &Tensor) -> Result<Option<KeysValues>> {
        Ok(None)
    }

    /// [`Self::predict`] under `condition` with the positions of `text` behind it; `text` as `read` gave it.
    fn predict_with(
        &self,
        noisy: &Tensor,
        timesteps: &Tensor,
        condition: &Tensor,
        text: Option<&KeysValues>,
    ) -> Result<Tensor> {
        match text {
            None => self.predict(noisy, timesteps, condition),
            Some(_) => Err(DivaError::config("Denoiser", "this denoiser reads no text apart")),
        }
    }

    /// The gradient at `condition` of a scalar of the prediction, for denoisers that compute their blocks again in the
    /// backward pass instead of keeping every activation. `None`: autograd is to find it through `predict_with`.
    fn gradient(
        &self,
        _noisy: &Tensor,
        _timesteps: &Tensor,
        _condition: &Tensor,
        _text: Option<&KeysValues>,
        _judge: Judge,
    ) -> Result<Option<Tensor>> {
        Ok(None)
    }
}

/// The gradient of the scalar at the prediction.
pub type Judge<'a> = &'a mut dyn FnMut(&Tensor) -> Result<Tensor>;

/// Keys and values (1 | B, L, W) of a text, by cross-attention.
pub struct KeysValues(pub Vec<(Tensor, Tensor)>);

impl KeysValues {
    /// Those of the samples `start..start + length`, as views.
    fn narrow(&self, start: i64, length: i64) -> Result<KeysValues> {
        let part = |tensor: &Tensor| match tensor.size().first() {
            Some(&1) => Ok(tensor.shallow_clone()), // one text for all samples
            _ => tensor.f_narrow(0, start, length),
        };
        let parts = self.0.iter().map(|(keys, values)| Ok((part(keys)?, part(values)?)));
        Ok(KeysValues(parts.collect::<Result<_>>()?))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    Mse,
    L1,
}

impl Loss {
    /// One loss per sample, the mean over everything but the batch, in float32 or better: (B, ...) -> (B,).
    fn per_sample(self, prediction: &Tensor, target: &Tensor) -> Result<Tensor> {
        if prediction.size() != target.size() {
            let expected = format!("{:?} like the target", target.size());
            return Err(DivaError::shape("feedback", "prediction", prediction, expected));
        }
        let kind = if target.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let difference = prediction.f_to_kind(kind)?.f_sub(&target.f_to_kind(kind)?)?;
        let penalty = match self {
            Loss::Mse => difference.f_square()?,
            Loss::L1 => difference.f_abs()?,
        };
        Ok(penalty.f_flatten(1, -1)?.f_mean_dim(1, false, kind)?)
    }
}

/// How the losses of the draws and the anchor are weighed.
#[derive(Clone, Debug)]
pub struct Objective {
    pub loss: Loss,
    /// One weight per draw.
    pub draw_weights: Vec<f64>,
    /// Gamma of min-SNR weighting (arXiv 2303.09556), if any.
    pub min_snr: Option<f64>,
    /// Weight of `1 - cos(embedding, the original model's embedding)`.
    pub anchor: f64,
    /// The most images that the denoiser sees at a time, draws of an image counted singly; `None`: one draw at a time.
    pub denoiser_batch: Option<usize>,
    pub room: Room,
}

/// The most images that the denoiser's memory has room for at a time: unknown until more of them did not fit.
#[derive(Clone, Debug, Default)]
pub struct Room(Cell<Option<usize>>);

impl Room {
    pub fn limit(&self) -> Option<usize> {
        self.0.get()
    }

    /// How many of the `draws` that are left, of how many of the `batch` samples, go through the denoiser together.
    fn pass(&self, most: Option<usize>, batch: i64, draws: i64) -> (i64, i64) {
        let wanted = most.map_or(1, |most| most as i64 / batch).clamp(1, draws);
        match self.limit().map(|limit| limit as i64) {
            Some(limit) if limit < batch => (1, limit),
            Some(limit) => (wanted.min(limit / batch), batch),
            None => (wanted, batch),
        }
    }

    /// Halves the number that did not fit; false where that was one image.
    fn shrink(&self, images: i64) -> bool {
        if images > 1 {
            self.0.set(Some(images as usize / 2));
        }
        images > 1
    }
}

/// What a batch of B samples is denoised from, N draws each.
pub struct Targets {
    pub latents: Tensor,        // (B, ...)
    pub noise: Tensor,          // (B, N, ...)
    pub timesteps: Tensor,      // (B, N) int64
    pub choice: Option<Tensor>, // (B, N, k) int64
    pub text: Tensor,           // (1 | B, L, C)
}

impl Targets {
    fn check(&self, tokens: &Tensor, draws: usize) -> Result<()> {
        let op = "feedback";
        let batch = tokens.size().first().copied().unwrap_or(0);
        let draws = draws as i64;
        if self.latents.dim() < 2 || self.latents.size()[0] != batch {
            return Err(DivaError::shape(
                op,
                "latents",
                &self.latents,
                format!("({batch}, ...) like the tokens"),
            ));
        }
        if self.timesteps.size() != [batch, draws] {
            return Err(DivaError::shape(op, "timesteps", &self.timesteps, format!("[{batch}, {draws}]")));
        }
        let mut noise = vec![batch, draws];
        noise.extend(&self.latents.size()[1..]);
        if self.noise.size() != noise {
            return Err(DivaError::shape(
                op,
                "noise",
                &self.noise,
                format!("{noise:?}, (B, N, ...) for these latents"),
            ));
        }
        Ok(())
    }

    /// The samples `start..start + length`, as views.
    pub fn narrow(&self, start: i64, length: i64) -> Result<Targets> {
        let part = |tensor: &Tensor| tensor.f_narrow(0, start, length);
        Ok(Targets {
            latents: part(&self.latents)?,
            noise: part(&self.noise)?,
            timesteps: part(&self.timesteps)?,
            choice: self.choice.as_ref().map(part).transpose()?,
            text: if self.text.size().first() == Some(&1) {
                self.text.shallow_clone()
            } else {
                part(&self.text)?
            },
        })
    }
}

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

    /// The N denoising losses and their gradient at the condition (B, N', S, C), N' = N or 1: the second cut.
    fn denoise(&self, condition: &Tensor, targets: &Targets, samples: i64) -> Result<(Tensor, Tensor)> {
        let batch = targets.latents.size().first().map_or(1, |&batch| batch.max(1));
        let Objective { draw_weights, denoiser_batch, room, .. } = self.objective;
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
            let (count, width) = room.pass(*denoiser_batch, batch, draws - start);
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
        if !condition.requires_grad() {
            let _no_grad = no_grad_guard();
            let prediction = self.denoiser.predict_with(noisy, timesteps, &wide, batch.text)?;
            return Ok((self.loss_of(&prediction, &noised.target, batch)?, None));
        }
        let mut loss = None;
        let mut judge = |prediction: &Tensor| {
            let prediction = prediction.f_detach()?.f_set_requires_grad(true)?;
            let found = self.loss_of(&prediction, &noised.target, batch)?;
            let mut gradient = Tensor::f_run_backward(&[&found], &[&prediction], false, false)?;
            loss = Some(found.f_detach()?);
            Ok(gradient.swap_remove(0))
        };
        let detached = wide.f_detach()?;
        if let Some(gradient) = self.denoiser.gradient(noisy, timesteps, &detached, batch.text, &mut judge)? {
            let gradient = pull(&wide, &gradient, &[condition])?.swap_remove(0);
            let loss = loss.ok_or_else(|| DivaError::config("feedback", "the prediction was not judged"))?;
            return Ok((loss, Some(gradient)));
        }
        let prediction = self.denoiser.predict_with(noisy, timesteps, &wide, batch.text)?;
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

/// Adds the gradient of the anchor, `weight * sum(1 - cos(embedding, original))`, to the gradients at hand.
/// It keeps the pooled embedding near the untouched model's, where text can find it.
fn anchor(
    bridge: &Bridge,
    tokens: &Tensor,
    original: &Tensor,
    weight: f64,
    grads: &mut BridgeGrads,
) -> Result<Tensor> {
    let leaf = tokens.f_detach()?.f_set_requires_grad(true)?;
    let embedding = embed(&bridge.head, &leaf)?;
    if embedding.size() != original.size() {
        let expected = format!("{:?} like the embedding", embedding.size());
        return Err(DivaError::shape("anchor", "original", original, expected));
    }
    let similarity =
        Tensor::f_cosine_similarity(&embedding, &original.f_type_as(&embedding)?.f_detach()?, 1, 1e-8)?;
    let loss = similarity.f_rsub_scalar(1.0)?.f_sum(similarity.kind())?.f_mul_scalar(weight)?;
    let params = bridge.params();
    // Only the head's own parameters take part; a frozen one has no gradient to add.
    let heads: Vec<usize> = params
        .iter()
        .enumerate()
        .filter(|(_, (name, param))| !name.starts_with("projector") && param.requires_grad())
        .map(|(i, _)| i)
        .collect();
    let mut inputs = vec![&leaf];
    inputs.extend(heads.iter().map(|&i| params[i].1));
    let mut gradients = Tensor::f_run_backward(&[&loss], &inputs, false, false)?.into_iter();
    if let Some(gradient) = gradients.next() {
        grads.tokens = grads.tokens.f_add(&gradient)?;
    }
    for (&i, gradient) in heads.iter().zip(gradients) {
        if let Some(slot) = grads.params.get_mut(i) {
            *slot = slot.f_add(&gradient)?;
        }
    }
    loss.f_detach().map_err(Into::into)
}
