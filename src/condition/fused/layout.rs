//! Visual rows and text into the condition in one pass, and the mirror: the gradient of each stored
//! row.

use crate::torch::Tensor;

use super::real::{add, rows_of, Real};
use super::{size, Map};
use crate::condition::plan::Plan;
use crate::condition::TextJoin;
use crate::error::Result;
use crate::slices::{self, Output};
use crate::threads;

/// Rows for one task of the pool.
const TASK: usize = 16;

pub(super) fn forward<T: Real>(
    plan: &Plan,
    rows: &Tensor,
    text: &Tensor,
    choice: Option<&Tensor>,
) -> Result<Tensor> {
    let map = Map::new(plan, choice)?;
    let text = prepare(plan, text)?;
    let text = Text::<T>::new(plan, &text)?;
    let (channels, picked) = (map.channels, map.picked);
    let broadcast = plan.join == TextJoin::Broadcast;
    let visual = slices::view::<T>(rows)?;
    let mut condition = Output::<T>::new(&plan.condition())?;
    let positions = condition.values()?;
    threads::rows(positions, channels, TASK, |at, row| {
        let (block, position) = (at / map.positions, at % map.positions);
        let (sample, draw) = (block / map.draws, block % map.draws);
        if position > picked && !broadcast {
            row.copy_from_slice(text.token(sample, position - 1 - picked));
            return;
        }
        match map.slot(draw, if broadcast { 0 } else { position }) {
            Some(slot) if map.is_empty(sample, slot) => row.fill(T::default()),
            slot => {
                let stored = sample * map.stored + slot.map_or(0, |slot| slot + 1);
                row.copy_from_slice(rows_of(visual, stored, 1, channels));
            }
        }
        match plan.join {
            TextJoin::Add | TextJoin::Broadcast => add(row, text.token(sample, position)),
            TextJoin::Mean => add(row, text.token(sample, 0)),
            TextJoin::Concat | TextJoin::None => {}
        }
    })?;
    Ok(condition.into_tensor())
}

pub(super) fn backward<T: Real>(plan: &Plan, grad: &Tensor, choice: Option<&Tensor>) -> Result<Tensor> {
    let map = Map::new(plan, choice)?;
    let (channels, per_sample) = (map.channels, map.draws * map.positions);
    let grad = slices::view::<T>(grad)?;
    let mut out = Output::<T>::new(&[plan.batch * plan.stored(), plan.channels])?;
    let rows = out.values()?;
    threads::rows(rows, channels, TASK, |at, row| {
        let (sample, stored) = (at / map.stored, at % map.stored);
        row.fill(T::default());
        let Some(slot) = stored.checked_sub(1) else {
            // The class token's row is shared by all draws, and by all positions of a broadcast.
            let step = if plan.join == TextJoin::Broadcast { 1 } else { map.positions };
            for at in (0..per_sample).step_by(step) {
                add(row, rows_of(grad, sample * per_sample + at, 1, channels));
            }
            return;
        };
        if !map.is_empty(sample, slot) {
            let (draw, position) = (slot / map.picked, 1 + slot % map.picked);
            add(row, rows_of(grad, sample * per_sample + draw * map.positions + position, 1, channels));
        }
    })?;
    Ok(out.into_tensor())
}

impl Map<'_> {
    /// Picked row (over all draws) at a visual position, or None for the class token's.
    fn slot(&self, draw: usize, position: usize) -> Option<usize> {
        position.checked_sub(1).map(|position| draw * self.picked + position)
    }
}

/// The text tokens that are added or appended: (1 or B, L, C), or (1 or B, 1, C) for their mean.
struct Text<'a, T> {
    values: &'a [T],
    tokens: usize,
    shared: bool,
    channels: usize,
}

impl<'a, T: Real> Text<'a, T> {
    fn new(plan: &Plan, text: &'a Tensor) -> Result<Self> {
        if plan.join == TextJoin::None {
            return Ok(Text { values: &[], tokens: 0, shared: true, channels: 0 });
        }
        let (batch, tokens, channels) = text.size3()?;
        Ok(Text {
            values: slices::view::<T>(text)?,
            tokens: size(tokens)?,
            shared: batch == 1,
            channels: size(channels)?,
        })
    }

    fn token(&self, sample: usize, token: usize) -> &[T] {
        let sample = if self.shared { 0 } else { sample };
        rows_of(self.values, sample * self.tokens + token, 1, self.channels)
    }
}

/// Contiguous, and already averaged where the mean is what joins.
fn prepare(plan: &Plan, text: &Tensor) -> Result<Tensor> {
    let text = match plan.join {
        TextJoin::Mean => text.f_mean_dim([1i64].as_slice(), true, text.f_kind()?)?,
        _ => text.shallow_clone(),
    };
    Ok(text.f_contiguous()?)
}
