//! The forward pass over some queries of one head: scores by blocks of keys, and a softmax that is
//! corrected where larger scores come (arXiv 2205.14135, algorithm 1).

use std::arch::x86_64::*;
use std::f32::consts::LOG2_E;

use crate::error::Result;
use crate::simd::{
    exp2, load, maximum, narrow, product, round, store_pairs, total, zeros, Columns, Pairs, Rows, Write,
    LANES, ROWS, STRIP,
};

/// Keys of a block. Its scores for [`ROWS`] queries lie in the first cache, its keys and values in
/// the second.
const KEYS: usize = 512;

/// Keys and values of a head, packed by blocks for products with queries and with probabilities.
pub struct Head {
    blocks: Vec<(Columns, Columns)>,
    keys: usize,
}

impl Head {
    pub fn new(key: Rows, value: Rows) -> Result<Self> {
        let block =
            |start| Ok((Columns::transposed(key.part(start, KEYS))?, Columns::of(value.part(start, KEYS))?));
        let blocks = (0..key.len).step_by(KEYS).map(block).collect::<Result<_>>()?;
        Ok(Head { blocks, keys: key.len })
    }
}

/// Where the results for some queries of a head go.
pub struct Place<'a> {
    /// Rows of all heads, `stride` numbers each: this head's begin at `column`.
    pub mixed: &'a mut [u16],
    pub stride: usize,
    pub column: usize,
    /// The same of this head alone, not rounded: rounding's part in the sum of output times
    /// gradient would be an error that the gradients at all scores of a query share.
    pub exact: &'a mut [f32],
    /// Per query the logarithm to base 2 of the sum over the keys of e^score.
    pub log_sums: &'a mut [f32],
}

/// What is known of some queries after some blocks of keys.
struct State {
    mixed: Vec<f32>, // (queries, width), not yet divided by the sums
    width: usize,
    largest: Vec<f32>,
    sums: Vec<f32>,
}

/// softmax(query key^T scale) value.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn forward(query: Rows, head: &Head, scale: f32, place: Place) -> Result<()> {
    let scale = scale * LOG2_E; // the processor computes powers of two
    let rows = Pairs::of(query)?;
    let (len, width) = (query.len.next_multiple_of(ROWS), query.width.next_multiple_of(LANES));
    let mut state = State {
        mixed: zeros(len * width)?,
        width,
        largest: vec![f32::NEG_INFINITY; len],
        sums: vec![0.0; len],
    };
    let mut scores = vec![0.0; ROWS * KEYS];
    let mut shares = vec![0; ROWS * KEYS / 2];
    for (block, (keys, values)) in head.blocks.iter().enumerate() {
        let count = (head.keys - block * KEYS).min(KEYS);
        for first in (0..len).step_by(ROWS) {
            for s in 0..keys.strips() {
                product(rows.rows(first), keys.strip(s), &mut scores[s * STRIP..], KEYS, Write::New);
            }
            for (i, row) in scores.chunks_exact_mut(KEYS).enumerate() {
                let row = &mut row[..keys.width];
                row[count..].fill(f32::NEG_INFINITY); // no keys, but room up to a whole vector
                let shares = &mut shares[i * values.pairs..][..values.pairs];
                state.share(first + i, row.as_chunks().0, scale, shares);
            }
            for s in 0..values.strips() {
                let to = &mut state.mixed[first * width + s * STRIP..];
                product(&shares, values.strip(s), to, width, Write::Sum);
            }
        }
    }
    state.finish(query, scale, place);
    Ok(())
}

impl State {
    /// The probabilities of a query for a block of keys, up to a factor that all of its keys have.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn share(&mut self, query: usize, scores: &[[f32; LANES]], scale: f32, shares: &mut [u32]) {
        let before = self.largest[query];
        let largest = maximum(scores, before);
        if largest != before {
            let factor = ((before - largest) * scale).exp2();
            self.sums[query] *= factor;
            for number in &mut self.mixed[query * self.width..][..self.width] {
                *number *= factor;
            }
            self.largest[query] = largest;
        }
        let (scale, shift) = (_mm512_set1_ps(scale), _mm512_set1_ps(largest * scale));
        let mut sum = _mm512_setzero_ps();
        for (two, to) in scores.chunks(2).zip(shares.chunks_mut(LANES)) {
            let mut shared = [_mm512_setzero_ps(); 2];
            for (scores, shared) in two.iter().zip(&mut shared) {
                *shared = exp2(_mm512_fmsub_ps(load(scores), scale, shift));
                sum = _mm512_add_ps(sum, *shared);
            }
            store_pairs(to, narrow(shared[0], shared[1]));
        }
        self.sums[query] += total(sum);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn finish(&self, query: Rows, scale: f32, place: Place) {
        let exact = place.exact.chunks_exact_mut(query.width);
        let rows = place.mixed.chunks_mut(place.stride).zip(exact).zip(place.log_sums);
        for (i, ((row, exact), log_sum)) in rows.enumerate() {
            *log_sum = self.largest[i] * scale + self.sums[i].log2();
            let numbers = &self.mixed[i * self.width..][..self.width];
            let factor = self.sums[i].recip();
            for (to, number) in exact.iter_mut().zip(numbers) {
                *to = number * factor;
            }
            round(exact, &mut row[place.column..][..query.width]);
        }
    }
}
