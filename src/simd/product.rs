//! The product of six rows and a strip of columns: 24 vectors of sums, which the registers hold,
//! four of factors, and one pair of the rows at a time.

use std::arch::x86_64::*;

use super::lanes::{dot, load, load_pairs, store, LANES};

pub const ROWS: usize = 6;
/// Columns of a strip.
pub const STRIP: usize = 4 * LANES;

/// Whether a product is added to what is there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Write {
    New,
    Sum,
}

/// to (ROWS, width), rows `stride` apart, = or += rows (ROWS, pairs) times a strip (pairs, width).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn product(rows: &[u32], (strip, width): (&[u32], usize), to: &mut [f32], stride: usize, into: Write) {
    match width / LANES {
        4 => vectors::<4>(rows, strip, to, stride, into),
        3 => vectors::<3>(rows, strip, to, stride, into),
        2 => vectors::<2>(rows, strip, to, stride, into),
        _ => vectors::<1>(rows, strip, to, stride, into),
    }
}

/// Written with indices of known bounds, and without closures: so the compiler keeps the sums in
/// registers.
#[allow(clippy::needless_range_loop)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn vectors<const N: usize>(rows: &[u32], strip: &[u32], to: &mut [f32], stride: usize, into: Write) {
    let columns = strip.as_chunks::<LANES>().0.as_chunks::<N>().0; // vectors, pair by pair
    let mut factors: [&[u32]; ROWS] = [&[]; ROWS];
    for (i, row) in rows.chunks_exact(columns.len()).take(ROWS).enumerate() {
        factors[i] = row;
    }
    let mut sums = [[_mm512_setzero_ps(); N]; ROWS];
    if into == Write::Sum {
        for i in 0..ROWS {
            let row = to[i * stride..][..N * LANES].as_chunks::<LANES>().0;
            for n in 0..N {
                sums[i][n] = load(&row[n]);
            }
        }
    }
    let [a, b, c, d, e, f] = factors;
    let pairs = a.iter().zip(b).zip(c).zip(d).zip(e).zip(f).zip(columns);
    for ((((((a, b), c), d), e), f), columns) in pairs {
        let mut vectors = [_mm512_setzero_si512(); N];
        for n in 0..N {
            vectors[n] = load_pairs(&columns[n]);
        }
        let pair = [*a, *b, *c, *d, *e, *f];
        for i in 0..ROWS {
            for n in 0..N {
                sums[i][n] = dot(sums[i][n], pair[i], vectors[n]);
            }
        }
    }
    for i in 0..ROWS {
        let row = to[i * stride..][..N * LANES].as_chunks_mut::<LANES>().0;
        for n in 0..N {
            store(&mut row[n], sums[i][n]);
        }
    }
}
