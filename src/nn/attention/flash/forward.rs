//! The forward pass over some queries of one head: scores by blocks of keys, and a softmax that is
//! corrected where larger scores come (arXiv 2205.14135, algorithm 1).

use std::f32::consts::LOG2_E;

use crate::error::Result;
use crate::simd::{maximum, product, zeros, Columns, Lanes, Number, Pairs, Rows, Write, LANES, ROWS};

/// Keys of a block. Its scores for [`ROWS`] queries lie in the first cache, its keys and values in
/// the second.
const KEYS: usize = 512;

/// Keys and values of a head, packed by blocks for products with queries and with probabilities.
pub struct Head<S: Lanes> {
    blocks: Vec<(Columns<S>, Columns<S>)>,
    keys: usize,
}

impl<S: Lanes> Head<S> {
    pub fn new<T: Number>(key: Rows<T>, value: Rows<T>) -> Result<Self> {
        let block =
            |start| Ok((Columns::transposed(key.part(start, KEYS))?, Columns::of(value.part(start, KEYS))?));
        let blocks = (0..key.len).step_by(KEYS).map(block).collect::<Result<_>>()?;
        Ok(Head { blocks, keys: key.len })
    }
}

/// Where the results for some queries of a head go.
pub struct Place<'a, T> {
    /// Rows of all heads, `stride` numbers each: this head's begin at `column`.
    pub mixed: &'a mut [T],
    pub stride: usize,
    pub column: usize,
    /// The same of this head alone, not rounded, where `mixed` is: rounding's part in the sum of
    /// output times gradient would be an error that the gradients at all scores of a query share.
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
#[inline(always)]
pub fn forward<S: Lanes, T: Number>(
    set: S,
    query: Rows<T>,
    head: &Head<S>,
    scale: f32,
    place: Place<T>,
) -> Result<()> {
    let scale = scale * LOG2_E; // the processor computes powers of two
    let rows = Pairs::<S>::of(query)?;
    let (len, width) = (query.len.next_multiple_of(ROWS), query.width.next_multiple_of(LANES));
    let mut state = State {
        mixed: zeros(len * width)?,
        width,
        largest: vec![f32::NEG_INFINITY; len],
        sums: vec![0.0; len],
    };
    let mut scores = vec![0.0; ROWS * KEYS];
    let mut shares = vec![S::Pair::default(); ROWS * KEYS / 2];
    for (block, (keys, values)) in head.blocks.iter().enumerate() {
        let count = (head.keys - block * KEYS).min(KEYS);
        for first in (0..len).step_by(ROWS) {
            for s in 0..keys.strips() {
                product(set, rows.rows(first), keys.strip(s), &mut scores[s * S::STRIP..], KEYS, Write::New);
            }
            for (i, row) in scores.chunks_exact_mut(KEYS).enumerate() {
                let row = &mut row[..keys.width];
                row[count..].fill(f32::NEG_INFINITY); // no keys, but room up to a whole vector
                let shares = &mut shares[i * values.pairs..][..values.pairs];
                state.share(set, first + i, row.as_chunks().0, scale, shares);
            }
            for s in 0..values.strips() {
                let to = &mut state.mixed[first * width + s * S::STRIP..];
                product(set, &shares, values.strip(s), to, width, Write::Sum);
            }
        }
    }
    state.finish(query, scale, place);
    Ok(())
}

impl State {
    /// The probabilities of a query for a block of keys, up to a factor that all of its keys have.
    #[inline(always)]
    fn share<S: Lanes>(
        &mut self,
        set: S,
        query: usize,
        scores: &[[f32; LANES]],
        scale: f32,
        shares: &mut [S::Pair],
    ) {
        let before = self.largest[query];
        let largest = maximum(set, scores, before);
        if largest != before {
            let factor = ((before - largest) * scale).exp2();
            self.sums[query] *= factor;
            for number in &mut self.mixed[query * self.width..][..self.width] {
                *number *= factor;
            }
            self.largest[query] = largest;
        }
        let (scale, shift) = (set.splat(scale), set.splat(-largest * scale));
        let mut sum = set.splat(0.0);
        for (two, to) in scores.chunks(2).zip(shares.chunks_mut(LANES)) {
            let mut shared = [set.splat(0.0); 2];
            for (scores, shared) in two.iter().zip(&mut shared) {
                *shared = set.exp2(set.fma(set.load(scores), scale, shift));
                sum = set.add(sum, *shared);
            }
            set.neighbours(to, shared[0], shared[1]);
        }
        self.sums[query] += set.total(sum);
    }

    #[inline(always)]
    fn finish<T: Number>(&mut self, query: Rows<T>, scale: f32, place: Place<T>) {
        let mut exacts = place.exact.chunks_exact_mut(query.width);
        for (i, (row, log_sum)) in place.mixed.chunks_mut(place.stride).zip(place.log_sums).enumerate() {
            *log_sum = self.largest[i] * scale + self.sums[i].log2();
            let numbers = &mut self.mixed[i * self.width..][..query.width];
            let factor = self.sums[i].recip();
            for (to, number) in row[place.column..].iter_mut().zip(&mut *numbers) {
                *number *= factor;
                *to = T::round(*number);
            }
            if let Some(exact) = exacts.next() {
                exact.copy_from_slice(numbers);
            }
        }
    }
}
