//! `x_t` and the prediction target of a CPU batch in one pass: latents and noise are read
//! once, and no intermediate product is written to memory.

use std::ops::{Add, Mul, Sub};

use crate::torch::kind::Element;
use crate::torch::{Kind, Tensor};

use super::levels::Levels;
use super::Prediction;
use crate::error::Result;
use crate::slices::{self, Output};
use crate::threads;

/// Elements per task: large enough to hide the cost of a task, small enough to stay in the L2
/// cache.
const BLOCK: usize = 1 << 14;

trait Real: Element + Copy + Send + Sync + Mul<Output = Self> + Add<Output = Self> + Sub<Output = Self> {}
impl Real for f32 {}
impl Real for f64 {}

/// At most `BLOCK` elements of one sample. `target` is empty where the target is the noise or the
/// latents.
struct Task<'a, T> {
    signal: T,
    noise: T,
    x0: &'a [T],
    e: &'a [T],
    noisy: &'a mut [T],
    target: &'a mut [T],
}

/// True for a CPU tensor whose samples are contiguous each: also one draw of several, `noise[:,
/// n]`.
pub fn takes(tensor: &Tensor) -> bool {
    slices::is_viewable(tensor) || tensor.f_select(0, 0).is_ok_and(|sample| slices::is_viewable(&sample))
}

/// `(noisy, target)` for float32 or float64 tensors `(B, ..)` that `takes` accepts and checked
/// timesteps `(B,)`.
pub fn add_noise(
    prediction: Prediction,
    levels: &Levels,
    latents: &Tensor,
    noise: &Tensor,
    index: &Tensor,
) -> Result<(Tensor, Tensor)> {
    match latents.f_kind()? {
        Kind::Double => run::<f64>(prediction, levels, latents, noise, index),
        _ => run::<f32>(prediction, levels, latents, noise, index),
    }
}

fn run<T: Real>(
    prediction: Prediction,
    levels: &Levels,
    latents: &Tensor,
    noise: &Tensor,
    index: &Tensor,
) -> Result<(Tensor, Tensor)> {
    // The noise and the latents belong to the caller: only a target of its own is written.
    let own = matches!(prediction, Prediction::V | Prediction::Flow);
    let size = latents.size();
    let mut noisy = Output::<T>::new(&size)?;
    let mut target = Output::<T>::new(if own { &size } else { &[0] })?;
    let index = slices::view::<i64>(index)?;
    let (outputs, mut rest) = (noisy.values()?, target.values()?);
    let size = (outputs.len() / index.len().max(1)).max(1); // elements of one sample
    let (x0, e) = (Samples::of(latents)?, Samples::of(noise)?);
    let (signals, noises) = (slices::view::<T>(&levels.signal)?, slices::view::<T>(&levels.noise)?);
    let amplitudes = index.iter().filter_map(|&t| {
        let t = usize::try_from(t).ok()?; // within the table: the caller has checked
        Some((*signals.get(t)?, *noises.get(t)?))
    });
    let mut tasks = Vec::new();
    let samples = x0.slices(size)?.into_iter().zip(e.slices(size)?);
    for (((x0, e), noisy), (signal, noise)) in samples.zip(outputs.chunks_mut(size)).zip(amplitudes) {
        for ((x0, e), noisy) in x0.chunks(BLOCK).zip(e.chunks(BLOCK)).zip(noisy.chunks_mut(BLOCK)) {
            let (target, tail) = std::mem::take(&mut rest).split_at_mut(if own { x0.len() } else { 0 });
            rest = tail;
            tasks.push(Task { signal, noise, x0, e, noisy, target });
        }
    }
    match tasks.len() {
        1 => tasks.into_iter().for_each(|task| task.run(prediction)), // not worth waking a thread
        _ => threads::consume(tasks, |task| task.run(prediction))?,
    }
    let target = match prediction {
        Prediction::Epsilon => noise.f_detach()?,
        Prediction::Sample => latents.f_detach()?,
        Prediction::V | Prediction::Flow => target.into_tensor(),
    };
    Ok((noisy.into_tensor(), target))
}

/// The samples of a batch: all in one piece, or each in one of its own.
enum Samples<'a> {
    Whole(&'a Tensor),
    Apart(Vec<Tensor>),
}

impl<'a> Samples<'a> {
    fn of(batch: &'a Tensor) -> Result<Self> {
        if slices::is_viewable(batch) {
            return Ok(Samples::Whole(batch));
        }
        let count = batch.size().first().copied().unwrap_or(0);
        let rows = (0..count).map(|i| Ok(batch.f_select(0, i)?)).collect::<Result<Vec<_>>>()?;
        Ok(Samples::Apart(rows))
    }

    fn slices<T: Real>(&self, size: usize) -> Result<Vec<&[T]>> {
        match self {
            Samples::Whole(batch) => Ok(slices::view::<T>(batch)?.chunks(size).collect()),
            Samples::Apart(rows) => rows.iter().map(slices::view::<T>).collect(),
        }
    }
}

impl<T: Real> Task<'_, T> {
    /// Every product and sum is rounded on its own (Rust never contracts them), so the result is
    /// libtorch's.
    fn run(self, prediction: Prediction) {
        let (a, s) = (self.signal, self.noise);
        let pairs = self.x0.iter().zip(self.e);
        match prediction {
            Prediction::Epsilon | Prediction::Sample => {
                for ((&x0, &e), noisy) in pairs.zip(self.noisy) {
                    *noisy = a * x0 + s * e;
                }
            }
            Prediction::V => {
                for (((&x0, &e), noisy), target) in pairs.zip(self.noisy).zip(self.target) {
                    *noisy = a * x0 + s * e;
                    *target = a * e - s * x0;
                }
            }
            Prediction::Flow => {
                for (((&x0, &e), noisy), target) in pairs.zip(self.noisy).zip(self.target) {
                    *noisy = a * x0 + s * e;
                    *target = e - x0;
                }
            }
        }
    }
}
