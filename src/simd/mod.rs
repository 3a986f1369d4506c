//! Products of matrices with float32 sums, in a processor's vector instructions: what a kernel is
//! built of that does something between two products, which a library would have to write to memory
//! and to read again.
//!
//! A kernel is generic over a set of instructions ([`Lanes`]). All of it is inlined into one function for
//! each set, in which the instructions are enabled.

use std::arch::x86_64::__cpuid_count;

mod lanes; // what a kernel needs of a set of instructions
mod pack; //  matrices in the order in which a product reads them
mod plain; // loops that the compiler makes vector instructions of
mod product;
mod sets; // AVX-512 with bf16, AVX-512, AVX2

pub use lanes::{maximum, Lanes, Number, LANES, ROWS};
pub use pack::{zeros, Columns, Pairs, Rows};
pub use plain::{exp2, sigmoid, widest, Work};
pub use product::{product, Write};
pub use sets::{Avx2, Avx512, Avx512Bf16};

/// Whether the processor has instructions for whole tiles of bf16 (AMX), which libtorch's products use.
pub fn multiplies_tiles() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    __cpuid_count(7, 0).edx & AMX_BF16 != 0
}

#[cfg(test)]
mod tests;
