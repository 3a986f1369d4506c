//! The two element types, and sums over a row in eight lanes: an order that does not depend on the
//! threads, that the compiler can keep in vector registers, and that rounds less than one running
//! sum.

use std::ops::{Add, AddAssign, Mul, Sub};

use crate::torch::kind::Element;

const LANES: usize = 8;

pub(super) trait Real:
    Element
    + Copy
    + Default
    + Send
    + Sync
    + Add<Output = Self>
    + AddAssign
    + Mul<Output = Self>
    + Sub<Output = Self>
{
    fn of(value: f64) -> Self;
    /// 1 / sqrt(self)
    fn rsqrt(self) -> Self;
}

impl Real for f32 {
    fn of(value: f64) -> Self {
        value as f32
    }

    fn rsqrt(self) -> Self {
        1.0 / self.sqrt()
    }
}

impl Real for f64 {
    fn of(value: f64) -> Self {
        value
    }

    fn rsqrt(self) -> Self {
        1.0 / self.sqrt()
    }
}

/// Sum of `term` over the elements of a row.
#[inline(always)]
pub(super) fn sum<T: Real>(row: &[T], term: impl Fn(T) -> T) -> T {
    sum_pairs(row, row, |value, _| term(value))
}

/// Sum of `term` over two rows of one length.
#[inline(always)]
pub(super) fn sum_pairs<T: Real>(left: &[T], right: &[T], term: impl Fn(T, T) -> T) -> T {
    let mut lanes = [T::default(); LANES];
    let (lefts, rights) = (left.chunks_exact(LANES), right.chunks_exact(LANES));
    let rest = lefts.remainder().iter().zip(rights.remainder());
    for (left, right) in lefts.zip(rights) {
        for ((lane, left), right) in lanes.iter_mut().zip(left).zip(right) {
            *lane += term(*left, *right);
        }
    }
    for (lane, (left, right)) in lanes.iter_mut().zip(rest) {
        *lane += term(*left, *right);
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

/// Mean and reciprocal deviation of a row, in two passes: the row stays in the first cache.
#[inline(always)]
pub(super) fn stats<T: Real>(row: &[T], eps: T) -> (T, T) {
    let share = T::of(1.0 / row.len() as f64);
    let mean = sum(row, |x| x) * share;
    let variance = sum(row, |x| (x - mean) * (x - mean)) * share;
    (mean, (variance + eps).rsqrt())
}

#[inline(always)]
pub(super) fn add<T: Real>(into: &mut [T], from: &[T]) {
    for (into, from) in into.iter_mut().zip(from) {
        *into += *from;
    }
}

/// `count` rows of `width` elements from row `first` on; empty when they do not exist.
#[inline(always)]
pub(super) fn rows_of<T>(values: &[T], first: usize, count: usize, width: usize) -> &[T] {
    values.get(first * width..(first + count) * width).unwrap_or_default()
}
