//! Products of bf16 matrices with float32 sums, in AVX-512's own instructions: what a kernel is
//! built of that does something between two products, which a library would have to write to memory
//! and to read again.
//!
//! Everything here is compiled for processors that have these instructions: ask [`available`]
//! first.

use std::arch::x86_64::__cpuid_count;

mod lanes; // vectors of 16 numbers
mod pack; //  matrices in the order in which a product reads them
mod product;

pub use lanes::{exp2, interleave, load, maximum, narrow, round, store_pairs, total, LANES};
pub use pack::{zeros, Columns, Pairs, Rows};
pub use product::{product, Write, ROWS, STRIP};

/// Whether the processor has these instructions, and none that multiply whole tiles of bf16 (AMX):
/// libtorch's products use those, and would be the faster ones.
pub fn available() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    let tiles = __cpuid_count(7, 0).edx & AMX_BF16 != 0;
    !tiles
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16")
}

#[cfg(test)]
mod tests;
