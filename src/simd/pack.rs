//! Matrices of bf16 numbers in the order in which a product reads them: in pairs along the
//! dimension that is summed over.

use super::lanes::LANES;
use super::product::{ROWS, STRIP};
use crate::error::{DivaError, Result};

/// Rows of a matrix that may lie apart: (len, width), bf16 as bits.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub data: &'a [u16],
    /// From a row to the next.
    pub stride: usize,
    pub width: usize,
    pub len: usize,
}

impl<'a> Rows<'a> {
    pub fn row(&self, index: usize) -> &'a [u16] {
        &self.data[index * self.stride..][..self.width]
    }

    /// `len` rows from `start` on, or those that there are.
    pub fn part(&self, start: usize, len: usize) -> Rows<'a> {
        Rows { data: &self.data[start * self.stride..], len: len.min(self.len - start), ..*self }
    }

    /// Rows 2 p and 2 p + 1; zeros behind the last.
    fn two(&self, p: usize) -> impl Iterator<Item = u32> + 'a {
        let second: &[u16] = if 2 * p + 1 < self.len { self.row(2 * p + 1) } else { &[] };
        let second = second.iter().copied().chain(std::iter::repeat(0));
        self.row(2 * p).iter().zip(second).map(|(&first, second)| pair(first, second))
    }
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

fn pair(first: u16, second: u16) -> u32 {
    u32::from(first) | u32::from(second) << 16
}

/// The first factor of a product: rows of pairs, with zeros up to a multiple of [`ROWS`] rows.
pub struct Pairs {
    pub data: Vec<u32>,
    /// Pairs in a row.
    pub pairs: usize,
}

impl Pairs {
    fn zeros(rows: usize, pairs: usize) -> Result<Self> {
        Ok(Pairs { data: zeros(rows.next_multiple_of(ROWS) * pairs)?, pairs })
    }

    /// The rows as they are; their width is even.
    pub fn of(x: Rows) -> Result<Self> {
        let mut packed = Pairs::zeros(x.len, x.width / 2)?;
        for (i, row) in packed.data.chunks_exact_mut(x.width / 2).take(x.len).enumerate() {
            for (to, from) in row.iter_mut().zip(x.row(i).chunks_exact(2)) {
                *to = pair(from[0], from[1]);
            }
        }
        Ok(packed)
    }

    /// The columns as rows.
    pub fn transposed(x: Rows) -> Result<Self> {
        let mut packed = Pairs::zeros(x.width, x.len.div_ceil(2))?;
        let pairs = packed.pairs;
        for p in 0..pairs {
            for (to, pair) in packed.data[p..].iter_mut().step_by(pairs).zip(x.two(p)) {
                *to = pair;
            }
        }
        Ok(packed)
    }

    /// [`ROWS`] rows from `start` on.
    pub fn rows(&self, start: usize) -> &[u32] {
        &self.data[start * self.pairs..][..ROWS * self.pairs]
    }
}

/// The second factor of a product, in strips of [`STRIP`] columns (the last may be narrower), pair
/// by pair within a strip; zeros up to a whole vector of columns.
pub struct Columns {
    data: Vec<u32>,
    pub pairs: usize,
    pub width: usize,
}

impl Columns {
    pub fn zeros(len: usize, columns: usize) -> Result<Self> {
        let (pairs, width) = (len.div_ceil(2), columns.next_multiple_of(LANES));
        Ok(Columns { data: zeros(pairs * width)?, pairs, width })
    }

    /// The matrix as it is: its rows are summed over.
    pub fn of(x: Rows) -> Result<Self> {
        let mut packed = Columns::zeros(x.len, x.width)?;
        for s in 0..packed.strips() {
            let (strip, width) = packed.strip_mut(s);
            for (p, row) in strip.chunks_exact_mut(width).enumerate() {
                for (to, pair) in row.iter_mut().zip(x.two(p).skip(s * STRIP)) {
                    *to = pair;
                }
            }
        }
        Ok(packed)
    }

    /// The transposed matrix: its columns, of which there is an even number, are summed over.
    pub fn transposed(x: Rows) -> Result<Self> {
        let mut packed = Columns::zeros(x.width, x.len)?;
        for s in 0..packed.strips() {
            let (strip, width) = packed.strip_mut(s);
            for column in 0..width.min(x.len - s * STRIP) {
                let row = x.row(s * STRIP + column).chunks_exact(2);
                for (to, from) in strip[column..].iter_mut().step_by(width).zip(row) {
                    *to = pair(from[0], from[1]);
                }
            }
        }
        Ok(packed)
    }

    pub fn strips(&self) -> usize {
        self.width.div_ceil(STRIP)
    }

    /// A strip and its width.
    pub fn strip(&self, index: usize) -> (&[u32], usize) {
        let width = (self.width - index * STRIP).min(STRIP);
        (&self.data[index * STRIP * self.pairs..][..width * self.pairs], width)
    }

    pub fn strip_mut(&mut self, index: usize) -> (&mut [u32], usize) {
        let width = (self.width - index * STRIP).min(STRIP);
        (&mut self.data[index * STRIP * self.pairs..][..width * self.pairs], width)
    }
}
