//! Rows: each noisy latent under its own condition, that of the image's augmented view and those of other images.
//!
//! B images with all others as negatives are B rows of B + 1 predictions, and the rows do not depend on each other: at no
//! time are there more predictions than one row has, or than fill the machine. Where the graph of a row does not fit into
//! memory, its predictions are computed first, outside any graph; then the loss and its gradient at them; then each
//! prediction again, with the product of that gradient and its Jacobian.

use crate::torch::Tensor;

use super::limit::enough;
use super::losses::Losses;
use super::passes::{Conditioned, Part};
use super::teacher::{add, gradient_of, query, unconditioned, Gradients, PassLoss, Teacher};
use super::view::{by_draw, Pass};
use crate::denoiser::{Condition, Denoiser, KeysValues};
use crate::error::Result;
use crate::schedule::Noised;

/// For one draw, the conditions of each row: places in the batch, where augmented views follow the images.
pub(super) type RowsOf<'a> = &'a dyn Fn(i64) -> Result<Vec<Vec<i64>>>;

impl Teacher {
    /// The losses of all rows, and their gradients at the condition (2B, N | 1, S, C) and at the denoiser's parameters.
    pub(super) fn rows(
        &self,
        given: &Conditioned,
        rows_of: RowsOf,
        loss: &mut dyn PassLoss,
    ) -> Result<(Losses, Tensor, Vec<Option<Tensor>>)> {
        if !given.learns {
            return Err(unconditioned());
        }
        let (samples, draws) = given.targets.sizes()?;
        let params = self.params();
        let mut all = Gradients::default();
        let at_condition = given.positions.f_zeros_like()?;
        for draw in 0..draws {
            let rows = rows_of(draw)?;
            let mut first = 0;
            while first < samples {
                let left = &rows[first as usize..];
                let each = left[0].len();
                let most = self.batch.unwrap_or_else(|| enough(&given.targets.latents).max(each));
                let most = self.limit.limit().map_or(most, |limit| most.min(limit)).max(1);
                let alike = left.iter().take_while(|row| row.len() == each).count();
                let count = (most / each).clamp(1, alike);
                let places = left[..count].concat();
                let part = Part { first, samples: count as i64, start: draw, draws: 1 };
                let width = most.min(places.len()) as i64;
                let mut pass = Gradients::default();
                match self.row_pass(given, part, &places, width, &params, loss, &mut pass) {
                    Err(err) if err.is_out_of_memory() && self.limit.shrink(width) => continue,
                    done => done?,
                }
                all.losses.add_all(&pass.losses)?;
                add(&mut all.params, &pass.params)?;
                let found = Tensor::f_cat(&pass.condition, 0)?;
                for (from, &place) in (0..).zip(&places) {
                    let mut sum = condition_at(&at_condition, place, draw)?;
                    let _ = sum.f_add_(&found.f_narrow(0, from, 1)?)?;
                }
                first += count as i64;
            }
        }
        Ok((all.losses, given.whole(at_condition)?, all.params))
    }

    /// Adds the losses and gradients of the rows of `part` to `sum`, `width` predictions at a time.
    #[allow(clippy::too_many_arguments)]
    fn row_pass(
        &self,
        given: &Conditioned,
        part: Part,
        places: &[i64],
        width: i64,
        params: &[Tensor],
        loss: &mut dyn PassLoss,
        sum: &mut Gradients,
    ) -> Result<()> {
        let (all, each) = (places.len() as i64, places.len() as i64 / part.samples);
        let noised = self.noised(given.targets, part)?;
        let timesteps = by_draw(&part.of(&given.targets.timesteps)?)?;
        let mut loss_of = |predictions: &Tensor| {
            let mut size = predictions.size();
            size.splice(..1, [part.samples, each]);
            let rows = predictions.f_view(size.as_slice())?;
            loss.loss(Pass {
                samples: (part.first, part.samples),
                start: part.start,
                draws: 1,
                prediction: rows.f_select(1, 0)?,
                others: Some(rows.f_narrow(1, 1, each - 1)?),
                target: noised.target.shallow_clone(),
                timesteps: timesteps.shallow_clone(),
            })
        };
        let repeated = repeated(&noised, each)?;
        if width >= all {
            let asked = Asked::new(self, given, places, part.start)?;
            let query = query(&repeated, &asked.condition, asked.text.as_ref());
            return self.differentiate(&query, Some(&asked.leaf), params, &mut loss_of, sum);
        }
        let chunks = || (0..all).step_by(width as usize).map(|start| (start, width.min(all - start)));
        let chunk = |start: i64, length: i64| -> Result<(Noised, Asked)> {
            let places = &places[start as usize..(start + length) as usize];
            Ok((narrow(&repeated, start, length)?, Asked::new(self, given, places, part.start)?))
        };
        let mut predictions = Vec::new();
        for (start, length) in chunks() {
            let (noised, asked) = chunk(start, length)?;
            predictions.push(self.predict(&query(&noised, &asked.condition, asked.text.as_ref()))?);
        }
        let predictions = Tensor::f_cat(&predictions, 0)?.f_set_requires_grad(true)?;
        let (losses, total) = loss_of(&predictions)?;
        sum.losses.add_all(&losses)?;
        let gradient = gradient_of(total, &predictions)?;
        for (start, length) in chunks() {
            let (noised, asked) = chunk(start, length)?;
            let gradient = gradient.f_narrow(0, start, length)?;
            // The gradient of sum(prediction * gradient) is the given one, exactly.
            let mut product = |prediction: &Tensor| {
                let product = prediction.f_mul(&gradient)?;
                Ok((Losses::default(), Some(product.f_sum(product.kind())?)))
            };
            let query = query(&noised, &asked.condition, asked.text.as_ref());
            self.differentiate(&query, Some(&asked.leaf), params, &mut product, sum)?;
        }
        Ok(())
    }
}

/// The conditions of some predictions of one draw.
struct Asked {
    leaf: Tensor, // (n, S, C)
    condition: Condition,
    text: Option<KeysValues>,
}

impl Asked {
    fn new(teacher: &Teacher, given: &Conditioned, places: &[i64], draw: i64) -> Result<Self> {
        let rows: Result<Vec<_>> =
            places.iter().map(|&place| condition_at(&given.positions, place, draw)).collect();
        let leaf = Tensor::f_cat(&rows?, 0)?.f_detach()?.f_set_requires_grad(true)?;
        let condition = teacher.denoiser.slots().fill(&leaf)?;
        let text = given.text.as_ref().map(|text| text.at(places)).transpose()?;
        Ok(Asked { leaf, condition, text })
    }
}

/// The condition (1, S, C) of one place in one draw, as a view.
fn condition_at(conditions: &Tensor, place: i64, draw: i64) -> Result<Tensor> {
    let draw = if conditions.size4()?.1 == 1 { 0 } else { draw };
    Ok(conditions.f_narrow(0, place, 1)?.f_select(1, draw)?)
}

/// Each image `each` times.
fn repeated(noised: &Noised, each: i64) -> Result<Noised> {
    map(noised, |tensor| {
        let mut size = tensor.size();
        size.insert(1, each);
        Ok(tensor.f_unsqueeze(1)?.f_expand(&size, false)?.f_flatten(0, 1)?)
    })
}

fn narrow(noised: &Noised, start: i64, length: i64) -> Result<Noised> {
    map(noised, |tensor| Ok(tensor.f_narrow(0, start, length)?))
}

fn map(noised: &Noised, change: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Noised> {
    Ok(Noised {
        noisy: change(&noised.noisy)?,
        target: change(&noised.target)?,
        model_timesteps: change(&noised.model_timesteps)?,
    })
}
