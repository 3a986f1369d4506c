//! Loops over numbers that the compiler makes vector instructions of, and what they need beside sums and products.

/// A loop over what it holds. `run` is always inlined, so that it is compiled for the instructions of its caller.
pub trait Work {
    type Output;
    fn run(self) -> Self::Output;
}

/// The work, compiled for the widest vectors of the processor. (A closure in its place may not be inlined, and is then
/// compiled for any processor.)
#[inline(always)]
pub fn widest<W: Work>(work: W) -> W::Output {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn in_512_bits<W: Work>(work: W) -> W::Output {
        work.run()
    }
    #[target_feature(enable = "avx2")]
    fn in_256_bits<W: Work>(work: W) -> W::Output {
        work.run()
    }
    let wide = is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl");
    // SAFETY: the processor has the instructions.
    #[allow(unsafe_code)]
    unsafe {
        match (wide, is_x86_feature_detected!("avx2")) {
            (true, _) => in_512_bits(work),
            (_, true) => in_256_bits(work),
            _ => work.run(),
        }
    }
}

/// 2^x to 3e-7, for x of at most 127; 2^-126 for all below.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    const WHOLE: f32 = 12_582_912.0; // added to a number it leaves the nearest whole one in the last bits
    const LEAST: [f32; 6] =
        [1.333_355_2e-3, 9.618_129e-3, 5.550_411e-2, 2.402_265e-1, std::f32::consts::LN_2, 1.0];
    let x = if x > -126.0 { x } else { -126.0 };
    let shifted = x + WHOLE;
    let rest = x - (shifted - WHOLE);
    let mut power = 1.539_904_5e-4;
    for coefficient in LEAST {
        power = power * rest + coefficient;
    }
    f32::from_bits(power.to_bits().wrapping_add(shifted.to_bits().wrapping_shl(23)))
}

/// 1 / (1 + e^-x)
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    let power = -x * std::f32::consts::LOG2_E;
    1.0 / (1.0 + exp2(if power < 126.0 { power } else { 126.0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_and_sigmoids_are_those_of_float64() {
        for i in -100_000..=100_000 {
            let x = i as f32 * 1.25e-3;
            let (power, exact) = (f64::from(exp2(x)), f64::from(x).exp2());
            assert!((power / exact - 1.0).abs() < 3e-7, "{x}");
            let (found, exact) = (f64::from(sigmoid(x)), 1.0 / (1.0 + (-f64::from(x)).exp()));
            let bound = (4e-7 + 1e-7 * f64::from(x).abs()) * exact; // x log2(e) is rounded
            assert!((found - exact).abs() < bound + 2e-38, "{x}: {found} {exact}");
        }
        for (x, expected) in [(-1e30, 0.0), (f32::NEG_INFINITY, 0.0), (1e30, 1.0), (f32::INFINITY, 1.0)] {
            assert!((sigmoid(x) - expected).abs() < 1e-37);
        }
    }
}
