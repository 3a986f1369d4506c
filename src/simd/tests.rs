use super::*;
use crate::error::{DivaError, Result};

/// Small whole numbers, whose products and sums are exact in every order.
fn numbers(len: usize, salt: usize) -> Vec<u16> {
    let number = |i: usize| ((i * 7 + salt * 3) % 11) as f32 - 5.0;
    (0..len).map(|i| (number(i).to_bits() >> 16) as u16).collect()
}

fn wide(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// a (m, k) times b (k, n).
fn expected(a: &[u16], b: &[u16], (m, k, n): (usize, usize, usize)) -> Vec<f32> {
    let at = |i: usize, j: usize| (0..k).map(|p| wide(a[i * k + p]) * wide(b[p * n + j])).sum();
    (0..m * n).map(|at_| at(at_ / n, at_ % n)).collect()
}

fn transposed(x: &[u16], (rows, columns): (usize, usize)) -> Vec<u16> {
    (0..x.len()).map(|i| x[i % rows * columns + i / rows]).collect()
}

fn rows(data: &[u16], len: usize) -> Rows<'_> {
    let width = data.len() / len;
    Rows { data, stride: width, width, len }
}

#[test]
fn products_of_every_form_are_exact() -> Result<()> {
    if !available() {
        return Ok(());
    }
    for (m, k, n) in [(1, 2, 1), (6, 4, 16), (7, 10, 17), (13, 6, 70), (6, 64, 128), (5, 8, 47)] {
        let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
        let (a_across, b_across) = (transposed(&a, (m, k)), transposed(&b, (k, n)));
        let reference = expected(&a, &b, (m, k, n));
        for first in [Pairs::of(rows(&a, m))?, Pairs::transposed(rows(&a_across, k))?] {
            for second in [Columns::of(rows(&b, k))?, Columns::transposed(rows(&b_across, n))?] {
                let width = second.width;
                let mut to = vec![0.0; m.next_multiple_of(ROWS) * width];
                for (into, times) in [(Write::New, 1.0), (Write::Sum, 2.0)] {
                    for row in (0..m).step_by(ROWS) {
                        for s in 0..second.strips() {
                            let to = &mut to[row * width + s * STRIP..];
                            // SAFETY: the test has checked that the processor has these instructions.
                            #[allow(unsafe_code)]
                            unsafe {
                                product(first.rows(row), second.strip(s), to, width, into);
                            }
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

#[test]
fn rows_may_lie_apart_and_an_odd_one_is_joined_by_zeros() -> Result<()> {
    let data = numbers(3 * 8, 3);
    let apart = Rows { data: &data[2..], stride: 8, width: 4, len: 3 };
    let packed = Pairs::transposed(apart)?;
    let pair = |first: u16, second: u16| u32::from(first) | u32::from(second) << 16;
    assert_eq!(packed.pairs, 2);
    assert_eq!(
        packed.rows(0)[..4],
        [pair(data[2], data[10]), pair(data[18], 0), pair(data[3], data[11]), pair(data[19], 0)]
    );
    Ok(())
}

#[test]
fn powers_of_two_are_exact_enough_everywhere() {
    if !available() {
        return;
    }
    for start in -3000..200 {
        let from: [f32; LANES] = std::array::from_fn(|lane| (start as f32 + lane as f32 / 16.0) / 20.0);
        let mut to = [0u16; 2 * LANES];
        // SAFETY: the test has checked that the processor has these instructions.
        #[allow(unsafe_code)]
        let sum = unsafe { total(exp2(load(&from))) };
        let exact: f32 = from.iter().map(|x| x.exp2()).sum();
        assert!((sum - exact).abs() <= 5e-6 * exact + 1e-37, "{start}: {sum} {exact}");
        // SAFETY: the test has checked that the processor has these instructions.
        #[allow(unsafe_code)]
        unsafe {
            round(&from, &mut to[..LANES]);
        }
        for (bits, number) in to.iter().zip(from) {
            assert!((wide(*bits) - number).abs() <= number.abs() / 256.0);
        }
        assert_eq!(to[LANES..], [0; LANES], "nothing is written behind the end");
    }
    // SAFETY: the test has checked that the processor has these instructions.
    #[allow(unsafe_code)]
    let nothing = unsafe { total(exp2(load(&[f32::NEG_INFINITY; LANES]))) };
    assert_eq!(nothing, 0.0);
}

#[test]
fn no_room_is_an_error_that_smaller_parts_might_not_have() {
    let found = zeros::<f32>(usize::MAX / 2);
    assert!(matches!(&found, Err(DivaError::Device { .. })));
    assert!(found.err().is_some_and(|err| err.is_out_of_memory()));
}
