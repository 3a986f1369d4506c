//! Terms: what is minimised, each by its name.

use crate::torch::Tensor;

use super::losses::{sum, Losses};
use super::view::View;
use crate::condition::Head;
use crate::error::{DivaError, Result};

/// What one evaluation of a term sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Some draws of some samples: the loss is a sum over them, of predictions alone.
    Draw,
    /// Some samples: the loss is a sum over them, of tokens and embeddings alone.
    Sample,
    /// The whole batch at once, at any micro-batch size: the loss is its mean.
    Batch,
}

/// One summand of the objective.
pub trait Term: Send {
    /// The name of its loss in logs.
    fn name(&self) -> &str;

    fn weight(&self) -> f64;

    fn scope(&self) -> Scope;

    /// The unweighted loss of a view (0-dim), differentiable in what it reads of the view.
    fn loss(&self, view: &View) -> Result<Tensor>;
}

/// Losses of some terms, and their gradients at what the terms read.
#[derive(Default)]
pub struct TermGrads {
    pub losses: Losses,
    pub tokens: Option<Tensor>,      // (B, 1+P, W)
    pub predictions: Option<Tensor>, // (B, N, ...)
    /// In the order of `Head::params`.
    pub head: Vec<Option<Tensor>>,
}

impl TermGrads {
    /// The share of the samples `start..start + length`: losses and gradients that belong to no sample go to the first.
    pub fn narrow(&self, start: i64, length: i64) -> Result<TermGrads> {
        let rows =
            |tensor: &Option<Tensor>| tensor.as_ref().map(|t| t.f_narrow(0, start, length)).transpose();
        let mut part = TermGrads {
            tokens: rows(&self.tokens)?,
            predictions: rows(&self.predictions)?,
            ..TermGrads::default()
        };
        if start == 0 {
            part.losses.add_all(&self.losses)?;
            part.head = self.head.iter().map(|grad| grad.as_ref().map(Tensor::shallow_clone)).collect();
        }
        Ok(part)
    }
}

/// The weighted losses of `terms`, by name, and their sum with its graph. A term that sums over samples or draws counts
/// 1 / `samples`.
pub(super) fn losses<'a>(
    terms: impl Iterator<Item = &'a dyn Term>,
    view: &View,
    samples: i64,
) -> Result<(Losses, Option<Tensor>)> {
    let mut named = Losses::default();
    let mut weighted = Vec::new();
    for term in terms {
        let loss = term.loss(view)?;
        if loss.dim() != 0 {
            return Err(DivaError::shape("loss", term.name(), &loss, "() for a term of the loss"));
        }
        let factor = match term.scope() {
            Scope::Batch => term.weight(),
            Scope::Draw | Scope::Sample => term.weight() / samples as f64,
        };
        let loss = loss.f_mul_scalar(factor)?;
        named.add(term.name(), &loss.f_detach()?)?;
        weighted.push(loss);
    }
    Ok((named, sum(&weighted)?))
}

/// The losses of `terms` and their gradients at the tokens and predictions of `view`, and at the parameters of `head`.
pub(super) fn evaluate<'a>(
    terms: impl Iterator<Item = &'a dyn Term>,
    view: &View,
    head: &Head,
    samples: i64,
) -> Result<TermGrads> {
    let (losses, total) = losses(terms, view, samples)?;
    let Some(total) = total.filter(Tensor::requires_grad) else {
        return Ok(TermGrads { losses, ..TermGrads::default() });
    };
    let params: Vec<&Tensor> = head.params().into_iter().map(|(_, param)| param).collect();
    let leaves = [Some(view.tokens()?), view.predictions_read()];
    let trained = params.iter().copied().filter(|param| param.requires_grad());
    let inputs: Vec<&Tensor> = leaves.iter().flatten().chain(trained).collect();
    let found = Tensor::f_run_backward(&[&total], &inputs, false, false)?;
    let mut found = found.into_iter().map(|gradient| Some(gradient).filter(Tensor::defined));
    let mut next = |there: bool| if there { found.next().flatten() } else { None };
    Ok(TermGrads {
        losses,
        tokens: next(true),
        predictions: next(leaves[1].is_some()),
        head: params.iter().map(|param| next(param.requires_grad())).collect(),
    })
}
