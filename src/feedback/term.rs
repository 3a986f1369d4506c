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
    /// The same, of predictions under the conditions of other images too.
    Row,
    /// Some samples: the loss is a sum over them, of tokens and embeddings alone.
    Sample,
    /// The whole batch at once, at any micro-batch size: the loss is its mean.
    Batch,
}

/// One summand of the objective.
pub trait Term: Send {
    /// The name of its loss in logs.
    fn name(&self) -> &str;

    fn scope(&self) -> Scope;

    /// The unweighted loss of a view (0-dim), differentiable in what it reads of the view.
    fn loss(&self, view: &View) -> Result<Tensor>;
}

/// A term and its weight; with 0 it takes no part.
pub struct Weighted {
    pub weight: f64,
    pub term: Box<dyn Term>,
}

/// Losses of some terms, and their gradients at what the terms read.
#[derive(Default)]
pub struct TermGrads {
    pub losses: Losses,
    pub tokens: Option<Tensor>, // (B | 2B, 1+P, W), those of augmented views last
    pub predictions: Option<Tensor>, // (B, N, ...)
    /// In the order of `Bridge::params`, where the head's come first.
    pub bridge: Vec<Option<Tensor>>,
    pub denoiser: Vec<Option<Tensor>>,
}

impl TermGrads {
    /// The share of the samples `start..start + length` of `of`: losses and gradients that belong to no sample go to
    /// the first.
    pub fn narrow(&self, of: i64, start: i64, length: i64) -> Result<TermGrads> {
        let rows = |tensor: &Option<Tensor>| tensor.as_ref().map(|t| part(t, of, start, length)).transpose();
        let mut share = TermGrads {
            tokens: rows(&self.tokens)?,
            predictions: rows(&self.predictions)?,
            ..TermGrads::default()
        };
        if start == 0 {
            let all = |gradients: &[Option<Tensor>]| {
                gradients.iter().map(|gradient| gradient.as_ref().map(Tensor::shallow_clone)).collect()
            };
            share.losses.add_all(&self.losses)?;
            (share.bridge, share.denoiser) = (all(&self.bridge), all(&self.denoiser));
        }
        Ok(share)
    }
}

/// The rows `start..start + length` of `samples`, and of their augmented views where those follow.
pub fn part(tensor: &Tensor, samples: i64, start: i64, length: i64) -> Result<Tensor> {
    let own = tensor.f_narrow(0, start, length)?;
    if tensor.size().first() == Some(&samples) {
        return Ok(own);
    }
    Ok(Tensor::f_cat(&[own, tensor.f_narrow(0, samples + start, length)?], 0)?)
}

/// The weighted losses of `terms`, by name, and their sum with its graph. A term that sums over samples or draws counts
/// 1 / `samples`.
pub(super) fn losses<'a>(
    terms: impl Iterator<Item = &'a Weighted>,
    view: &View,
    samples: i64,
) -> Result<(Losses, Option<Tensor>)> {
    let mut named = Losses::default();
    let mut weighted = Vec::new();
    for Weighted { weight, term } in terms {
        let loss = term.loss(view)?;
        if loss.dim() != 0 {
            return Err(DivaError::shape("loss", term.name(), &loss, "() for a term of the loss"));
        }
        let factor = match term.scope() {
            Scope::Batch => *weight,
            Scope::Draw | Scope::Row | Scope::Sample => weight / samples as f64,
        };
        let loss = loss.f_mul_scalar(factor)?;
        named.add(term.name(), &loss.f_detach()?)?;
        weighted.push(loss);
    }
    Ok((named, sum(&weighted)?))
}

/// The losses of `terms` and their gradients at the tokens and predictions of `view`, and at the parameters of `head`.
pub(super) fn evaluate<'a>(
    terms: impl Iterator<Item = &'a Weighted>,
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
        bridge: params.iter().map(|param| next(param.requires_grad())).collect(),
        denoiser: Vec::new(),
    })
}
