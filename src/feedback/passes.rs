//! The second cut: N draws per image through the denoiser, in as many passes as memory allows.

use crate::torch::Tensor;

use super::limit::enough;
use super::losses::Losses;
use super::targets::Targets;
use super::teacher::{add, query, Gradients, PassLoss, Teacher};
use super::view::{by_draw, by_sample, Pass};
use crate::condition::{Bridge, Recap, TextJoin};
use crate::denoiser::{Condition, Denoiser, KeysValues};
use crate::error::Result;
use crate::schedule::Noised;

/// What conditions the draws of a batch.
pub(super) struct Conditioned<'a> {
    pub targets: &'a Targets,
    /// (B, N | 1, S, C): one for each draw, or one for all.
    pub positions: Tensor,
    /// Behind the positions, read once for all draws.
    pub text: Option<KeysValues>,
    text_length: i64,
    /// Whether the draws share one condition, to which each adds its own noise.
    shared: bool,
    /// Whether the positions come from the student.
    pub learns: bool,
}

/// The samples and draws that go through the denoiser together.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub first: i64,
    pub samples: i64,
    pub start: i64,
    pub draws: i64,
}

impl Teacher {
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
        let (_, draws, length, _) = condition.size4()?;
        let mut positions = condition.f_narrow(2, 0, length - text_length)?;
        if let Some(noise) = &targets.pooled {
            positions = positions.f_add(&noise.f_unsqueeze(2)?)?; // the mean of the positions gets it once
        }
        let shared = draws == 1 && targets.pooled.is_some();
        Ok(Conditioned { targets, positions, text, text_length, shared, learns })
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
        Ok((all.losses, given.whole(gradient)?, all.params))
    }

    /// The predictions (B, N, ...) outside any graph.
    pub(super) fn predictions(&self, given: &Conditioned) -> Result<Tensor> {
        let mut passes = Vec::new();
        self.in_passes(given.targets, &mut |parts, _| {
            let mut rows = Vec::new();
            for &part in parts {
                let noised = self.noised(given.targets, part)?;
                let (_, filled) = self.condition_of(given, part)?;
                let text =
                    given.text.as_ref().map(|text| text.narrow(part.first, part.samples)).transpose()?;
                let prediction = self.predict(&query(&noised, &filled, text.as_ref()))?;
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
                others: None,
                target: noised.target.shallow_clone(),
                timesteps: timesteps.shallow_clone(),
            };
            loss.loss(pass)
        };
        let (leaf, filled) = self.condition_of(given, part)?;
        let text = given.text.as_ref().map(|text| text.narrow(part.first, part.samples)).transpose()?;
        let query = query(&noised, &filled, text.as_ref());
        self.differentiate(&query, given.learns.then_some(&leaf), params, &mut loss_of, sum)
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
    pub(super) fn noised(&self, targets: &Targets, part: Part) -> Result<Noised> {
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

impl Conditioned<'_> {
    /// The gradient at the whole condition, given that at the positions: the text learns nothing.
    pub(super) fn whole(&self, positions: Tensor) -> Result<Tensor> {
        let positions = match self.shared {
            true => positions.f_sum_dim_intlist(1, true, positions.kind())?,
            false => positions,
        };
        Ok(match self.text_length {
            0 => positions,
            length => positions.f_constant_pad_nd([0, 0, 0, length])?,
        })
    }
}

impl Part {
    /// The samples and draws of this part, of a tensor (B, N, ...).
    pub(super) fn of(self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.f_narrow(0, self.first, self.samples)?.f_narrow(1, self.start, self.draws)?)
    }
}
