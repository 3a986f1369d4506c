//! The frozen denoiser: one prediction, and the gradients of its losses.

use std::sync::{Arc, Mutex};

use crate::torch::{no_grad_guard, Tensor};

use super::limit::MemoryLimit;
use super::losses::Losses;
use super::view::Pass;
use crate::denoiser::layers::stream_of;
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

/// Losses, and their gradients at the condition and at the denoiser's own parameters.
#[derive(Default)]
pub(super) struct Gradients {
    pub losses: Losses,
    pub condition: Vec<Tensor>, // (b, n | 1, S, C) each
    pub params: Vec<Option<Tensor>>,
}

/// The losses by name, and their sum with its graph. `None`: nothing depends on the predictions.
pub(super) type Graph = (Losses, Option<Tensor>);

/// The loss of each pass.
pub(super) trait PassLoss {
    /// Called before each pass; `whole`: it holds all draws of all samples.
    fn begin(&mut self, whole: bool) -> Result<()>;

    fn loss(&mut self, pass: Pass) -> Result<Graph>;
}

impl Teacher {
    /// The trained parameters of the denoiser.
    pub fn params(&self) -> Vec<Tensor> {
        let params = self.denoiser.params().into_iter().map(|(_, param)| param);
        params.filter(Tensor::requires_grad).collect()
    }

    /// Adds the losses of the predictions, and their gradients at `leaf`, from which the query's condition was made, and
    /// at `params`, to `sum`. `None`: the condition learns nothing.
    pub(super) fn differentiate(
        &self,
        query: &Query,
        leaf: Option<&Tensor>,
        params: &[Tensor],
        loss_of: &mut dyn FnMut(&Tensor) -> Result<Graph>,
        sum: &mut Gradients,
    ) -> Result<()> {
        if leaf.is_none() && params.is_empty() {
            let prediction = self.predict(query)?;
            return sum.losses.add_all(&loss_of(&prediction)?.0);
        }
        let mut losses = None;
        let mut loss_gradient = |prediction: &Tensor| {
            let prediction = prediction.f_detach()?.f_set_requires_grad(true)?;
            let (found, total) = loss_of(&prediction)?;
            losses = Some(found);
            gradient_of(total, &prediction)
        };
        let detached = query.condition.detached()?;
        let recomputed =
            self.denoiser.gradient(&Query { condition: &detached, ..*query }, &mut loss_gradient)?;
        if let (Some(gradients), Some(losses)) = (recomputed, losses) {
            let pulled = leaf.map(|leaf| query.condition.pull(&gradients.condition, leaf));
            sum.condition.extend(pulled.transpose()?);
            add(&mut sum.params, &gradients.params)?;
            return sum.losses.add_all(&losses);
        }
        let prediction = self.denoiser.predict(query)?;
        if !prediction.requires_grad() {
            return Err(unconditioned());
        }
        let (losses, total) = loss_of(&prediction)?;
        sum.losses.add_all(&losses)?;
        let Some(total) = total else { return Ok(()) };
        let inputs: Vec<&Tensor> = leaf.into_iter().chain(params).collect();
        let mut found = Tensor::f_run_backward(&[&total], &inputs, false, false)?.into_iter();
        if leaf.is_some() {
            sum.condition.push(found.next().filter(Tensor::defined).ok_or_else(unconditioned)?);
        }
        let found: Vec<_> = found.map(|gradient| Some(gradient).filter(Tensor::defined)).collect();
        add(&mut sum.params, &found)
    }

    /// The predictions outside any graph.
    pub(super) fn predict(&self, query: &Query) -> Result<Tensor> {
        let _no_grad = no_grad_guard();
        self.denoiser.predict(query)
    }
}

/// The gradient of a loss at the leaf `prediction`.
pub(super) fn gradient_of(total: Option<Tensor>, prediction: &Tensor) -> Result<Tensor> {
    Ok(match total {
        Some(total) => Tensor::f_run_backward(&[&total], &[prediction], false, false)?.swap_remove(0),
        None => prediction.f_zeros_like()?,
    })
}

pub(super) fn query<'a>(
    noised: &'a Noised,
    condition: &'a Condition,
    text: Option<&'a KeysValues>,
) -> Query<'a> {
    Query { noisy: &noised.noisy, timesteps: &noised.model_timesteps, condition, text }
}

/// Adds gradients of the same parameters. A sum is float32 or better, whatever its parts.
pub(super) fn add(sum: &mut Vec<Option<Tensor>>, gradients: &[Option<Tensor>]) -> Result<()> {
    sum.resize_with(gradients.len().max(sum.len()), || None);
    for (sum, gradient) in sum.iter_mut().zip(gradients) {
        let Some(gradient) = gradient else { continue };
        *sum = Some(match sum.take() {
            Some(sum) => sum.f_to_kind(stream_of(sum.f_kind()?))?.f_add(gradient)?,
            None => gradient.shallow_clone(),
        });
    }
    Ok(())
}

pub(super) fn unconditioned() -> DivaError {
    let what = "the denoiser's prediction does not depend on the condition: \
                a model without conditioning has nothing to teach";
    DivaError::config("feedback", what)
}
