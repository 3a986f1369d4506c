//! The passes over contiguous CPU memory in float32 and float64: one that gathers and normalises,
//! one that lays out the condition, and the mirror of each. Every output row is summed in an order
//! that the sizes alone fix, so the result does not depend on the number of threads.

mod layout;
mod real;
mod rows;
mod scatter;

use crate::torch::{Kind, Tensor};

use super::plan::Plan;
use super::{Norm, Recap, OP};
use crate::error::{DivaError, Result};
use crate::slices;
use real::Real;

/// Gradients of the tokens (B, 1+P, W) and of the norm's parameters where these exist.
pub(super) struct Back {
    pub tokens: Tensor,
    pub weight: Option<Tensor>,
    pub bias: Option<Tensor>,
}

/// Whether tokens of this kind of memory, computed in `kind`, can take these passes.
pub(super) fn takes(tokens: &Tensor, kind: Kind) -> bool {
    matches!(kind, Kind::Float | Kind::Double) && slices::is_viewable(tokens)
}

/// The rows (B*M, W) after the norm, M of them gathered for each sample.
pub(super) fn rows(
    plan: &Plan,
    tokens: &Tensor,
    choice: Option<&Tensor>,
    norm: Option<&Norm>,
) -> Result<Tensor> {
    match tokens.f_kind()? {
        Kind::Double => rows::forward::<f64>(plan, tokens, choice, norm),
        _ => rows::forward::<f32>(plan, tokens, choice, norm),
    }
}

/// The gradients of the tokens and of the norm, from the gradient of the rows (B*M, W).
pub(super) fn scatter(
    plan: &Plan,
    tokens: &Tensor,
    choice: Option<&Tensor>,
    norm: Option<&Norm>,
    grad: &Tensor,
) -> Result<Back> {
    match tokens.f_kind()? {
        Kind::Double => scatter::backward::<f64>(plan, tokens, choice, norm, grad),
        _ => scatter::backward::<f32>(plan, tokens, choice, norm, grad),
    }
}

/// The condition (B, N', S, C) from the projected rows (B*M, C).
pub(super) fn assemble(plan: &Plan, rows: &Tensor, text: &Tensor, choice: Option<&Tensor>) -> Result<Tensor> {
    match rows.f_kind()? {
        Kind::Double => layout::forward::<f64>(plan, rows, text, choice),
        _ => layout::forward::<f32>(plan, rows, text, choice),
    }
}

/// The gradient of the projected rows (B*M, C) from that of the condition.
pub(super) fn split(plan: &Plan, grad: &Tensor, choice: Option<&Tensor>) -> Result<Tensor> {
    match grad.f_kind()? {
        Kind::Double => layout::backward::<f64>(plan, grad, choice),
        _ => layout::backward::<f32>(plan, grad, choice),
    }
}

/// Sizes of a plan as this folder's loops use them, with the choice beside them.
struct Map<'a> {
    recap: Recap,
    /// 1 + P
    tokens: usize,
    /// W
    width: usize,
    /// Rows of a sample before the projector, and behind it
    gathered: usize,
    stored: usize,
    draws: usize,
    picked: usize,
    /// C
    channels: usize,
    /// S
    positions: usize,
    /// (B, N, k)
    choice: Option<&'a [i64]>,
}

impl<'a> Map<'a> {
    fn new(plan: &Plan, choice: Option<&'a Tensor>) -> Result<Self> {
        Ok(Map {
            recap: plan.recap,
            tokens: size(1 + plan.patches)?,
            width: size(plan.width)?,
            gathered: size(plan.gathered())?,
            stored: size(plan.stored())?,
            draws: size(plan.draws)?,
            picked: size(plan.picked)?,
            channels: size(plan.channels)?,
            positions: size(plan.positions())?,
            choice: choice.map(slices::view::<i64>).transpose()?,
        })
    }

    /// Token of the picked row `slot` (over all draws) of `sample`, or None for an empty slot.
    fn chosen(&self, sample: usize, slot: usize) -> Option<usize> {
        let patch = *self.choice?.get(sample * self.draws * self.picked + slot)?;
        usize::try_from(patch).ok().map(|patch| patch + 1).filter(|token| *token < self.tokens)
    }

    fn is_empty(&self, sample: usize, slot: usize) -> bool {
        self.choice.is_some() && self.chosen(sample, slot).is_none()
    }

    /// First token and number of tokens behind the stored row `row` of `sample`; no token for an
    /// empty slot.
    fn source(&self, sample: usize, row: usize) -> (usize, usize) {
        match (self.recap, row) {
            (_, 0) => (0, 1),
            (Recap::Random, _) => self.chosen(sample, row - 1).map_or((0, 0), |token| (token, 1)),
            (Recap::Windows(_), _) => (1 + (row - 1) * self.window(), self.window()),
            _ => (row, 1),
        }
    }

    fn window(&self) -> usize {
        match self.recap {
            Recap::Windows(window) => usize::try_from(window).unwrap_or(1).max(1),
            _ => 1,
        }
    }
}

/// Weight and bias of the norm as slices; an absent weight is 1 and an absent bias 0, which change
/// no bit.
struct Affine<T> {
    weight: Vec<T>,
    bias: Vec<T>,
    eps: T,
}

impl<T: Real> Affine<T> {
    fn new(norm: &Norm, width: usize) -> Result<Self> {
        let read = |param: &Option<Tensor>, absent: f64| -> Result<Vec<T>> {
            match param {
                Some(param) => Ok(slices::view::<T>(&param.f_detach()?.f_contiguous()?)?.to_vec()),
                None => Ok(vec![T::of(absent); width]),
            }
        };
        Ok(Affine { weight: read(&norm.weight, 1.0)?, bias: read(&norm.bias, 0.0)?, eps: T::of(norm.eps) })
    }
}

fn size(value: i64) -> Result<usize> {
    usize::try_from(value).map_err(|_| DivaError::config(OP, format!("a size of {value}")))
}
