//! The backward pass over some keys of one head. The probabilities of a block are computed again,
//! keys as rows and queries as columns: so they are factors of every product that follows in the
//! order in which they come.

use std::f32::consts::LOG2_E;

use crate::error::Result;
use crate::simd::{product, zeros, Columns, Lanes, Number, Pairs, Rows, Write, LANES, ROWS};

/// Least queries of a block, whose packed forms lie in the second cache.
const QUERIES: usize = 256;
/// Keys of a block, after which the gradients at the queries are brought up to date.
const KEYS: usize = 192;

/// The queries of a head, and what its forward pass left.
#[derive(Clone, Copy)]
pub struct Seen<'a, T> {
    pub query: Rows<'a, T>,
    /// The result of the forward pass, not rounded.
    pub exact: Rows<'a, f32>,
    /// At the result.
    pub gradient: Rows<'a, T>,
    /// Per query the logarithm to base 2 of the sum over the keys of e^score.
    pub log_sums: &'a [f32],
    pub scale: f32,
}

/// Gradients, (len, width) each. At the queries, what comes through the given keys alone.
pub struct Gradients {
    pub query: Vec<f32>,
    pub key: Vec<f32>,
    pub value: Vec<f32>,
}

impl Gradients {
    /// Those of the same queries and the keys behind.
    pub fn join(&mut self, behind: Gradients) {
        for (sum, more) in self.query.iter_mut().zip(&behind.query) {
            *sum += more;
        }
        self.key.extend(behind.key);
        self.value.extend(behind.value);
    }
}

/// A block of queries as second factors: transposed for the products with keys and values, as it is
/// for the gradients at these.
struct Block<S: Lanes> {
    query: (Columns<S>, Columns<S>),
    gradient: (Columns<S>, Columns<S>),
    /// The negative logarithms of [`Seen`].
    log_sums: Vec<f32>,
    /// For each query minus the sum over all keys of probability times its gradient, which is output
    /// times gradient.
    deltas: Vec<f32>,
}

impl<S: Lanes> Block<S> {
    fn new<T: Number>(seen: &Seen<T>, start: usize, size: usize) -> Result<Self> {
        let both = |x: &Rows<T>| -> Result<_> {
            let part = x.part(start, size);
            Ok((Columns::transposed(part)?, Columns::of(part)?))
        };
        let query = both(&seen.query)?;
        let columns = query.0.width;
        let mut log_sums = vec![f32::NEG_INFINITY; columns]; // no probability where there is no query
        let mut deltas = vec![0.0; columns];
        for (i, (log_sum, delta)) in log_sums.iter_mut().zip(&mut deltas).enumerate() {
            let Some(sum) = seen.log_sums.get(start + i).filter(|_| i < size) else { break };
            *log_sum = -*sum;
            *delta = -(seen
                .exact
                .row(start + i)
                .iter()
                .zip(seen.gradient.row(start + i))
                .map(|(a, &b)| a * b.wide())
                .sum::<f32>());
        }
        Ok(Block { query, gradient: both(&seen.gradient)?, log_sums, deltas })
    }
}

/// Probabilities and the gradients at the scores, of [`ROWS`] keys and a block of queries.
struct Strip<S: Lanes> {
    /// (ROWS, S::STRIP): scores, and gradients at the probabilities.
    scores: Vec<f32>,
    at_probabilities: Vec<f32>,
    /// (ROWS, pairs of queries)
    probabilities: Vec<S::Pair>,
    at_scores: Vec<S::Pair>,
}

/// The gradients at `seen.query`, `key` and `value`.
#[inline(always)]
pub fn backward<S: Lanes, T: Number>(
    set: S,
    seen: &Seen<T>,
    key: Rows<T>,
    value: Rows<T>,
) -> Result<Gradients> {
    let width = key.width.next_multiple_of(LANES);
    let (keys, values) = (Pairs::<S>::of(key)?, Pairs::<S>::of(value)?);
    let starts = (0..key.len).step_by(KEYS);
    let across = starts.map(|start| Pairs::<S>::transposed(key.part(start, KEYS)));
    let across = across.collect::<Result<Vec<_>>>()?;
    let len = key.len.next_multiple_of(ROWS);
    let (mut at_key, mut at_value) = (zeros(len * width)?, zeros(len * width)?);
    let mut at_query = zeros(seen.query.len * key.width)?;
    // Blocks of about the same size, of whole vectors.
    let blocks = (seen.query.len / QUERIES).max(1);
    let size = seen.query.len.div_ceil(blocks).next_multiple_of(LANES);
    let mut strip = Strip::<S> {
        scores: vec![0.0; ROWS * S::STRIP],
        at_probabilities: vec![0.0; ROWS * S::STRIP],
        probabilities: vec![S::Pair::default(); ROWS * size / 2],
        at_scores: vec![S::Pair::default(); ROWS * size / 2],
    };
    for (start, at_query) in (0..seen.query.len).step_by(size).zip(at_query.chunks_mut(size * key.width)) {
        let block = Block::<S>::new(seen, start, size)?;
        let columns = block.query.0.width;
        let mut across_query: Vec<f32> = zeros(key.width.next_multiple_of(ROWS) * columns)?; // (width, queries)
        for (across, first) in across.iter().zip((0..key.len).step_by(KEYS)) {
            let count = (key.len - first).min(KEYS);
            let mut at_scores = Columns::<S>::zeros(count, seen.query.part(start, size).len)?;
            for row in (0..count).step_by(ROWS) {
                let at = first + row;
                let factors = (keys.rows(at), values.rows(at));
                strip.fill(set, &block, factors, seen.scale, (&mut at_scores, row / 2));
                for s in 0..width.div_ceil(S::STRIP) {
                    let to = at * width + s * S::STRIP;
                    let (gradient, query) = (block.gradient.1.strip(s), block.query.1.strip(s));
                    product(set, &strip.probabilities, gradient, &mut at_value[to..], width, Write::Sum);
                    product(set, &strip.at_scores, query, &mut at_key[to..], width, Write::Sum);
                }
            }
            for row in (0..key.width).step_by(ROWS) {
                for s in 0..at_scores.strips() {
                    let to = &mut across_query[row * columns + s * S::STRIP..];
                    product(set, across.rows(row), at_scores.strip(s), to, columns, Write::Sum);
                }
            }
        }
        for (i, row) in at_query.chunks_exact_mut(key.width).enumerate() {
            for (to, from) in row.iter_mut().zip(across_query[i..].iter().step_by(columns)) {
                *to = *from;
            }
        }
    }
    Ok(Gradients { query: at_query, key: cut(at_key, width, key), value: cut(at_value, width, key) })
}

/// The first numbers of each row of `width`, as many as `like` has.
fn cut<T>(mut wide: Vec<f32>, width: usize, like: Rows<T>) -> Vec<f32> {
    if width != like.width {
        for row in 1..like.len {
            wide.copy_within(row * width..row * width + like.width, row * like.width);
        }
    }
    wide.truncate(like.len * like.width);
    wide
}

impl<S: Lanes> Strip<S> {
    /// Of [`ROWS`] keys and values. The gradients at the scores go besides to `across`, from the
    /// row `pair` on: there they stand in pairs of keys.
    #[inline(always)]
    fn fill(
        &mut self,
        set: S,
        block: &Block<S>,
        (keys, values): (&[S::Pair], &[S::Pair]),
        scale: f32,
        (across, pair): (&mut Columns<S>, usize),
    ) {
        let pairs = block.query.1.pairs; // of queries
        let (power, scale) = (set.splat(scale * LOG2_E), set.splat(scale));
        let (log_sums, deltas) = (block.log_sums.as_chunks().0, block.deltas.as_chunks().0);
        for s in 0..across.strips() {
            product(set, keys, block.query.0.strip(s), &mut self.scores, S::STRIP, Write::New);
            product(set, values, block.gradient.0.strip(s), &mut self.at_probabilities, S::STRIP, Write::New);
            let scores = self.scores.as_chunks().0;
            let at_probabilities = self.at_probabilities.as_chunks().0;
            let (across, width) = across.strip_mut(s);
            for (two, across) in (0..ROWS / 2).zip(across.chunks_exact_mut(width).skip(pair)) {
                for (half, across) in across.chunks_mut(2 * LANES).enumerate() {
                    let mut probability = [[set.splat(0.0); 2]; 2]; // of two keys, for two vectors of queries
                    let mut at_score = probability;
                    for (v, across) in across.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                        let column = 2 * half + v; // in vectors
                        let minus = set.load(&log_sums[s * S::STRIP / LANES + column]);
                        let delta = set.load(&deltas[s * S::STRIP / LANES + column]);
                        for key in 0..2 {
                            let at = (2 * two + key) * S::STRIP / LANES + column;
                            let share = set.exp2(set.fma(set.load(&scores[at]), power, minus));
                            let rest = set.add(set.load(&at_probabilities[at]), delta);
                            probability[key][v] = share;
                            at_score[key][v] = set.mul(set.mul(share, scale), rest);
                        }
                        set.stacked(across, at_score[0][v], at_score[1][v]);
                    }
                    let from = (s * S::STRIP / 2 + half * LANES).min(pairs);
                    let to = (from + LANES).min(pairs); // an odd vector at the end shares its pairs
                    for key in 0..2 {
                        let row = (2 * two + key) * pairs;
                        let [first, second] = probability[key];
                        set.neighbours(&mut self.probabilities[row + from..row + to], first, second);
                        let [first, second] = at_score[key];
                        set.neighbours(&mut self.at_scores[row + from..row + to], first, second);
                    }
                }
            }
        }
    }
}
