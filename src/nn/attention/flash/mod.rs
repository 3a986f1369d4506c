//! Attention in bf16 on processors with AVX-512's bf16 instructions, without a score in memory:
//! forward, and backward by computing the probabilities again (arXiv 2205.14135, 2307.08691).
//! Scores, sums and gradients are float32; factors of products are rounded to bf16, as they are in
//! libtorch's fused kernels.

use crate::torch::{Device, Kind, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::autograd::{apply, Backward};
use crate::error::Result;
use crate::simd::{self, Rows};
use crate::slices::{view, Output};
use crate::threads;

mod backward;
mod forward;

use backward::{Gradients, Seen};
use forward::{Head, Place};

/// Queries that a thread takes at a time.
const QUERIES: usize = 192;
/// Keys whose gradients a thread finds at a time: more of them, and the heads of a large image are
/// too few to share out.
const KEYS: usize = 2048;

/// Whether [`flash`] takes these (B, L, heads * d) inputs.
pub fn fits(inputs: [&Tensor; 3], heads: i64) -> Result<bool> {
    for input in inputs {
        if input.device() != Device::Cpu || input.f_kind()? != Kind::BFloat16 || input.numel() == 0 {
            return Ok(false);
        }
    }
    let [query, key, value] = [inputs[0].size3()?, inputs[1].size3()?, inputs[2].size3()?];
    let alike = (query.0, query.2) == (key.0, key.2) && key == value; // libtorch says what is wrong with others
    Ok(simd::available() && alike && query.2 % (2 * heads) == 0)
}

/// softmax(q k^T / sqrt(d)) v over (B, L, heads * d) inputs that [`fits`] takes.
pub fn flash(query: &Tensor, key: &Tensor, value: &Tensor, heads: i64) -> Result<Tensor> {
    apply(&[query, key, value], || {
        let inputs = [bits(query)?, bits(key)?, bits(value)?];
        let shape = Shape::of(&inputs, heads)?;
        forward(inputs, shape)
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
    fn rows<'a>(&self, data: &'a [u16], len: usize, unit: usize) -> Rows<'a> {
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
fn forward(inputs: [Tensor; 3], shape: Shape) -> Result<(Tensor, Kept)> {
    let [query, key, value] = &inputs;
    let (query, key, value) = (numbers(query)?, numbers(key)?, numbers(value)?);
    let mut mixed = Output::<f16>::new(&inputs[0].size())?;
    let mut exact = simd::zeros(shape.units() * shape.queries * shape.width)?;
    let mut log_sums = simd::zeros(shape.units() * shape.queries)?;
    let all: &mut [u16] = mixed.values()?.reinterpret_cast_mut();
    let head = |unit| Head::new(shape.rows(key, shape.keys, unit), shape.rows(value, shape.keys, unit));
    let heads = threads::map(shape.units(), head)?.into_iter().collect::<Result<Vec<Head>>>()?;
    let samples = all.chunks_mut(shape.queries * shape.stride());
    let exacts =
        exact.chunks_mut(shape.queries * shape.width).map(|all| all.chunks_mut(QUERIES * shape.width));
    let sums = log_sums.chunks_mut(shape.queries).map(|all| all.chunks_mut(QUERIES));
    let mut parts: Vec<_> = exacts.zip(sums).map(|(exact, sums)| exact.zip(sums)).collect();
    let mut places = Vec::new();
    for (sample, mixed) in samples.enumerate() {
        let parts = &mut parts[sample * shape.heads..][..shape.heads];
        for (part, mixed) in mixed.chunks_mut(QUERIES * shape.stride()).enumerate() {
            let parts: Vec<_> = parts.iter_mut().filter_map(Iterator::next).collect();
            places.push((sample, part * QUERIES, mixed, parts));
        }
    }
    threads::try_consume(places, |(sample, start, mixed, parts)| {
        for (head, (exact, log_sums)) in parts.into_iter().enumerate() {
            let unit = sample * shape.heads + head;
            let query = shape.rows(query, shape.queries, unit).part(start, QUERIES);
            let (stride, column) = (shape.stride(), head * shape.width);
            let place = Place { mixed, stride, column, exact, log_sums };
            // SAFETY: `fits` has checked that the processor has these instructions.
            #[allow(unsafe_code)]
            unsafe {
                forward::forward(query, &heads[unit], shape.scale, place)?;
            }
        }
        Ok(())
    })?;
    let mixed = mixed.into_tensor().f_view_dtype(Kind::BFloat16)?;
    Ok((mixed, Kept { inputs, exact, log_sums, shape }))
}

struct Kept {
    inputs: [Tensor; 3],
    exact: Vec<f32>,
    log_sums: Vec<f32>,
    shape: Shape,
}

impl Backward for Kept {
    fn backward(&self, gradient: &Tensor, _needed: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let (shape, gradient) = (&self.shape, bits(gradient)?);
        let [query, key, value] = &self.inputs;
        let (query, key, value) = (numbers(query)?, numbers(key)?, numbers(value)?);
        let gradient = numbers(&gradient)?;
        let (exact, log_sums) = (&self.exact, &self.log_sums);
        let starts: Vec<usize> = (0..shape.keys).step_by(KEYS).collect();
        let parts = threads::map(shape.units() * starts.len(), |index| {
            let (unit, start) = (index / starts.len(), starts[index % starts.len()]);
            let queries = |data| shape.rows(data, shape.queries, unit);
            let keys = |data| shape.rows(data, shape.keys, unit).part(start, KEYS);
            let first = unit * shape.queries;
            let seen = Seen {
                query: queries(query),
                exact: &exact[first * shape.width..][..shape.queries * shape.width],
                gradient: queries(gradient),
                log_sums: &log_sums[first..][..shape.queries],
                scale: shape.scale,
            };
            // SAFETY: `fits` has checked that the processor has these instructions.
            #[allow(unsafe_code)]
            unsafe {
                backward::backward(&seen, keys(key), keys(value))
            }
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
            whole(shape, shape.queries, &heads, |at| &at.query)?,
            whole(shape, shape.keys, &heads, |at| &at.key)?,
            whole(shape, shape.keys, &heads, |at| &at.value)?,
        ])
    }
}

/// One of the gradients of all heads (B, len, heads * d), rounded.
fn whole(
    shape: &Shape,
    len: usize,
    heads: &[Gradients],
    of: fn(&Gradients) -> &[f32],
) -> Result<Option<Tensor>> {
    let size = [shape.batch as i64, len as i64, shape.stride() as i64];
    let mut whole = Output::<f16>::new(&size)?;
    let all: &mut [u16] = whole.values()?.reinterpret_cast_mut();
    let parts = all.chunks_mut(QUERIES * shape.stride()).enumerate().collect();
    threads::consume(parts, |(part, rows): (usize, &mut [u16])| {
        for (row, to) in (part * QUERIES..).zip(rows.chunks_mut(shape.stride())) {
            let heads = &heads[row / len * shape.heads..];
            for (head, to) in heads.iter().zip(to.chunks_mut(shape.width)) {
                // SAFETY: `fits` has checked that the processor has these instructions.
                #[allow(unsafe_code)]
                unsafe {
                    simd::round(&of(head)[row % len * shape.width..][..shape.width], to);
                }
            }
        }
    })?;
    Ok(Some(whole.into_tensor().f_view_dtype(Kind::BFloat16)?))
}

/// The numbers of a bf16 tensor as bits, row by row and outside any graph: under the name of the
/// other half precision, as tch can view no bf16.
fn bits(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_detach()?.f_contiguous()?.f_view_dtype(Kind::Half)?)
}

fn numbers(bits: &Tensor) -> Result<&[u16]> {
    Ok(view::<f16>(bits)?.reinterpret_cast())
}
