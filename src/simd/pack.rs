//! Matrices in the order in which a product reads them: in pairs along the dimension that is summed
//! over.

use super::lanes::{Lanes, Number, LANES, ROWS};
use crate::error::{DivaError, Result};

/// Rows of a matrix that may lie apart: (len, width).
#[derive(Clone, Copy)]
pub struct Rows<'a, T> {
    pub data: &'a [T],
    /// From a row to the next.
    pub stride: usize,
    pub width: usize,
    pub len: usize,
}

impl<'a, T: Number> Rows<'a, T> {
    pub fn row(&self, index: usize) -> &'a [T] {
        &self.data[index * self.stride..][..self.width]
    }

    /// `len` rows from `start` on, or those that there are.
    pub fn part(&self, start: usize, len: usize) -> Rows<'a, T> {
        Rows { data: &self.data[start * self.stride..], len: len.min(self.len - start), ..*self }
    }

    /// Row 2 p, and 2 p + 1 or nothing.
    fn two(&self, p: usize) -> (&'a [T], &'a [T]) {
        (self.row(2 * p), if 2 * p + 1 < self.len { self.row(2 * p + 1) } else { &[] })
    }
}

/// Pairs of the numbers of two rows; zeros where there is no second one.
fn stacked<'a, S: Lanes, T: Number>(
    (first, second): (&'a [T], &'a [T]),
) -> impl Iterator<Item = S::Pair> + 'a {
    let zeros = if second.is_empty() { first.len() } else { 0 };
    let second = second.iter().copied().chain(std::iter::repeat_n(T::default(), zeros));
    first.iter().zip(second).map(|(&first, second)| S::pair(first, second))
}

/// Room for a kernel's numbers. A plain `vec!` would abort the process where the memory is not
/// there.
pub fn zeros<T: Clone + Default>(len: usize) -> Result<Vec<T>> {
    let mut numbers = Vec::new();
    numbers.try_reserve_exact(len).map_err(|_| {
        DivaError::device(
            "attention",
            format!("out of memory: no room for {len} numbers of {} bytes", size_of::<T>()),
        )
    })?;
    numbers.resize(len, T::default());
    Ok(numbers)
}

/// The first factor of a product: rows of pairs, with zeros up to a multiple of [`ROWS`] rows.
pub struct Pairs<S: Lanes> {
    pub data: Vec<S::Pair>,
    /// Pairs in a row.
    pub pairs: usize,
}

impl<S: Lanes> Pairs<S> {
    fn zeros(rows: usize, pairs: usize) -> Result<Self> {
        Ok(Pairs { data: zeros(rows.next_multiple_of(ROWS) * pairs)?, pairs })
    }

    /// The rows as they are; their width is even.
    pub fn of<T: Number>(x: Rows<T>) -> Result<Self> {
        let mut packed = Pairs::zeros(x.len, x.width / 2)?;
        for (i, row) in packed.data.chunks_exact_mut(x.width / 2).take(x.len).enumerate() {
            for (to, from) in row.iter_mut().zip(x.row(i).chunks_exact(2)) {
                *to = S::pair(from[0], from[1]);
            }
        }
        Ok(packed)
    }

    /// The columns as rows.
    pub fn transposed<T: Number>(x: Rows<T>) -> Result<Self> {
        let mut packed = Pairs::zeros(x.width, x.len.div_ceil(2))?;
        let pairs = packed.pairs;
        for p in 0..pairs {
            for (to, pair) in packed.data[p..].iter_mut().step_by(pairs).zip(stacked::<S, T>(x.two(p))) {
                *to = pair;
            }
        }
        Ok(packed)
    }

    /// [`ROWS`] rows from `start` on.
    pub fn rows(&self, start: usize) -> &[S::Pair] {
        &self.data[start * self.pairs..][..ROWS * self.pairs]
    }
}

/// The second factor of a product, in strips of [`Lanes::STRIP`] columns (the last may be narrower), pair
/// by pair within a strip; zeros up to a whole vector of columns.
pub struct Columns<S: Lanes> {
    data: Vec<S::Pair>,
    pub pairs: usize,
    pub width: usize,
}

impl<S: Lanes> Columns<S> {
    pub fn zeros(len: usize, columns: usize) -> Result<Self> {
        let (pairs, width) = (len.div_ceil(2), columns.next_multiple_of(LANES));
        Ok(Columns { data: zeros(pairs * width)?, pairs, width })
    }

    /// The matrix as it is: its rows are summed over.
    pub fn of<T: Number>(x: Rows<T>) -> Result<Self> {
        let mut packed = Columns::zeros(x.len, x.width)?;
        for s in 0..packed.strips() {
            let (strip, width) = packed.strip_mut(s);
            for (p, row) in strip.chunks_exact_mut(width).enumerate() {
                let (first, second) = x.two(p);
                let from = (s * S::STRIP)..(x.width.min(s * S::STRIP + width));
                S::stack(row, &first[from.clone()], second.get(from).unwrap_or(&[]));
            }
        }
        Ok(packed)
    }

    /// The transposed matrix: its columns, of which there is an even number, are summed over.
    pub fn transposed<T: Number>(x: Rows<T>) -> Result<Self> {
        let mut packed = Columns::zeros(x.width, x.len)?;
        for s in 0..packed.strips() {
            let (strip, width) = packed.strip_mut(s);
            for column in (0..width).step_by(LANES) {
                let mut rows: [&[[T; 2]]; LANES] = [&[]; LANES];
                for (i, row) in (s * S::STRIP + column..x.len).zip(&mut rows) {
                    *row = x.row(i).as_chunks().0;
                }
                for (p, to) in strip.chunks_exact_mut(width).enumerate() {
                    let pairs = rows.map(|row| row.get(p).copied().unwrap_or_default());
                    S::transpose(&mut to[column..], pairs);
                }
            }
        }
        Ok(packed)
    }

    pub fn strips(&self) -> usize {
        self.width.div_ceil(S::STRIP)
    }

    /// A strip and its width.
    pub fn strip(&self, index: usize) -> (&[S::Pair], usize) {
        let width = (self.width - index * S::STRIP).min(S::STRIP);
        (&self.data[index * S::STRIP * self.pairs..][..width * self.pairs], width)
    }

    pub fn strip_mut(&mut self, index: usize) -> (&mut [S::Pair], usize) {
        let width = (self.width - index * S::STRIP).min(S::STRIP);
        (&mut self.data[index * S::STRIP * self.pairs..][..width * self.pairs], width)
    }
}
