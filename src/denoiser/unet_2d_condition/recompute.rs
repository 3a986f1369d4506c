//! Gradient checkpointing: the forward pass keeps each unit's input alone, and the backward pass runs one unit at a time
//! again, this time with its graph.

use crate::torch::{no_grad_guard, Tensor};

use super::blocks::Input;
use super::given::Given;
use super::UNet2DCondition;
use crate::denoiser::pull::{leaf, pull, sum};
use crate::denoiser::{Condition, LossGradient, Query};
use crate::error::Result;

impl UNet2DCondition {
    /// The gradient at the condition of the loss whose gradient at the prediction `loss_gradient` gives.
    pub(super) fn recomputed(&self, query: &Query, loss_gradient: LossGradient) -> Result<Condition> {
        let slot = self.slot(query.condition)?;
        let source = leaf(&self.here(slot)?)?;
        let entered = self.given(query, &source)?;
        // Where the condition enters through the time embedding, that is what the units carry a gradient back to.
        let through_time = entered.time.requires_grad();
        let time = entered.time.shallow_clone();
        let given = Given { time: if through_time { leaf(&time)? } else { time.shallow_clone() }, ..entered };

        let (last, mut inputs) = self.recorded(query.noisy, &given)?;
        let at_last = leaf(&last)?;
        let prediction = self.leave(&at_last)?;
        let at_prediction = loss_gradient(&query.home(&prediction.f_detach()?)?)?;
        let mut gradient = pull(&prediction, &at_prediction, &[&at_last])?.swap_remove(0);

        // Nothing before the first unit that the condition reaches has a gradient to carry.
        let first = self.units.iter().position(|unit| through_time || unit.attends()).unwrap_or(0);
        let mut at_residuals: Vec<Tensor> = Vec::new();
        let mut total = None;
        for (i, unit) in self.units.iter().enumerate().skip(first).rev() {
            let Some(input) = inputs.pop() else { break };
            if unit.leaves() {
                if let Some(more) = at_residuals.pop() {
                    gradient = gradient.f_add(&more)?;
                }
            }
            let input = Input {
                x: if i > first { leaf(&input.x)? } else { input.x },
                residual: input.residual.as_ref().map(leaf).transpose()?,
                size: input.size,
            };
            let read = if through_time {
                unit.reads_time().then_some(&given.time)
            } else {
                unit.attends().then_some(&given.condition)
            };
            let mut leaves = Vec::with_capacity(3);
            leaves.extend(read);
            leaves.extend((i > first).then_some(&input.x));
            leaves.extend(&input.residual);
            let mut gradients = pull(&unit.forward(&input, &given)?, &gradient, &leaves)?.into_iter();
            if read.is_some() {
                total = sum(total, gradients.next())?;
            }
            if i > first {
                gradient = gradients.next().unwrap_or(gradient);
            }
            at_residuals.extend(gradients.next());
        }
        let total = match total {
            Some(total) if through_time => pull(&time, &total, &[&source])?.swap_remove(0),
            Some(total) => total,
            None => source.f_zeros_like()?,
        };
        let total = total.f_to_other(slot, false, false)?;
        Ok(if through_time { Condition::of_pooled(total) } else { Condition::of_tokens(total) })
    }

    /// The output of the last unit, and the input of each, outside any graph.
    fn recorded(&self, noisy: &Tensor, given: &Given) -> Result<(Tensor, Vec<Input>)> {
        let _no_grad = no_grad_guard();
        let mut x = self.enter(noisy)?;
        let mut residuals = vec![x.shallow_clone()];
        let mut inputs = Vec::with_capacity(self.units.len());
        for unit in &self.units {
            let input = unit.input(x, &mut residuals)?;
            x = unit.forward(&input, given)?;
            if unit.leaves() {
                residuals.push(x.shallow_clone());
            }
            inputs.push(input);
        }
        Ok((x, inputs))
    }
}
