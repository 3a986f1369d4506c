//! The gated unit of denoisers' feed-forward layers.

use crate::torch::Tensor;

use crate::autograd::{apply, Backward};
use crate::error::Result;

/// value * gelu(gate) of (..., 2 W), value before gate (arXiv 2002.05202), with the exact GELU:
/// (..., W). The graph keeps the input alone; autograd's own way, over views of it, writes their
/// gradients into zeros, twice, and adds these up.
pub fn geglu(both: &Tensor) -> Result<Tensor> {
    apply(&[both], || {
        #[cfg(target_arch = "x86_64")]
        if let Some(gated) = kernel::forward(both)? {
            return Ok((gated, Kept { both: both.f_detach()? }));
        }
        let (value, gate) = halves(both)?;
        let mut gated = gate.f_gelu("none")?;
        Ok((gated.f_mul_(&value)?, Kept { both: both.f_detach()? }))
    })
}

/// Value and gate, as views.
fn halves(both: &Tensor) -> Result<(Tensor, Tensor)> {
    let width = both.size().last().copied().unwrap_or(0) / 2;
    Ok((both.f_narrow(-1, 0, width)?, both.f_narrow(-1, width, width)?))
}

struct Kept {
    both: Tensor,
}

impl Backward for Kept {
    fn backward(&self, gradient: &Tensor, _needed: &[bool]) -> Result<Vec<Option<Tensor>>> {
        #[cfg(target_arch = "x86_64")]
        if let Some(found) = kernel::backward(&self.both, gradient)? {
            return Ok(vec![Some(found)]);
        }
        Ok(vec![Some(at_both(&self.both, gradient)?)])
    }
}

/// The gradient at value and gate, given the one at the product.
fn at_both(both: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let at = both.f_contiguous()?.f_empty_like()?;
    let ((value, gate), (at_value, at_gate)) = (halves(both)?, halves(&at)?);
    let _ = gradient.f_mul_out(&at_value, &gate.f_gelu("none")?)?;
    let _ = gate.f_gelu_backward_grad_input(&at_gate, &gradient.f_mul(&value)?, "none")?;
    Ok(at)
}

/// On a CPU each pass reads its inputs once and writes its result.
#[cfg(target_arch = "x86_64")]
mod kernel {
    use std::f32::consts::{FRAC_1_SQRT_2, LOG2_E};

    use super::Result;
    use crate::nn::stored::Stored;
    use crate::simd::{exp2, widest, Work};
    use crate::threads;
    use crate::torch::{Device, Kind, Tensor};

    /// Numbers of a result that a thread takes at a time.
    const BLOCK: usize = 1 << 15;

    /// `None`: not of a tensor that this pass takes.
    pub fn forward(both: &Tensor) -> Result<Option<Tensor>> {
        Ok(match kind(both)? {
            Some(Kind::BFloat16) => Some(gated::<u16>(both)?),
            Some(Kind::Float) => Some(gated::<f32>(both)?),
            _ => None,
        })
    }

    pub fn backward(both: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(match kind(both)? {
            Some(Kind::BFloat16) => Some(at_both::<u16>(both, gradient)?),
            Some(Kind::Float) => Some(at_both::<f32>(both, gradient)?),
            _ => None,
        })
    }

    fn kind(both: &Tensor) -> Result<Option<Kind>> {
        Ok((both.device() == Device::Cpu && both.numel() > 0).then(|| both.f_kind()).transpose()?)
    }

    /// The cumulative normal distribution and its density, to 1e-7 (Abramowitz and Stegun, 7.1.26).
    #[inline(always)]
    fn normal(x: f32) -> (f32, f32) {
        const REST: [f32; 4] = [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6];
        const DENSITY: f32 = 0.398_942_3; // 1 / sqrt(2 pi)
        let t = 1.0 / (1.0 + 0.327_591_1 * FRAC_1_SQRT_2 * x.abs());
        let power = exp2(x * x * (-0.5 * LOG2_E));
        let mut sum = 1.061_405_4;
        for coefficient in REST {
            sum = sum * t + coefficient;
        }
        let tail = 0.5 * sum * t * power;
        (if x < 0.0 { tail } else { 1.0 - tail }, DENSITY * power)
    }

    struct Gate<'a, T> {
        to: &'a mut [T],
        value: &'a [T],
        gate: &'a [T],
    }

    impl<T: Stored> Work for Gate<'_, T> {
        type Output = ();

        #[inline(always)]
        fn run(self) {
            for ((to, value), gate) in self.to.iter_mut().zip(self.value).zip(self.gate) {
                let gate = gate.wide();
                *to = T::round(value.wide() * (gate * normal(gate).0));
            }
        }
    }

    struct At<'a, T> {
        at_value: &'a mut [T],
        at_gate: &'a mut [T],
        value: &'a [T],
        gate: &'a [T],
        gradient: &'a [T],
    }

    impl<T: Stored> Work for At<'_, T> {
        type Output = ();

        #[inline(always)]
        fn run(self) {
            let (to, from) = (self.at_value.iter_mut().zip(self.at_gate), self.value.iter().zip(self.gate));
            for (((at_value, at_gate), (value, gate)), gradient) in to.zip(from).zip(self.gradient) {
                let (gate, gradient) = (gate.wide(), gradient.wide());
                let (share, density) = normal(gate);
                *at_value = T::round(gradient * (gate * share));
                *at_gate = T::round(gradient * value.wide() * (share + gate * density));
            }
        }
    }

    fn gated<T: Stored>(both: &Tensor) -> Result<Tensor> {
        let (mut size, both) = (both.size(), T::plain(both)?);
        let numbers = T::numbers(&both)?;
        let width = size.last_mut().map_or(0, |last| {
            *last /= 2;
            *last as usize
        });
        T::written(&size, |to| {
            threads::rows(to, width, BLOCK.div_ceil(width), |row, to| {
                let (value, gate) = numbers[2 * width * row..][..2 * width].split_at(width);
                widest(Gate { to, value, gate });
            })
        })
    }

    fn at_both<T: Stored>(both: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let (size, both, gradient) = (both.size(), T::plain(both)?, T::plain(gradient)?);
        let (numbers, gradient) = (T::numbers(&both)?, T::numbers(&gradient)?);
        let width = size.last().map_or(0, |last| *last as usize / 2);
        T::written(&size, |to| {
            threads::rows(to, 2 * width, BLOCK.div_ceil(2 * width), |row, to| {
                let (value, gate) = numbers[2 * width * row..][..2 * width].split_at(width);
                let (at_value, at_gate) = to.split_at_mut(width);
                let gradient = &gradient[width * row..][..width];
                widest(At { at_value, at_gate, value, gate, gradient });
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::{Device, Kind};

    #[test]
    fn the_gradient_is_autograds() -> Result<()> {
        crate::torch::manual_seed(0);
        for (kind, bound) in [(Kind::Double, 1e-14), (Kind::Float, 2e-6), (Kind::BFloat16, 6e-3)] {
            for size in [[1, 1, 2], [2, 3, 10], [3, 700, 128], [2, 5, 2002]] {
                let given =
                    Tensor::randn(size, (Kind::Double, Device::Cpu)).f_mul_scalar(2.0)?.f_to_kind(kind)?;
                // Of halves that do not lie as they are read, too.
                let given = if size[1] == 3 { given.f_transpose(0, 1)? } else { given };
                let [both, exact] =
                    [&given, &given.f_to_kind(Kind::Double)?].map(|x| x.detach().set_requires_grad(true));
                let halves = exact.f_chunk(2, -1)?;
                let outputs = [geglu(&both)?, halves[0].f_mul(&halves[1].f_gelu("none")?)?];
                let scales = outputs[0].f_randn_like()?;
                let gradient = |output: &Tensor, at: &Tensor| -> Result<Tensor> {
                    let loss = output.f_mul(&scales)?.f_sum(Kind::Double)?;
                    Ok(Tensor::f_run_backward(&[&loss], &[at], false, false)?.swap_remove(0))
                };
                let [ours, theirs] = &outputs;
                let expected = gradient(theirs, &exact)?;
                for (mine, other) in [
                    (ours.detach(), &theirs.detach()),
                    (gradient(ours, &both)?, &expected),
                    (at_both(&given, &scales)?, &expected),
                ] {
                    assert_eq!((mine.kind(), mine.size()), (kind, other.size()));
                    let off = mine.f_sub(other)?.f_norm()?.f_double_value(&[])?;
                    assert!(off <= bound * other.f_norm()?.f_double_value(&[])?, "{kind:?}: {off}");
                }
            }
        }
        Ok(())
    }
}
