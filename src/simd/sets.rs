//! The instructions of [`Lanes`] in three sets.

#![allow(unsafe_code)] // intrinsics, and casts between two names of 512 bits

use std::arch::x86_64::*;
use std::f32::consts::LN_2;
use std::mem::transmute;

use super::lanes::{Lanes, Number, LANES, ROWS};

/// AVX-512, with factors of float32.
#[derive(Clone, Copy)]
pub struct Avx512(());

/// AVX-512 with its bf16 instructions, on factors of bf16.
#[derive(Clone, Copy)]
pub struct Avx512Bf16(Avx512);

/// AVX2 with FMA, with factors of float32.
#[derive(Clone, Copy)]
pub struct Avx2(());

/// What both sets of 512 bits have.
macro_rules! vectors_of_512_bits {
    () => {
        type Vector = __m512;
        const ACROSS: usize = 4;

        #[inline(always)]
        fn splat(self, number: f32) -> __m512 {
            unsafe { _mm512_set1_ps(number) }
        }

        #[inline(always)]
        fn load(self, from: &[f32; LANES]) -> __m512 {
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }

        #[inline(always)]
        fn store(self, to: &mut [f32; LANES], x: __m512) {
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
        }

        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }

        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }

        #[inline(always)]
        fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        fn max(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_max_ps(a, b) }
        }

        #[inline(always)]
        fn largest(self, x: __m512) -> f32 {
            unsafe { _mm512_reduce_max_ps(x) }
        }

        #[inline(always)]
        fn total(self, x: __m512) -> f32 {
            unsafe { _mm512_reduce_add_ps(x) }
        }
    };
}

/// Polynomials with the least relative error of 2^x on [-1/2, 1/2], from the highest power down:
/// 3e-6 and 1e-7.
const COARSE: [f32; 5] = [0.009_570_1, 0.055_917_863, 0.240_247_44, 0.693_121_8, 0.999_999_3];
const FINE: [f32; 7] = [1.539_904_5e-4, 1.333_355_2e-3, 9.618_129e-3, 5.550_411e-2, 2.402_265e-1, LN_2, 1.0];

#[inline(always)]
fn polynomial<S: Lanes>(set: S, x: S::Vector, coefficients: &[f32]) -> S::Vector {
    let mut sum = set.splat(coefficients[0]);
    for coefficient in &coefficients[1..] {
        sum = set.fma(sum, x, set.splat(*coefficient));
    }
    sum
}

#[inline(always)]
fn exp2_of_512_bits<S: Lanes<Vector = __m512>>(set: S, x: __m512, coefficients: &[f32]) -> __m512 {
    unsafe {
        let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
        let rest = _mm512_sub_ps(x, whole); // at most 1/2
        _mm512_scalef_ps(polynomial(set, rest, coefficients), whole)
    }
}

impl Lanes for Avx512Bf16 {
    /// The earlier number in the lower half.
    type Pair = u32;

    vectors_of_512_bits!();

    fn found() -> Option<Self> {
        let own = is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512bf16");
        Avx512::found().filter(|_| own).map(Avx512Bf16)
    }

    #[inline(always)]
    fn pair<T: Number>(first: T, second: T) -> u32 {
        u32::from(first.bits()) | u32::from(second.bits()) << 16
    }

    #[inline(always)]
    fn stack<T: Number>(to: &mut [u32], first: &[T], second: &[T]) {
        if second.is_empty() {
            for (to, first) in to.iter_mut().zip(first) {
                *to = first.bits().into();
            }
        }
        for ((to, first), second) in to.iter_mut().zip(first).zip(second) {
            *to = Self::pair(*first, *second);
        }
    }

    #[inline(always)]
    fn transpose<T: Number>(to: &mut [u32], pairs: [[T; 2]; LANES]) {
        for (to, [first, second]) in to.iter_mut().zip(pairs) {
            *to = Self::pair(first, second);
        }
    }

    #[inline(always)]
    fn exp2(self, x: __m512) -> __m512 {
        exp2_of_512_bits(self, x, &COARSE)
    }

    #[inline(always)]
    fn neighbours(self, to: &mut [u32], first: __m512, second: __m512) {
        let mask = u16::MAX >> LANES.saturating_sub(to.len()).min(15);
        let mask = if to.is_empty() { 0 } else { mask };
        // SAFETY: the mask has no bit for what is not in `to`; both types are 512 bits.
        unsafe {
            let pairs = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
            _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), mask, pairs);
        }
    }

    #[inline(always)]
    fn stacked(self, to: &mut [u32; LANES], first: __m512, second: __m512) {
        // SAFETY: both types are 512 bits; `to` has room for 16 pairs.
        unsafe {
            let both = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
            let (low, high) = (_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64::<1>(both));
            let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(high));
            let pairs = _mm512_or_si512(_mm512_cvtepu16_epi32(low), high);
            _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs);
        }
    }

    #[inline(always)]
    fn dot<const N: usize>(
        self,
        sums: &mut [[__m512; N]; ROWS],
        rows: [&u32; ROWS],
        columns: &[[u32; LANES]; N],
    ) {
        // SAFETY: 64 bytes are there to read; the types are 512 bits without meaning of their own.
        unsafe {
            let mut vectors = [_mm512_setzero_si512(); N];
            for n in 0..N {
                vectors[n] = _mm512_loadu_si512(columns[n].as_ptr().cast());
            }
            for i in 0..ROWS {
                let pair = transmute::<__m512i, __m512bh>(_mm512_set1_epi32(rows[i].cast_signed()));
                for n in 0..N {
                    let column = transmute::<__m512i, __m512bh>(vectors[n]);
                    sums[i][n] = _mm512_dpbf16_ps(sums[i][n], pair, column);
                }
            }
        }
    }
}

/// What both sets have whose factors are float32. In a row of vectors, 16 first numbers are
/// followed by 16 second ones.
macro_rules! factors_of_float32 {
    () => {
        type Pair = [f32; 2];

        #[inline(always)]
        fn pair<T: Number>(first: T, second: T) -> [f32; 2] {
            [first.wide(), second.wide()]
        }

        #[inline(always)]
        fn stack<T: Number>(to: &mut [[f32; 2]], first: &[T], second: &[T]) {
            for (half, row) in [first, second].into_iter().enumerate() {
                for (to, from) in to.as_chunks_mut::<LANES>().0.iter_mut().zip(row.chunks(LANES)) {
                    for (to, from) in to.as_flattened_mut()[half * LANES..].iter_mut().zip(from) {
                        *to = from.wide();
                    }
                }
            }
        }

        #[inline(always)]
        fn transpose<T: Number>(to: &mut [[f32; 2]], pairs: [[T; 2]; LANES]) {
            let to = to.as_flattened_mut();
            for (half, to) in to.chunks_exact_mut(LANES).take(2).enumerate() {
                for (to, pair) in to.iter_mut().zip(pairs) {
                    *to = pair[half].wide();
                }
            }
        }

        #[inline(always)]
        fn neighbours(self, to: &mut [[f32; 2]], first: Self::Vector, second: Self::Vector) {
            let to = to.as_flattened_mut();
            if let Some(to) = to.first_chunk_mut::<{ 2 * LANES }>() {
                let (to, _) = to.as_chunks_mut::<LANES>();
                self.store(&mut to[0], first);
                self.store(&mut to[1], second);
            } else {
                let mut both = [[0.0; LANES]; 2];
                self.store(&mut both[0], first);
                self.store(&mut both[1], second);
                to.copy_from_slice(&both.as_flattened()[..to.len()]);
            }
        }

        #[inline(always)]
        fn stacked(self, to: &mut [[f32; 2]; LANES], first: Self::Vector, second: Self::Vector) {
            let (to, _) = to.as_flattened_mut().as_chunks_mut::<LANES>();
            self.store(&mut to[0], first);
            self.store(&mut to[1], second);
        }

        #[inline(always)]
        fn dot<const N: usize>(
            self,
            sums: &mut [[Self::Vector; N]; ROWS],
            rows: [&[f32; 2]; ROWS],
            columns: &[[[f32; 2]; LANES]; N],
        ) {
            for half in 0..2 {
                let mut vectors = [self.splat(0.0); N];
                for n in 0..N {
                    vectors[n] = self.load(&columns[n].as_flattened().as_chunks::<LANES>().0[half]);
                }
                for i in 0..ROWS {
                    let factor = self.splat(rows[i][half]);
                    for n in 0..N {
                        sums[i][n] = self.fma(factor, vectors[n], sums[i][n]);
                    }
                }
            }
        }
    };
}

impl Lanes for Avx512 {
    vectors_of_512_bits!();
    factors_of_float32!();

    fn found() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl");
        found.then_some(Avx512(()))
    }

    #[inline(always)]
    fn exp2(self, x: __m512) -> __m512 {
        exp2_of_512_bits(self, x, &FINE)
    }
}

impl Lanes for Avx2 {
    type Vector = [__m256; 2];
    const ACROSS: usize = 1;

    factors_of_float32!();

    fn found() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        found.then_some(Avx2(()))
    }

    #[inline(always)]
    fn splat(self, number: f32) -> [__m256; 2] {
        unsafe { [_mm256_set1_ps(number); 2] }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> [__m256; 2] {
        let (low, high) = from.split_at(LANES / 2);
        unsafe { [_mm256_loadu_ps(low.as_ptr()), _mm256_loadu_ps(high.as_ptr())] }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], x: [__m256; 2]) {
        let (low, high) = to.split_at_mut(LANES / 2);
        unsafe {
            _mm256_storeu_ps(low.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(high.as_mut_ptr(), x[1]);
        }
    }

    #[inline(always)]
    fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn fma(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn max(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn exp2(self, x: [__m256; 2]) -> [__m256; 2] {
        let mut power = x;
        for half in &mut power {
            unsafe {
                // Powers that an exponent can hold: below them 0, above infinity.
                let x = _mm256_min_ps(_mm256_set1_ps(128.0), _mm256_max_ps(_mm256_set1_ps(-127.0), *half));
                *half =
                    _mm256_sub_ps(x, _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x));
            }
        }
        let mut power = polynomial(self, power, &FINE);
        for (half, x) in power.iter_mut().zip(x) {
            unsafe {
                let x = _mm256_min_ps(_mm256_set1_ps(128.0), _mm256_max_ps(_mm256_set1_ps(-127.0), x));
                let whole = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127));
                *half = _mm256_mul_ps(*half, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(whole)));
            }
        }
        power
    }

    #[inline(always)]
    fn largest(self, x: [__m256; 2]) -> f32 {
        let mut numbers = [0.0; LANES];
        self.store(&mut numbers, x);
        numbers.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn total(self, x: [__m256; 2]) -> f32 {
        let mut numbers = [0.0; LANES];
        self.store(&mut numbers, x);
        numbers.iter().sum()
    }
}
