//! Backward of `rows`, written from the tokens' side: each token adds up the gradients of the rows
//! that it is behind, then passes them through its LayerNorm once. Every token is written by one
//! task, so duplicates and several draws cannot race, and tokens without a row get their zeros in
//! the same pass.

use std::ops::Range;

use crate::torch::Tensor;

use super::real::{add, rows_of, stats, sum, sum_pairs, Real};
use super::{Affine, Back, Map};
use crate::condition::plan::Plan;
use crate::condition::{Norm, Recap};
use crate::error::Result;
use crate::slices::{self, Output};
use crate::threads;

/// Tokens of one task, and of one partial sum of the norm's gradients: fixed, so that the order of
/// the sums is.
const TASK: usize = 32;

pub(super) fn backward<T: Real>(
    plan: &Plan,
    tokens: &Tensor,
    choice: Option<&Tensor>,
    norm: Option<&Norm>,
    grad: &Tensor,
) -> Result<Back> {
    let map = Map::new(plan, choice)?;
    let width = map.width;
    let affine = norm.map(|norm| Affine::<T>::new(norm, width)).transpose()?;
    let source = slices::view::<T>(tokens)?;
    let grad = grad.f_contiguous()?;
    let grad = slices::view::<T>(&grad)?;
    let mut out = Output::<T>::new(&tokens.size())?;
    let d_tokens = out.values()?;
    let batch = d_tokens.len() / (map.tokens * width);
    let Some(affine) = affine else {
        let rows = Rows::new(&map, batch)?;
        threads::rows(d_tokens, width, TASK, |at, row| {
            gather(&map, &rows, at, grad, row);
        })?;
        return Ok(Back { tokens: out.into_tensor(), weight: None, bias: None });
    };
    let tasks = d_tokens.len().div_ceil(TASK * width);
    let mut partials = vec![T::default(); tasks * 2 * width];
    let mut sums = Output::<T>::new(&[2, plan.width])?;
    let totals = sums.values()?;
    let rows = Rows::new(&map, batch)?;
    let outputs = d_tokens.chunks_mut(TASK * width).zip(partials.chunks_mut(2 * width));
    threads::consume(
        outputs.enumerate().collect(),
        |(task, (out, partial)): (usize, (&mut [T], &mut [T]))| {
            let (weight, bias) = partial.split_at_mut(width);
            for (at, row) in (task * TASK..).zip(out.chunks_exact_mut(width)) {
                if gather(&map, &rows, at, grad, row) {
                    through_norm(row, rows_of(source, at, 1, width), &affine, weight, bias);
                }
            }
        },
    )?;
    threads::rows(totals, TASK, 1, |block, totals| {
        totals.fill(T::default());
        for partial in partials.chunks_exact(2 * width) {
            add(totals, partial.get(block * TASK..).unwrap_or_default());
        }
    })?;
    let sums = sums.into_tensor();
    let norm = norm.map(|norm| (norm.weight.is_some(), norm.bias.is_some())).unwrap_or_default();
    Ok(Back {
        tokens: out.into_tensor(),
        weight: norm.0.then(|| sums.f_get(0)).transpose()?,
        bias: norm.1.then(|| sums.f_get(1)).transpose()?,
    })
}

/// The sum of the gradients of all rows that token `at` (over the batch) is behind. False when
/// there is none.
fn gather<T: Real>(map: &Map, rows: &Rows, at: usize, grad: &[T], out: &mut [T]) -> bool {
    let (sample, token) = (at / map.tokens, at % map.tokens);
    out.fill(T::default());
    let mut any = false;
    let mut take = |row: usize| {
        add(out, rows_of(grad, sample * map.gathered + row, 1, map.width));
        any = true;
    };
    match map.recap {
        Recap::Random => rows.of(sample, token).iter().for_each(|row| take(*row)),
        _ => rows_behind(map, token).for_each(take),
    }
    let window = map.window();
    if any && token > 0 && window > 1 {
        let share = T::of(1.0 / window as f64);
        out.iter_mut().for_each(|value| *value = *value * share);
    }
    any
}

/// The row that a token is behind, for every recap but the random one.
fn rows_behind(map: &Map, token: usize) -> Range<usize> {
    if token == 0 {
        return 0..1;
    }
    let row = 1 + (token - 1) / map.window();
    if row < map.gathered {
        row..row + 1
    } else {
        0..0
    }
}

/// LayerNorm's backward in place: `row` holds the gradient of the output, then that of the input
/// `x`. Adds the token's part to the gradients of weight and bias.
fn through_norm<T: Real>(row: &mut [T], x: &[T], affine: &Affine<T>, d_weight: &mut [T], d_bias: &mut [T]) {
    let (mean, rstd) = stats(x, affine.eps);
    let norm_grads = d_weight.iter_mut().zip(d_bias.iter_mut());
    for ((grad, x), (d_weight, d_bias)) in row.iter().zip(x).zip(norm_grads) {
        *d_weight += *grad * ((*x - mean) * rstd);
        *d_bias += *grad;
    }
    for (grad, weight) in row.iter_mut().zip(&affine.weight) {
        *grad = *grad * *weight;
    }
    let share = T::of(1.0 / row.len() as f64);
    let level = sum(row, |grad| grad) * share;
    let along = sum_pairs(row, x, |grad, x| grad * ((x - mean) * rstd)) * share;
    for (grad, x) in row.iter_mut().zip(x) {
        *grad = rstd * (*grad - level - (*x - mean) * rstd * along);
    }
}

/// A sample with its bounds and its sorted rows.
type Sample<'a> = (usize, (&'a mut [usize], &'a mut [usize]));

/// The rows of each token under the random recap, in ascending order: one counting sort per sample.
struct Rows {
    tokens: usize,
    gathered: usize,
    /// (B, 1+P + 1): where the rows of a token start and end among its sample's.
    bounds: Vec<usize>,
    /// (B, M)
    sorted: Vec<usize>,
}

impl Rows {
    fn new(map: &Map, batch: usize) -> Result<Self> {
        let (tokens, gathered) = (map.tokens, map.gathered);
        let mut rows = Rows { tokens, gathered, bounds: Vec::new(), sorted: Vec::new() };
        if map.recap != Recap::Random {
            return Ok(rows);
        }
        rows.bounds.resize(batch * (tokens + 1), 0);
        rows.sorted.resize(batch * gathered, 0);
        let samples = rows.bounds.chunks_mut(tokens + 1).zip(rows.sorted.chunks_mut(gathered));
        threads::consume(samples.enumerate().collect(), |(sample, (bounds, sorted)): Sample| {
            let behind = |row: usize| Some(map.source(sample, row)).filter(|(_, count)| *count == 1);
            for (token, _) in (0..gathered).filter_map(behind) {
                if let Some(count) = bounds.get_mut(token + 1) {
                    *count += 1;
                }
            }
            let mut total = 0;
            for bound in bounds.iter_mut() {
                total += *bound;
                *bound = total;
            }
            let mut next = bounds.to_vec();
            for row in 0..gathered {
                let Some(at) = behind(row).and_then(|(token, _)| next.get_mut(token)) else { continue };
                if let Some(slot) = sorted.get_mut(*at) {
                    *slot = row;
                }
                *at += 1;
            }
        })?;
        Ok(rows)
    }

    fn of(&self, sample: usize, token: usize) -> &[usize] {
        let at = sample * (self.tokens + 1) + token;
        let (Some(start), Some(end)) = (self.bounds.get(at), self.bounds.get(at + 1)) else { return &[] };
        let base = sample * self.gathered;
        self.sorted.get(base + start..base + end).unwrap_or_default()
    }
}
