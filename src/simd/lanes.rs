//! Vectors of 16 float32 numbers, and of 16 pairs of bf16 numbers: the instructions that a kernel
//! needs, on slices whose length the compiler checks.
//!
//! A pair is a u32 that holds the earlier number in its lower half.

#![allow(unsafe_code)] // loads and stores through slices, and casts between two names of 512 bits

use std::arch::x86_64::*;
use std::mem::transmute;

/// Numbers in a vector.
pub const LANES: usize = 16;

#[inline]
#[target_feature(enable = "avx512f")]
pub fn load(from: &[f32; LANES]) -> __m512 {
    // SAFETY: 64 bytes are there to read.
    unsafe { _mm512_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub fn store(to: &mut [f32; LANES], x: __m512) {
    // SAFETY: 64 bytes are there to write.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub fn load_pairs(from: &[u32; LANES]) -> __m512i {
    // SAFETY: 64 bytes are there to read.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

/// As many of the 16 pairs as `to` has room for.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn store_pairs(to: &mut [u32], x: __m512i) {
    let mask = u16::MAX >> LANES.saturating_sub(to.len()).min(15);
    let mask = if to.is_empty() { 0 } else { mask };
    // SAFETY: the mask has no bit for what is not in `to`.
    unsafe { _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), mask, x) }
}

/// As many of the 32 bf16 numbers as `to` has room for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn store_halves(to: &mut [u16], x: __m512i) {
    let mask = u32::MAX >> (2 * LANES).saturating_sub(to.len()).min(31);
    let mask = if to.is_empty() { 0 } else { mask };
    // SAFETY: the mask has no bit for what is not in `to`.
    unsafe { _mm512_mask_storeu_epi16(to.as_mut_ptr().cast(), mask, x) }
}

/// sum + a.0 * b.0 + a.1 * b.1, with one pair for all lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub fn dot(sum: __m512, a: u32, b: __m512i) -> __m512 {
    let a = _mm512_set1_epi32(a.cast_signed());
    // SAFETY: both types are 512 bits without meaning of their own.
    unsafe { _mm512_dpbf16_ps(sum, transmute::<__m512i, __m512bh>(a), transmute::<__m512i, __m512bh>(b)) }
}

/// 32 numbers rounded to bf16, those of `first` before those of `second`: 16 pairs of neighbours.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub fn narrow(first: __m512, second: __m512) -> __m512i {
    // SAFETY: both types are 512 bits without meaning of their own.
    unsafe { transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)) }
}

/// 32 numbers rounded to bf16, each of `first` in a pair with the one of `second` in the same lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub fn interleave(first: __m512, second: __m512) -> __m512i {
    let both = narrow(first, second);
    let (low, high) = (_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64::<1>(both));
    let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(high));
    _mm512_or_si512(_mm512_cvtepu16_epi32(low), high)
}

/// 2^x with a relative error of at most 3e-6, a thousandth of bf16's rounding; 0 at minus infinity.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn exp2(x: __m512) -> __m512 {
    let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
    let rest = _mm512_sub_ps(x, whole); // at most 1/2
                                        // The polynomial of degree 4 with the least relative error
                                        // on [-1/2, 1/2].
    let mut power = _mm512_set1_ps(0.009_570_1);
    for coefficient in [0.055_917_863, 0.240_247_44, 0.693_121_8, 0.999_999_3] {
        power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(coefficient));
    }
    _mm512_scalef_ps(power, whole)
}

/// The largest of the numbers, and of `least`.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn maximum(numbers: &[[f32; LANES]], least: f32) -> f32 {
    let mut largest = _mm512_set1_ps(least);
    for part in numbers {
        largest = _mm512_max_ps(largest, load(part));
    }
    _mm512_reduce_max_ps(largest)
}

/// The sum of the lanes.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn total(x: __m512) -> f32 {
    _mm512_reduce_add_ps(x)
}

/// Numbers rounded to bf16, as many as both slices have.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub fn round(from: &[f32], to: &mut [u16]) {
    for (from, to) in from.chunks(2 * LANES).zip(to.chunks_mut(2 * LANES)) {
        let mut vectors = [[0.0; LANES]; 2];
        vectors.as_flattened_mut()[..from.len()].copy_from_slice(from);
        store_halves(to, narrow(load(&vectors[0]), load(&vectors[1])));
    }
}
