//! The product of six rows and a strip of columns: vectors of sums, which the registers hold, those
//! of factors, and one pair of the rows at a time.

use super::lanes::{Lanes, LANES, ROWS};

/// Whether a product is added to what is there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Write {
    New,
    Sum,
}

/// to (ROWS, width), rows `stride` apart, = or += rows (ROWS, pairs) times a strip (pairs, width).
#[inline(always)]
pub fn product<S: Lanes>(
    set: S,
    rows: &[S::Pair],
    (strip, width): (&[S::Pair], usize),
    to: &mut [f32],
    stride: usize,
    into: Write,
) {
    match width / LANES {
        4 => vectors::<S, 4>(set, rows, strip, to, stride, into),
        3 => vectors::<S, 3>(set, rows, strip, to, stride, into),
        2 => vectors::<S, 2>(set, rows, strip, to, stride, into),
        _ => vectors::<S, 1>(set, rows, strip, to, stride, into),
    }
}

/// Written with indices of known bounds, and without closures: so the compiler keeps the sums in
/// registers.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn vectors<S: Lanes, const N: usize>(
    set: S,
    rows: &[S::Pair],
    strip: &[S::Pair],
    to: &mut [f32],
    stride: usize,
    into: Write,
) {
    let columns = strip.as_chunks::<LANES>().0.as_chunks::<N>().0; // vectors, pair by pair
    let mut factors: [&[S::Pair]; ROWS] = [&[]; ROWS];
    for (i, row) in rows.chunks_exact(columns.len()).take(ROWS).enumerate() {
        factors[i] = row;
    }
    let mut sums = [[set.splat(0.0); N]; ROWS];
    if into == Write::Sum {
        for i in 0..ROWS {
            let row = to[i * stride..][..N * LANES].as_chunks::<LANES>().0;
            for n in 0..N {
                sums[i][n] = set.load(&row[n]);
            }
        }
    }
    let [a, b, c, d, e, f] = factors;
    let pairs = a.iter().zip(b).zip(c).zip(d).zip(e).zip(f).zip(columns);
    for ((((((a, b), c), d), e), f), columns) in pairs {
        set.dot(&mut sums, [a, b, c, d, e, f], columns);
    }
    for i in 0..ROWS {
        let row = to[i * stride..][..N * LANES].as_chunks_mut::<LANES>().0;
        for n in 0..N {
            set.store(&mut row[n], sums[i][n]);
        }
    }
}
