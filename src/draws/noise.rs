//! Gaussian noise: Box-Muller (Ann. Math. Statist. 29, 1958) over the words of a ChaCha8 stream.
//!
//! Each block of 64 words gives the 64 values at the same place. The logarithm, sine and cosine are series of float32
//! additions, products and quotients, which IEEE 754 fixes to the bit on every processor (a C library's are not), and
//! which the compiler turns into SIMD. A ziggurat (`rand_distr`) takes
//! more than twice the time: it reads twice the random words and branches on each.

use std::f32::consts::{FRAC_PI_4, LN_2};

use rand_chacha::rand_core::RngCore;

use super::keys::{Key, Purpose};
use super::DrawPlan;

/// Words, and values, of a block. Part of the definition of the noise.
const BLOCK: usize = 64;
const HALF: usize = BLOCK / 2;
/// Values that a task fills, at least: a thread takes as long to start. Scheduling only: no value depends on it.
const TASK: usize = 16384;

/// Fills `out` (B, N, latent), in parallel over the draws.
pub(super) fn fill(
    plan: &DrawPlan,
    ids: &[u64],
    epoch: u64,
    purpose: Purpose,
    latent: usize,
    out: &mut [f32],
) {
    plan.rows(ids, out, latent, (TASK / latent).max(1), |id, draw, row| {
        fill_row(&plan.key(id, epoch, draw, purpose), row);
    });
}

fn fill_row(key: &Key, values: &mut [f32]) {
    let mut rng = key.rng(0);
    let (mut bytes, mut words, mut block) = ([0; 4 * BLOCK], [0; BLOCK], [0.0; BLOCK]);
    for part in values.chunks_mut(BLOCK) {
        rng.fill_bytes(&mut bytes);
        for (word, four) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = <[u8; 4]>::try_from(four).map_or(0, u32::from_le_bytes);
        }
        normals(&words, &mut block);
        part.iter_mut().zip(&block).for_each(|(value, &normal)| *value = normal);
    }
}

/// One block: word i of the first half is the radius, word i of the second the angle of values i and i + HALF.
fn normals(words: &[u32; BLOCK], out: &mut [f32; BLOCK]) {
    let (radii, angles) = words.split_at(HALF);
    let (first, second) = out.split_at_mut(HALF);
    let inputs = radii.iter().zip(angles);
    for ((x, y), (&radius, &angle)) in first.iter_mut().zip(second).zip(inputs) {
        let r = radius_of(radius);
        let (cos, sin) = cos_sin(angle);
        (*x, *y) = (r * cos, r * sin);
    }
}

/// sqrt(-2 ln u), u uniform in (0, 1] in steps of 2^-31: at most 6.66.
#[inline(always)]
fn radius_of(word: u32) -> f32 {
    let u = ((word >> 1) as i32 as f32 + 0.5) * (1.0 / (1u32 << 31) as f32);
    // u = 2^e * m with m in [sqrt(1/2), sqrt(2)), then ln m = 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.172.
    let bits = u.to_bits() as i32;
    let e = (bits - std::f32::consts::FRAC_1_SQRT_2.to_bits() as i32) >> 23;
    let m = f32::from_bits((bits - (e << 23)) as u32);
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let series = (((z * (1.0 / 9.0) + 1.0 / 7.0) * z + 1.0 / 5.0) * z + 1.0 / 3.0) * z + 1.0;
    (-2.0 * (e as f32 * LN_2 + 2.0 * s * series)).sqrt()
}

/// Cosine and sine of the angle: two bits choose the quadrant, thirty the place within it, -pi/4 to pi/4.
#[inline(always)]
fn cos_sin(word: u32) -> (f32, f32) {
    let quadrant = word >> 30;
    let f = (word << 2) as i32 as f32 * (FRAC_PI_4 / (1u32 << 31) as f32);
    let g = f * f;
    let sin = ((((g * (1.0 / 362880.0) - 1.0 / 5040.0) * g + 1.0 / 120.0) * g - 1.0 / 6.0) * g + 1.0) * f;
    let cos = (((g * (1.0 / 40320.0) - 1.0 / 720.0) * g + 1.0 / 24.0) * g - 0.5) * g + 1.0;
    // A turn by quadrant * pi/2: odd ones swap the two, and the signs follow. Bits instead of branches.
    let odd = 0u32.wrapping_sub(quadrant & 1);
    let swap = (cos.to_bits() ^ sin.to_bits()) & odd;
    let sin_sign = (quadrant >> 1) << 31;
    let cos_sign = sin_sign ^ (odd & 1 << 31);
    (f32::from_bits(cos.to_bits() ^ swap ^ cos_sign), f32::from_bits(sin.to_bits() ^ swap ^ sin_sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key { seed: 1, id: 2, epoch: 3, draw: 4, purpose: Purpose::Noise };

    /// Box-Muller in float64, with the functions of the C library.
    fn reference(radius: u32, angle: u32) -> (f64, f64) {
        let u = (f64::from(radius >> 1) + 0.5) / f64::from(1u32 << 31);
        let turn = f64::from(angle >> 30) + f64::from((angle << 2) as i32) / 2f64.powi(32);
        let (sin, cos) = (turn * std::f64::consts::FRAC_PI_2).sin_cos();
        let r = (-2.0 * u.ln()).sqrt();
        (r * cos, r * sin)
    }

    #[test]
    fn every_value_is_box_mullers() {
        let edges = [0, 1, 2, 3, 1 << 29, 1 << 30, 1 << 31, 3 << 30, u32::MAX - 1, u32::MAX];
        let mut rng = KEY.rng(9);
        let chance = (0..20_000).map(|_| (rng.next_u32(), rng.next_u32())).collect::<Vec<_>>();
        let corners = edges.iter().flat_map(|&radius| edges.map(|angle| (radius, angle)));
        for (radius, angle) in chance.into_iter().chain(corners) {
            let (cos, sin) = cos_sin(angle);
            let r = radius_of(radius);
            let (x, y) = reference(radius, angle);
            // Where u rounds to 1 the radius is off by the rounding of u: sqrt(2 * 2^-25) at most.
            let slack = if u32::MAX - radius < 1 << 9 { 3e-4 } else { 2e-6 };
            assert!((f64::from(r * cos) - x).abs() < slack, "{radius} {angle}: {} {x}", r * cos);
            assert!((f64::from(r * sin) - y).abs() < slack, "{radius} {angle}: {} {y}", r * sin);
        }
    }

    #[test]
    fn a_shorter_row_is_the_start_of_a_longer_one() {
        let (mut long, mut short) = ([0.0; 5 * BLOCK + 7], [0.0; BLOCK + 3]);
        fill_row(&KEY, &mut long);
        fill_row(&KEY, &mut short);
        assert_eq!(short, long[..short.len()]);
    }
}
