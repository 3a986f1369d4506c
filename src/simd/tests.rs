use super::*;
use crate::error::{DivaError, Result};

/// Small whole numbers, whose products and sums are exact in every order.
fn numbers(len: usize, salt: usize) -> Vec<u16> {
    (0..len).map(|i| u16::round(((i * 7 + salt * 3) % 11) as f32 - 5.0)).collect()
}

/// a (m, k) times b (k, n).
fn expected(a: &[u16], b: &[u16], (m, k, n): (usize, usize, usize)) -> Vec<f32> {
    let at = |i: usize, j: usize| (0..k).map(|p| a[i * k + p].wide() * b[p * n + j].wide()).sum();
    (0..m * n).map(|at_| at(at_ / n, at_ % n)).collect()
}

fn transposed(x: &[u16], (rows, columns): (usize, usize)) -> Vec<u16> {
    (0..x.len()).map(|i| x[i % rows * columns + i / rows]).collect()
}

fn rows<T>(data: &[T], len: usize) -> Rows<'_, T> {
    let width = data.len() / len;
    Rows { data, stride: width, width, len }
}

/// One function per set of instructions, in which they are enabled.
macro_rules! with_instructions {
    ($name:ident, $set:ty, $instructions:literal) => {
        mod $name {
            use super::*;

            #[target_feature(enable = $instructions)]
            fn enabled(set: $set) -> Result<()> {
                products(set)?;
                powers(set);
                vectors(set)
            }

            #[test]
            fn products_powers_and_vectors_are_exact() -> Result<()> {
                // SAFETY: the processor was found to have these instructions.
                #[allow(unsafe_code)]
                <$set>::found().map_or(Ok(()), |set| unsafe { enabled(set) })
            }
        }
    };
}

with_instructions!(bf16_in_512_bits, Avx512Bf16, "avx512f,avx512bw,avx512vl,avx512bf16");
with_instructions!(float32_in_512_bits, Avx512, "avx512f,avx512vl");
with_instructions!(float32_in_256_bits, Avx2, "avx2,fma");

#[inline(always)]
fn products<S: Lanes>(set: S) -> Result<()> {
    for (m, k, n) in [(1, 2, 1), (6, 4, 16), (7, 10, 17), (13, 6, 70), (6, 64, 128), (5, 8, 47)] {
        let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
        let (a_across, b_across) = (transposed(&a, (m, k)), transposed(&b, (k, n)));
        let reference = expected(&a, &b, (m, k, n));
        for first in [Pairs::<S>::of(rows(&a, m))?, Pairs::transposed(rows(&a_across, k))?] {
            for second in [Columns::<S>::of(rows(&b, k))?, Columns::transposed(rows(&b_across, n))?] {
                let width = second.width;
                let mut to = vec![0.0; m.next_multiple_of(ROWS) * width];
                for (into, times) in [(Write::New, 1.0), (Write::Sum, 2.0)] {
                    for row in (0..m).step_by(ROWS) {
                        for s in 0..second.strips() {
                            let to = &mut to[row * width + s * S::STRIP..];
                            product(set, first.rows(row), second.strip(s), to, width, into);
                        }
                    }
                    for (i, number) in reference.iter().enumerate() {
                        assert_eq!(to[i / n * width + i % n], times * number, "{m} {k} {n}: {i}");
                    }
                }
            }
        }
    }
    Ok(())
}

#[inline(always)]
fn powers<S: Lanes>(set: S) {
    let bound = if size_of::<S::Pair>() == 4 { 5e-6 } else { 3e-7 }; // of bf16 factors, or float32
    for start in -3000..200 {
        let from: [f32; LANES] = std::array::from_fn(|lane| (start as f32 + lane as f32 / 16.0) / 20.0);
        let mut to = [0.0; LANES];
        set.store(&mut to, set.exp2(set.load(&from)));
        for (x, power) in from.into_iter().zip(to) {
            let exact = f64::from(x).exp2();
            assert!((f64::from(power) - exact).abs() <= bound * exact + 2e-38, "{x}: {power}");
        }
    }
    for (x, power) in [(f32::NEG_INFINITY, 0.0), (f32::INFINITY, f32::INFINITY), (f32::NAN, f32::NAN)] {
        let mut to = [0.0; LANES];
        set.store(&mut to, set.exp2(set.splat(x)));
        assert!(to.iter().all(|&found| found == power || found.is_nan() && power.is_nan()), "{x}: {to:?}");
    }
}

#[inline(always)]
fn vectors<S: Lanes>(set: S) -> Result<()> {
    let numbers: [f32; LANES] = std::array::from_fn(|lane| (lane * 5 % 16) as f32);
    assert_eq!(set.largest(set.load(&numbers)), 15.0);
    assert_eq!(set.total(set.load(&numbers)), 120.0);
    assert_eq!(maximum(set, &[numbers], 20.0), 20.0);
    assert_eq!(maximum(set, &[numbers, [-1.0; LANES]], -3.0), 15.0);
    // As many pairs of neighbours as there is room for.
    for room in [1, 5, 16] {
        let mut pairs = vec![S::Pair::default(); ROWS * room];
        set.neighbours(&mut pairs[..room], set.load(&numbers), set.splat(2.0));
        let ones = vec![1.0f32; 2 * room * LANES];
        let ones = Columns::<S>::of(rows(&ones, 2 * room))?;
        let mut to = [0.0; ROWS * LANES];
        product(set, &pairs, ones.strip(0), &mut to, LANES, Write::New);
        let wide = numbers.into_iter().chain([2.0; LANES]);
        assert_eq!(to[0], wide.take(2 * room).sum::<f32>(), "{room}");
        assert_eq!(to[LANES..], [0.0; (ROWS - 1) * LANES]);
    }
    Ok(())
}

#[test]
fn bf16_is_rounded_to_the_nearest_even_number() {
    for (wide, bits) in [(1.0f32, 0x3f80), (f32::INFINITY, 0x7f80), (-0.0, 0x8000)] {
        assert_eq!((u16::round(wide), bits.wide().to_bits()), (bits, wide.to_bits()));
    }
    let between = |low: u32, rest: u32| u16::round(f32::from_bits(0x3f80_0000 + (low << 16) + rest));
    assert_eq!([between(0, 0x7fff), between(0, 0x8000), between(0, 0x8001)], [0x3f80, 0x3f80, 0x3f81]);
    assert_eq!(between(1, 0x8000), 0x3f82);
    assert!(u16::round(f32::from_bits(0x7f80_0001)).wide().is_nan());
}

#[test]
fn rows_may_lie_apart_and_an_odd_one_is_joined_by_zeros() -> Result<()> {
    let data = numbers(3 * 8, 3);
    let apart = Rows { data: &data[2..], stride: 8, width: 4, len: 3 };
    let packed = Pairs::<Avx512Bf16>::transposed(apart)?;
    let pair = |first: u16, second: u16| u32::from(first) | u32::from(second) << 16;
    assert_eq!(packed.pairs, 2);
    assert_eq!(
        packed.rows(0)[..4],
        [pair(data[2], data[10]), pair(data[18], 0), pair(data[3], data[11]), pair(data[19], 0)]
    );
    Ok(())
}

#[test]
fn no_room_is_an_error_that_smaller_parts_might_not_have() {
    let found = zeros::<f32>(usize::MAX / 2);
    assert!(matches!(&found, Err(DivaError::Device { .. })));
    assert!(found.err().is_some_and(|err| err.is_out_of_memory()));
}
