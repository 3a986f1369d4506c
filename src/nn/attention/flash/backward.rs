//! The backward pass over some keys of one head. The probabilities of a block are computed again,
//! keys as rows and queries as columns: so they are factors of every product that follows in the
//! order in which they come.

use std::arch::x86_64::*;
use std::f32::consts::LOG2_E;

use crate::error::Result;
use crate::simd::{
    exp2, interleave, load, narrow, product, store_pairs, zeros, Columns, Pairs, Rows, Write, LANES, ROWS,
    STRIP,
};

/// Queries of a block, whose packed forms lie in the second cache.
const QUERIES: usize = 256;
/// Keys of a block, after which the gradients at the queries are brought up to date.
const KEYS: usize = 192;

/// The queries of a head, and what its forward pass left.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    pub query: Rows<'a>,
    /// The result of the forward pass, row by row and not rounded.
    pub exact: &'a [f32],
    /// At the result.
    pub gradient: Rows<'a>,
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
struct Block {
    query: (Columns, Columns),
    gradient: (Columns, Columns),
    log_sums: Vec<f32>,
    /// For each query the sum over all keys of probability times its gradient, which is output
    /// times gradient.
    deltas: Vec<f32>,
}

impl Block {
    fn new(seen: &Seen, start: usize) -> Result<Self> {
        let both = |x: &Rows| -> Result<_> {
            let part = x.part(start, QUERIES);
            Ok((Columns::transposed(part)?, Columns::of(part)?))
        };
        let query = both(&seen.query)?;
        let columns = query.0.width;
        let mut log_sums = vec![f32::INFINITY; columns]; // no probability where there is no query
        let mut deltas = vec![0.0; columns];
        for (i, (log_sum, delta)) in log_sums.iter_mut().zip(&mut deltas).enumerate() {
            let Some(sum) = seen.log_sums.get(start + i).filter(|_| i < QUERIES) else { break };
            *log_sum = *sum;
            let exact = &seen.exact[(start + i) * seen.query.width..];
            *delta = exact.iter().zip(seen.gradient.row(start + i)).map(|(a, &b)| a * wide(b)).sum();
        }
        Ok(Block { query, gradient: both(&seen.gradient)?, log_sums, deltas })
    }
}

fn wide(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Probabilities and the gradients at the scores, of [`ROWS`] keys and a block of queries.
struct Strip {
    /// (ROWS, STRIP): scores, and gradients at the probabilities.
    scores: Vec<f32>,
    at_probabilities: Vec<f32>,
    /// (ROWS, pairs of queries)
    probabilities: Vec<u32>,
    at_scores: Vec<u32>,
}

/// The gradients at `seen.query`, `key` and `value`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn backward(seen: &Seen, key: Rows, value: Rows) -> Result<Gradients> {
    let width = key.width.next_multiple_of(LANES);
    let (keys, values) = (Pairs::of(key)?, Pairs::of(value)?);
    let starts = (0..key.len).step_by(KEYS);
    let across = starts.map(|start| Pairs::transposed(key.part(start, KEYS)));
    let across = across.collect::<Result<Vec<_>>>()?;
    let len = key.len.next_multiple_of(ROWS);
    let (mut at_key, mut at_value) = (zeros(len * width)?, zeros(len * width)?);
    let mut at_query = zeros(seen.query.len * key.width)?;
    let mut strip = Strip {
        scores: vec![0.0; ROWS * STRIP],
        at_probabilities: vec![0.0; ROWS * STRIP],
        probabilities: vec![0; ROWS * QUERIES / 2],
        at_scores: vec![0; ROWS * QUERIES / 2],
    };
    for (start, at_query) in
        (0..seen.query.len).step_by(QUERIES).zip(at_query.chunks_mut(QUERIES * key.width))
    {
        let block = Block::new(seen, start)?;
        let columns = block.query.0.width;
        let mut across_query: Vec<f32> = zeros(key.width.next_multiple_of(ROWS) * columns)?; // (width, queries)
        for (across, first) in across.iter().zip((0..key.len).step_by(KEYS)) {
            let count = (key.len - first).min(KEYS);
            let mut at_scores = Columns::zeros(count, seen.query.part(start, QUERIES).len)?;
            for row in (0..count).step_by(ROWS) {
                let at = first + row;
                let factors = (keys.rows(at), values.rows(at));
                strip.fill(&block, factors, seen.scale, (&mut at_scores, row / 2));
                for s in 0..width.div_ceil(STRIP) {
                    let to = at * width + s * STRIP;
                    let (gradient, query) = (block.gradient.1.strip(s), block.query.1.strip(s));
                    product(&strip.probabilities, gradient, &mut at_value[to..], width, Write::Sum);
                    product(&strip.at_scores, query, &mut at_key[to..], width, Write::Sum);
                }
            }
            for row in (0..key.width).step_by(ROWS) {
                for s in 0..at_scores.strips() {
                    let to = &mut across_query[row * columns + s * STRIP..];
                    product(across.rows(row), at_scores.strip(s), to, columns, Write::Sum);
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
fn cut(mut wide: Vec<f32>, width: usize, like: Rows) -> Vec<f32> {
    if width != like.width {
        for row in 1..like.len {
            wide.copy_within(row * width..row * width + like.width, row * like.width);
        }
    }
    wide.truncate(like.len * like.width);
    wide
}

impl Strip {
    /// Of [`ROWS`] keys and values. The gradients at the scores go besides to `across`, from the
    /// row `pair` on: there they stand in pairs of keys.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn fill(
        &mut self,
        block: &Block,
        (keys, values): (&[u32], &[u32]),
        scale: f32,
        (across, pair): (&mut Columns, usize),
    ) {
        let pairs = block.query.1.pairs; // of queries
        let (power, scale) = (_mm512_set1_ps(scale * LOG2_E), _mm512_set1_ps(scale));
        let (log_sums, deltas) = (block.log_sums.as_chunks().0, block.deltas.as_chunks().0);
        for s in 0..across.strips() {
            product(keys, block.query.0.strip(s), &mut self.scores, STRIP, Write::New);
            product(values, block.gradient.0.strip(s), &mut self.at_probabilities, STRIP, Write::New);
            let scores = self.scores.as_chunks().0;
            let at_probabilities = self.at_probabilities.as_chunks().0;
            let (across, width) = across.strip_mut(s);
            for (two, across) in (0..ROWS / 2).zip(across.chunks_exact_mut(width).skip(pair)) {
                for (half, across) in across.chunks_mut(2 * LANES).enumerate() {
                    let mut probability = [[_mm512_setzero_ps(); 2]; 2]; // of two keys, for two vectors of queries
                    let mut at_score = probability;
                    for (v, across) in across.chunks_mut(LANES).enumerate() {
                        let column = 2 * half + v; // in vectors
                        let log_sum = load(&log_sums[s * STRIP / LANES + column]);
                        let delta = load(&deltas[s * STRIP / LANES + column]);
                        for key in 0..2 {
                            let at = (2 * two + key) * STRIP / LANES + column;
                            let share = exp2(_mm512_fmsub_ps(load(&scores[at]), power, log_sum));
                            let rest = _mm512_sub_ps(load(&at_probabilities[at]), delta);
                            probability[key][v] = share;
                            at_score[key][v] = _mm512_mul_ps(_mm512_mul_ps(share, scale), rest);
                        }
                        store_pairs(across, interleave(at_score[0][v], at_score[1][v]));
                    }
                    let from = (s * STRIP / 2 + half * LANES).min(pairs);
                    let to = (from + LANES).min(pairs); // an odd vector at the end shares its pairs
                    for key in 0..2 {
                        let row = (2 * two + key) * pairs;
                        let [first, second] = probability[key];
                        store_pairs(&mut self.probabilities[row + from..row + to], narrow(first, second));
                        let [first, second] = at_score[key];
                        store_pairs(&mut self.at_scores[row + from..row + to], narrow(first, second));
                    }
                }
            }
        }
    }
}
