//! The second cut: N draws per image through the denoiser, in as many passes as memory allows.

use std::sync::{Arc, Mutex};

use crate::torch::{no_grad_guard, Tensor};

use super::limit::{enough, MemoryLimit};
use super::losses::Losses;
use super::targets::Targets;
use super::view::{by_draw, by_sample, Pass};
use crate::condition::{Bridge, Recap, TextJoin};
use crate::denoiser::{Condition, Denoiser, KeysValues, Query};
use crate::error::{DivaError, Result};
use crate::schedule::{Noised, Schedule};

/// The denoiser, its noise schedule, and how many images it sees at a time. Clones share all of them.
#[derive(Clone)]
pub struct Teacher {
    pub denoiser: Arc<Mutex<dyn Denoiser>>,
    pub schedule: Arc<Schedule>,
    /// The most images at a time, draws of an image counted singly; `None`: as many as it takes to fill the machine, and
    /// at least one draw of the batch.
    pub batch: Option<usize>,
    pub limit: MemoryLimit,
}

/// What conditions the draws of a batch.
pub(super) struct Conditioned<'a> {
    targets: &'a Targets,
    /// (B, N | 1, S, C): one for each draw, or one for all.
    positions: Tensor,
    /// Behind the positions, read once for all draws.
    text: Option<KeysValues>,
    text_length: i64,
    /// Whether the positions come from the student.
    learns: bool,
}

/// The samples and draws that go through the denoiser together.
#[derive(Clone, Copy)]
struct Part {
    first: i64,
    samples: i64,
    start: i64,
    draws: i64,
}

/// Losses, and their gradients at the condition and at the denoiser's own parameters.
#[derive(Default)]
struct Gradients {
    losses: Losses,
    condition: Vec<Tensor>, // (b, n | 1, S, C) each
    params: Vec<Option<Tensor>>,
}

/// The loss of each pass.
pub(super) trait PassLoss {
    /// Called before each pass; `whole`: it holds all draws of all samples.
    fn begin(&mut self, whole: bool) -> Result<()>;

    /// The losses by name, and their sum with its graph. `None`: nothing depends on the predictions.
    fn loss(&mut self, pass: Pass) -> Result<(Losses, Option<Tensor>)>;
}

impl Teacher {
    /// The trained parameters of the denoiser.
    pub fn params(&self) -> Vec<Tensor> {
        let params = self.denoiser.params().into_iter().map(|(_, param)| param);
        params.filter(Tensor::requires_grad).collect()
    }

    /// A condition (B, N | 1, S, C) of `bridge`, taken apart into what learns and the text behind it.
    pub(super) fn conditioned<'a>(
        &self,
        bridge: &Bridge,
        condition: &Tensor,
        targets: &'a Targets,
    ) -> Result<Conditioned<'a>> {
        let learns = bridge.recap != Recap::Text;
        let text = match bridge.join {
            TextJoin::Concat if learns => self.denoiser.read(&targets.text)?,
            _ => None,
        };
        let text_length = if text.is_some() { targets.text.size3()?.1 } else { 0 };
        let positions = condition.f_narrow(2, 0, condition.size4()?.2 - text_length)?;
        Ok(Conditioned { targets, positions, text, text_length, learns })
    }

    /// The losses of all draws, and their gradients at the condition (B, N | 1, S, C) and at `params`.
    pub(super) fn gradients(
        &self,
        given: &Conditioned,
        loss: &mut dyn PassLoss,
    ) -> Result<(Losses, Tensor, Vec<Option<Tensor>>)> {
        let params = self.params();
        let mut all = Gradients::default();
        self.in_passes(given.targets, &mut |parts, whole| {
            loss.begin(whole)?;
            let mut pass = Gradients::default();
            for &part in parts {
                self.part(given, part, &params, loss, &mut pass)?;
            }
            // The whole pass has succeeded.
            all.losses.add_all(&pass.losses)?;
            add(&mut all.params, &pass.params)?;
            if !pass.condition.is_empty() {
                all.condition.push(Tensor::f_cat(&pass.condition, 0)?);
            }
            Ok(())
        })?;
        let gradient = if all.condition.is_empty() {
            given.positions.f_zeros_like()?
        } else if given.positions.size().get(1) == Some(&1) {
            Tensor::f_stack(&all.condition, 0)?.f_sum_dim_intlist(0, false, given.positions.kind())?
        } else {
            Tensor::f_cat(&all.condition, 1)?
        };
        let gradient = match given.text_length {
            0 => gradient,
            length => gradient.f_constant_pad_nd([0, 0, 0, length])?, // the text learns nothing
        };
        Ok((all.losses, gradient, all.params))
    }

    /// The predictions (B, N, ...) outside any graph.
    pub(super) fn predictions(&self, given: &Conditioned) -> Result<Tensor> {
        let _no_grad = no_grad_guard();
        let mut passes = Vec::new();
        self.in_passes(given.targets, &mut |parts, _| {
            let mut rows = Vec::new();
            for &part in parts {
                let noised = self.noised(given.targets, part)?;
                let (_, filled) = self.condition_of(given, part)?;
                let text =
                    given.text.as_ref().map(|text| text.narrow(part.first, part.samples)).transpose()?;
                let prediction = self.denoiser.predict(&query(&noised, &filled, text.as_ref()))?;
                rows.push(by_sample(&prediction, part.draws)?);
            }
            passes.push(Tensor::f_cat(&rows, 0)?);
            Ok(())
        })?;
        Ok(Tensor::f_cat(&passes, 1)?)
    }

    /// What the predictions are compared with (B, N, ...).
    pub(super) fn targets(&self, targets: &Targets) -> Result<Tensor> {
        let (samples, draws) = targets.sizes()?;
        let all = Part { first: 0, samples, start: 0, draws };
        by_sample(&self.noised(targets, all)?.target, draws)
    }

    /// Adds the losses and gradients of one part to `sum`.
    fn part(
        &self,
        given: &Conditioned,
        part: Part,
        params: &[Tensor],
        loss: &mut dyn PassLoss,
        sum: &mut Gradients,
    ) -> Result<()> {
        let noised = self.noised(given.targets, part)?;
        let timesteps = by_draw(&part.of(&given.targets.timesteps)?)?;
        let mut loss_of = |prediction: &Tensor| {
            let pass = Pass {
                samples: (part.first, part.samples),
                start: part.start,
                draws: part.draws,
                prediction: prediction.shallow_clone(),
                target: noised.target.shallow_clone(),
                timesteps: timesteps.shallow_clone(),
            };
            loss.loss(pass)
        };
        let (leaf, filled) = self.condition_of(given, part)?;
        let text = given.text.as_ref().map(|text| text.narrow(part.first, part.samples)).transpose()?;
        let query = query(&noised, &filled, text.as_ref());
        if !given.learns && params.is_empty() {
            let prediction = no_grad(|| self.denoiser.predict(&query))?;
            return sum.losses.add_all(&loss_of(&prediction)?.0);
        }
        let mut losses = None;
        let mut loss_gradient = |prediction: &Tensor| {
            let prediction = prediction.f_detach()?.f_set_requires_grad(true)?;
            let (found, total) = loss_of(&prediction)?;
            losses = Some(found);
            Ok(match total {
                Some(total) => {
                    Tensor::f_run_backward(&[&total], &[&prediction], false, false)?.swap_remove(0)
                }
                None => prediction.f_zeros_like()?,
            })
        };
        let detached = filled.detached()?;
        let recomputed =
            self.denoiser.gradient(&Query { condition: &detached, ..query }, &mut loss_gradient)?;
        if let (Some(gradients), Some(losses)) = (recomputed, losses) {
            if given.learns {
                sum.condition.push(filled.pull(&gradients.condition, &leaf)?);
            }
            add(&mut sum.params, &gradients.params)?;
            return sum.losses.add_all(&losses);
        }
        let prediction = self.denoiser.predict(&query)?;
        if !prediction.requires_grad() {
            return Err(unconditioned());
        }
        let (losses, total) = loss_of(&prediction)?;
        sum.losses.add_all(&losses)?;
        let Some(total) = total else { return Ok(()) };
        let inputs: Vec<&Tensor> = given.learns.then_some(&leaf).into_iter().chain(params).collect();
        let mut found = Tensor::f_run_backward(&[&total], &inputs, false, false)?.into_iter();
        if given.learns {
            sum.condition.push(found.next().filter(Tensor::defined).ok_or_else(unconditioned)?);
        }
        let found: Vec<_> = found.map(|gradient| Some(gradient).filter(Tensor::defined)).collect();
        add(&mut sum.params, &found)
    }

    /// The condition of a part as a leaf, and in the denoiser's slots, once for each draw.
    fn condition_of(&self, given: &Conditioned, part: Part) -> Result<(Tensor, Condition)> {
        let mut rows = given.positions.f_narrow(0, part.first, part.samples)?;
        if given.positions.size().get(1) != Some(&1) {
            rows = rows.f_narrow(1, part.start, part.draws)?;
        }
        let leaf = rows.f_detach()?.f_set_requires_grad(given.learns)?;
        let mut size = leaf.size();
        if let Some(count) = size.get_mut(1) {
            *count = part.draws;
        }
        let filled = self.denoiser.slots().fill(&by_draw(&leaf.f_expand(&size, false)?)?)?;
        Ok((leaf, filled))
    }

    /// What a part denoises: draws * samples images, draw by draw.
    fn noised(&self, targets: &Targets, part: Part) -> Result<Noised> {
        let latents = targets.latents.f_narrow(0, part.first, part.samples)?;
        let mut wide = latents.size();
        wide.insert(1, part.draws);
        let latents = by_draw(&latents.f_unsqueeze(1)?.f_expand(&wide, false)?)?;
        let (noise, timesteps) = (part.of(&targets.noise)?, part.of(&targets.timesteps)?);
        self.schedule.add_noise(&latents, &by_draw(&noise)?, &by_draw(&timesteps)?)
    }

    fn most(&self, targets: &Targets) -> usize {
        self.batch.unwrap_or_else(|| enough(&targets.latents))
    }

    /// Runs `work` over the parts of every pass; with fewer images at a time where a pass did not fit into memory.
    fn in_passes(&self, targets: &Targets, work: &mut dyn FnMut(&[Part], bool) -> Result<()>) -> Result<()> {
        let (batch, all) = targets.sizes()?;
        let mut start = 0;
        while start < all {
            let (draws, width) = self.limit.pass(self.most(targets), batch, all - start);
            let parts: Vec<Part> = (0..batch)
                .step_by(width as usize)
                .map(|first| Part { first, samples: width.min(batch - first), start, draws })
                .collect();
            match work(&parts, (draws, width) == (all, batch)) {
                // Nothing has changed but what is known of the memory: the same draws again, fewer images at a time.
                Err(err) if err.is_out_of_memory() && self.limit.shrink(draws * width) => continue,
                other => other?,
            }
            start += draws;
        }
        Ok(())
    }
}

impl Part {
    /// The samples and draws of this part, of a tensor (B, N, ...).
    fn of(self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.f_narrow(0, self.first, self.samples)?.f_narrow(1, self.start, self.draws)?)
    }
}

fn query<'a>(noised: &'a Noised, condition: &'a Condition, text: Option<&'a KeysValues>) -> Query<'a> {
    Query { noisy: &noised.noisy, timesteps: &noised.model_timesteps, condition, text }
}

/// Adds gradients of the same parameters.
pub(super) fn add(sum: &mut Vec<Option<Tensor>>, gradients: &[Option<Tensor>]) -> Result<()> {
    sum.resize_with(gradients.len().max(sum.len()), || None);
    for (sum, gradient) in sum.iter_mut().zip(gradients) {
        let Some(gradient) = gradient else { continue };
        *sum = Some(match sum.take() {
            Some(sum) => sum.f_add(gradient)?,
            None => gradient.shallow_clone(),
        });
    }
    Ok(())
}

fn no_grad<T>(work: impl FnOnce() -> T) -> T {
    let _no_grad = no_grad_guard();
    work()
}

fn unconditioned() -> DivaError {
    let what = "the denoiser's prediction does not depend on the condition: \
                a model without conditioning has nothing to teach";
    DivaError::config("feedback", what)
}
