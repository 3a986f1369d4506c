//! Attention on a CPU without a score in memory: forward, and backward by computing the
//! probabilities again (arXiv 2205.14135, 2307.08691). Scores, sums and gradients are float32.
//! Factors of products are bf16 where the processor multiplies these, as they are in libtorch's fused
//! kernels, and otherwise float32.

use std::marker::PhantomData;

use crate::torch::{Device, Kind, Tensor};

use super::compute_of;
use crate::autograd::{apply, Backward};
use crate::error::Result;
use crate::nn::stored::Stored;
use crate::simd::{self, Avx2, Avx512, Avx512Bf16, Lanes, Rows};
use crate::threads;

mod backward;
mod compiled; // both passes for each set of instructions
mod forward;

use backward::{Gradients, Seen};
use compiled::Compiled;
use forward::{Head, Place};

/// Queries that a thread takes at a time.
const QUERIES: usize = 192;
/// Keys whose gradients a thread finds at a time: more of them, and the heads of a large image are
/// too few to share out.
const KEYS: usize = 2048;

/// The instructions of a pass.
#[derive(Clone, Copy)]
pub enum Set {
    Bf16(Avx512Bf16),
    Wide(Avx512),
    Narrow(Avx2),
}

impl Set {
    /// For (B, L, heads * d) inputs; `None`: these are for libtorch.
    pub fn of(inputs: [&Tensor; 3], heads: i64) -> Result<Option<Set>> {
        let kind = inputs[0].f_kind()?;
        for input in inputs {
            if input.device() != Device::Cpu || input.f_kind()? != kind || input.numel() == 0 {
                return Ok(None);
            }
        }
        let [query, key, value] = [inputs[0].size3()?, inputs[1].size3()?, inputs[2].size3()?];
        let alike = (query.0, query.2) == (key.0, key.2) && key == value; // libtorch says what is wrong with others
        if !alike || query.2 % (2 * heads) != 0 {
            return Ok(None);
        }
        Ok(match (kind, compute_of(inputs[0])?) {
            // libtorch's products use tiles of bf16, and would be the faster ones.
            (Kind::BFloat16, Kind::BFloat16) if simd::multiplies_tiles() => None,
            (Kind::BFloat16, Kind::BFloat16) => Avx512Bf16::found().map(Set::Bf16).or_else(Set::float32),
            (Kind::BFloat16 | Kind::Float, _) => Set::float32(),
            _ => None,
        })
    }

    fn float32() -> Option<Set> {
        Avx512::found().map(Set::Wide).or_else(|| Avx2::found().map(Set::Narrow))
    }
}

/// softmax(q k^T / sqrt(d)) v over (B, L, heads * d) inputs of the kinds that [`Set::of`] takes.
pub fn flash(set: Set, query: &Tensor, key: &Tensor, value: &Tensor, heads: i64) -> Result<Tensor> {
    let inputs = [query, key, value];
    match (set, query.f_kind()?) {
        (Set::Bf16(set), _) => attend::<_, u16>(set, inputs, heads),
        (Set::Wide(set), Kind::BFloat16) => attend::<_, u16>(set, inputs, heads),
        (Set::Wide(set), _) => attend::<_, f32>(set, inputs, heads),
        (Set::Narrow(set), Kind::BFloat16) => attend::<_, u16>(set, inputs, heads),
        (Set::Narrow(set), _) => attend::<_, f32>(set, inputs, heads),
    }
}

fn attend<S: Compiled, T: Stored>(set: S, inputs: [&Tensor; 3], heads: i64) -> Result<Tensor> {
    apply(&inputs, || {
        let inputs = [T::plain(inputs[0])?, T::plain(inputs[1])?, T::plain(inputs[2])?];
        let shape = Shape::of(&inputs, heads)?;
        forward::<S, T>(set, inputs, shape)
    })
}

#[derive(Clone, Copy)]
struct Shape {
    batch: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    /// Of a head.
    width: usize,
    scale: f32,
}

impl Shape {
    fn of([query, key, _]: &[Tensor; 3], heads: i64) -> Result<Self> {
        let ((batch, queries, width), (_, keys, _)) = (query.size3()?, key.size3()?);
        let width = (width / heads) as usize;
        let scale = (width as f32).sqrt().recip();
        let (batch, heads) = (batch as usize, heads as usize);
        Ok(Shape { batch, heads, queries: queries as usize, keys: keys as usize, width, scale })
    }

    fn stride(&self) -> usize {
        self.heads * self.width
    }

    /// The rows of one head in the (B, len, heads * d) numbers of a tensor.
    fn rows<'a, T: Stored>(&self, data: &'a [T], len: usize, unit: usize) -> Rows<'a, T> {
        let (sample, head) = (unit / self.heads, unit % self.heads);
        let data = &data[sample * len * self.stride() + head * self.width..];
        Rows { data, stride: self.stride(), width: self.width, len }
    }

    /// Every head of every sample.
    fn units(&self) -> usize {
        self.batch * self.heads
    }
}

/// The result (B, L, heads * d), and what its backward pass needs.
fn forward<S: Compiled, T: Stored>(
    set: S,
    inputs: [Tensor; 3],
    shape: Shape,
) -> Result<(Tensor, Kept<S, T>)> {
    let [query, key, value] = &inputs;
    let (query, key, value) = (T::numbers(query)?, T::numbers(key)?, T::numbers(value)?);
    let mut exact = simd::zeros(if T::ROUNDS { shape.units() * shape.queries * shape.width } else { 0 })?;
    let mut log_sums = simd::zeros(shape.units() * shape.queries)?;
    let head = |unit| Head::new(shape.rows(key, shape.keys, unit), shape.rows(value, shape.keys, unit));
    let heads = threads::map(shape.units(), head)?.into_iter().collect::<Result<Vec<Head<S>>>>()?;
    let mixed = T::written(&inputs[0].size(), |mixed| {
        let mut exacts = exact.chunks_mut(shape.queries * shape.width);
        let sums = log_sums.chunks_mut(shape.queries);
        let parts = sums.map(|sums| {
            (exacts.next().unwrap_or_default().chunks_mut(QUERIES * shape.width), sums.chunks_mut(QUERIES))
        });
        let mut parts: Vec<_> = parts.collect();
        let mut places = Vec::new();
        for (sample, mixed) in mixed.chunks_mut(shape.queries * shape.stride()).enumerate() {
            let parts = &mut parts[sample * shape.heads..][..shape.heads];
            for (part, mixed) in mixed.chunks_mut(QUERIES * shape.stride()).enumerate() {
                let parts = parts.iter_mut().map(|(exact, sums)| (exact.next(), sums.next()));
                places.push((sample, part * QUERIES, mixed, parts.collect::<Vec<_>>()));
            }
        }
        threads::try_consume(places, |(sample, start, mixed, parts)| {
            for (head, (exact, log_sums)) in parts.into_iter().enumerate() {
                let unit = sample * shape.heads + head;
                let query = shape.rows(query, shape.queries, unit).part(start, QUERIES);
                let (stride, column) = (shape.stride(), head * shape.width);
                let (exact, log_sums) = (exact.unwrap_or_default(), log_sums.unwrap_or_default());
                let place = Place { mixed, stride, column, exact, log_sums };
                set.forward(query, &heads[unit], shape.scale, place)?;
            }
            Ok(())
        })
    })?;
    let result = mixed.f_detach()?;
    Ok((mixed, Kept { set, inputs, result, exact, log_sums, shape, stored: PhantomData }))
}

struct Kept<S, T> {
    set: S,
    inputs: [Tensor; 3],
    result: Tensor,
    /// Where the result is rounded: it as it was before, head by head.
    exact: Vec<f32>,
    log_sums: Vec<f32>,
    shape: Shape,
    stored: PhantomData<T>,
}

impl<S: Compiled, T: Stored> Backward for Kept<S, T> {
    fn backward(&self, gradient: &Tensor, _needed: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let (set, shape, gradient) = (self.set, &self.shape, T::plain(gradient)?);
        let [query, key, value] = &self.inputs;
        let (query, key, value) = (T::numbers(query)?, T::numbers(key)?, T::numbers(value)?);
        let (gradient, result) = (T::numbers(&gradient)?, T::exact(&self.result)?);
        let (exact, log_sums) = (&self.exact, &self.log_sums);
        let starts: Vec<usize> = (0..shape.keys).step_by(KEYS).collect();
        let parts = threads::map(shape.units() * starts.len(), |index| {
            let (unit, start) = (index / starts.len(), starts[index % starts.len()]);
            let (width, len) = (shape.width, shape.queries);
            let keys = |data| shape.rows(data, shape.keys, unit).part(start, KEYS);
            let exact = match result {
                Some(result) => shape.rows(result, len, unit),
                None => Rows { data: &exact[unit * len * width..], stride: width, width, len },
            };
            let seen = Seen {
                query: shape.rows(query, len, unit),
                exact,
                gradient: shape.rows(gradient, len, unit),
                log_sums: &log_sums[unit * len..][..len],
                scale: shape.scale,
            };
            set.backward(&seen, keys(key), keys(value))
        })?;
        let mut heads: Vec<Gradients> = Vec::with_capacity(shape.units());
        for (index, part) in parts.into_iter().enumerate() {
            let part = part?;
            match heads.last_mut().filter(|_| index % starts.len() > 0) {
                Some(head) => head.join(part),
                None => heads.push(part),
            }
        }
        Ok(vec![
            Some(whole::<T>(shape, shape.queries, &heads, |at| &at.query)?),
            Some(whole::<T>(shape, shape.keys, &heads, |at| &at.key)?),
            Some(whole::<T>(shape, shape.keys, &heads, |at| &at.value)?),
        ])
    }
}

/// One of the gradients of all heads (B, len, heads * d).
fn whole<T: Stored>(
    shape: &Shape,
    len: usize,
    heads: &[Gradients],
    of: fn(&Gradients) -> &[f32],
) -> Result<Tensor> {
    T::written(&[shape.batch as i64, len as i64, shape.stride() as i64], |all| {
        threads::rows(all, shape.stride(), QUERIES, |row, to| {
            let heads = &heads[row / len * shape.heads..];
            for (head, to) in heads.iter().zip(to.chunks_mut(shape.width)) {
                for (to, from) in to.iter_mut().zip(&of(head)[row % len * shape.width..]) {
                    *to = T::round(*from);
                }
            }
        })
    })
}
