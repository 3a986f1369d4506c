//! Forward: gathers (or averages) the tokens behind each row and normalises them in one pass.

use crate::torch::Tensor;

use super::real::{add, rows_of, stats, Real};
use super::{Affine, Map};
use crate::condition::plan::Plan;
use crate::condition::Norm;
use crate::error::Result;
use crate::slices::{self, Output};
use crate::threads;

/// Rows for one task of the pool: enough work to be worth handing over.
const TASK: usize = 8;

pub(super) fn forward<T: Real>(
    plan: &Plan,
    tokens: &Tensor,
    choice: Option<&Tensor>,
    norm: Option<&Norm>,
) -> Result<Tensor> {
    let map = Map::new(plan, choice)?;
    let affine = norm.map(|norm| Affine::<T>::new(norm, map.width)).transpose()?;
    let source = slices::view::<T>(tokens)?;
    let mut hidden = Output::<T>::new(&[plan.batch * plan.gathered(), plan.width])?;
    let rows = hidden.values()?;
    threads::rows(rows, map.width, TASK, |at, row| {
        let (sample, stored) = (at / map.gathered, at % map.gathered);
        let (first, count) = map.source(sample, stored);
        let behind = rows_of(source, sample * map.tokens + first, count, map.width);
        write(row, behind, affine.as_ref());
    })?;
    Ok(hidden.into_tensor())
}

/// The mean of the normalised tokens `behind` a row; zeros when there is none.
fn write<T: Real>(row: &mut [T], behind: &[T], affine: Option<&Affine<T>>) {
    row.fill(T::default());
    let count = behind.len() / row.len();
    for token in behind.chunks_exact(row.len()) {
        match affine {
            None => add(row, token),
            Some(affine) => {
                let (mean, rstd) = stats(token, affine.eps);
                for (value, x) in row.iter_mut().zip(token) {
                    *value += (*x - mean) * rstd;
                }
            }
        }
    }
    if count > 1 {
        let share = T::of(1.0 / count as f64);
        row.iter_mut().for_each(|value| *value = *value * share);
    }
    if let Some(affine) = affine.filter(|_| count > 0) {
        for ((value, weight), bias) in row.iter_mut().zip(&affine.weight).zip(&affine.bias) {
            *value = *value * *weight + *bias;
        }
    }
}
