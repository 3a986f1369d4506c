//! Threads for what this crate computes itself. Kernels that run between libtorch's operations share
//! libtorch's own team (`team.rs`). Draws come from threads that end with the call ([`spread`]): a
//! process that was forked has none of its parent's threads, and a pool would wait for them forever.

use std::sync::{Mutex, PoisonError};
use std::thread;

mod team; // libtorch's own threads

pub use team::{consume, each, forked, map, rows, try_consume};

/// `work` for each part of `numbers`, `size` long, with the part's index: on as many threads as torch
/// may use.
pub fn spread<T: Send>(numbers: &mut [T], size: usize, work: impl Fn(usize, &mut [T]) + Sync) {
    let parts = numbers.len().div_ceil(size);
    let width = usize::try_from(crate::torch::get_num_threads()).unwrap_or(1).min(parts);
    let queue = Mutex::new(numbers.chunks_mut(size).enumerate());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let drain = || {
        while let Some((index, part)) = next() {
            work(index, part);
        }
    };
    thread::scope(|scope| {
        for _ in 1..width {
            // Where the system has no thread to give, the others do the work.
            if thread::Builder::new().spawn_scoped(scope, drain).is_err() {
                break;
            }
        }
        drain();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_worked_on_once() {
        for (length, size) in [(0, 3), (2, 3), (100, 7)] {
            let mut numbers = vec![0; length];
            spread(&mut numbers, size, |index, part| part.iter_mut().for_each(|number| *number += index));
            assert_eq!(numbers, (0..length).map(|at| at / size).collect::<Vec<_>>());
        }
    }
}
