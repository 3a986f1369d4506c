//! The gated unit of denoisers' feed-forward layers.

use crate::torch::{Device, Tensor};

use crate::autograd::{apply, Backward};
use crate::error::Result;

/// Elements of a block on a CPU: what a pass leaves is still in the caches for the next one.
const BLOCK: i64 = 1 << 18;

/// value * gelu(gate) of (..., 2 W), value before gate (arXiv 2002.05202), with the exact GELU:
/// (..., W). The graph keeps the input alone; autograd's own way, over views of it, writes their
/// gradients into zeros, twice, and adds these up.
pub fn geglu(both: &Tensor) -> Result<Tensor> {
    apply(&[both], || {
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
        if self.both.device() != Device::Cpu {
            return Ok(vec![Some(at_both_at_once(&self.both, gradient)?)]);
        }
        let width = self.both.size().last().copied().unwrap_or(0).max(2);
        let rows = (BLOCK / width).max(1);
        let blocks = |x: &Tensor, width: i64| x.f_reshape([-1, width])?.f_split(rows, 0);
        let (both, gradient) = (blocks(&self.both, width)?, blocks(gradient, width / 2)?);
        let found = both.iter().zip(&gradient).map(|(both, gradient)| at_both(both, gradient));
        let found = Tensor::f_cat(&found.collect::<Result<Vec<_>>>()?, 0)?;
        Ok(vec![Some(found.f_view(self.both.size().as_slice())?)])
    }
}

/// The gradient at value and gate, given the one at the product.
fn at_both(both: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let (value, gate) = halves(both)?;
    let at_value = gradient.f_mul(&gate.f_gelu("none")?)?;
    let at_gate = gate.f_gelu_backward(&gradient.f_mul(&value)?, "none")?;
    Ok(Tensor::f_cat(&[at_value, at_gate], -1)?)
}

/// The same without putting two results together: each part is written where it belongs.
fn at_both_at_once(both: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let at = both.f_contiguous()?.f_empty_like()?;
    let ((value, gate), (at_value, at_gate)) = (halves(both)?, halves(&at)?);
    let _ = gradient.f_mul_out(&at_value, &gate.f_gelu("none")?)?;
    let _ = gate.f_gelu_backward_grad_input(&at_gate, &gradient.f_mul(&value)?, "none")?;
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::Kind;

    #[test]
    fn the_gradient_is_autograds() -> Result<()> {
        crate::torch::manual_seed(0);
        for size in [[1, 1, 2], [2, 3, 10], [3, 700, 128]] {
            let both = Tensor::randn(size, (Kind::Double, Device::Cpu)).set_requires_grad(true);
            let halves = both.f_chunk(2, -1)?;
            let outputs = [geglu(&both)?, halves[0].f_mul(&halves[1].f_gelu("none")?)?];
            let scales = outputs[1].f_randn_like()?;
            let gradient = |output: &Tensor| -> Result<Tensor> {
                let loss = output.f_mul(&scales)?.f_sum(Kind::Double)?;
                Ok(Tensor::f_run_backward(&[&loss], &[&both], false, false)?.swap_remove(0))
            };
            let [ours, theirs] = &outputs;
            assert_eq!(ours.detach(), theirs.detach());
            let (given, at) = (both.detach(), scales.detach());
            assert_eq!(at_both_at_once(&given, &at)?, at_both(&given, &at)?);
            assert!(
                gradient(ours)?.f_sub(&gradient(theirs)?)?.f_abs()?.f_max()?.f_double_value(&[])? < 1e-14
            );
        }
        Ok(())
    }
}
