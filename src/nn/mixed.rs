//! A linear layer whose weights stay in a wider dtype than its products: the float32 weights that
//! are trained in bf16.
//!
//! A cast within the graph would keep the narrow weight from the forward pass to the backward pass,
//! which for a whole tower is half of the weights' memory again while the denoiser runs. Here the
//! weight is cast in both passes and not kept between them, unless the layer holds it.

use crate::torch::{Kind, Tensor};

use super::Linear;
use crate::autograd::{apply, Backward};
use crate::error::Result;

/// x (..., in) of a narrow dtype, weight (out, in) and bias (out,) of a wider one -> (..., out) in
/// the dtype of `x`. The gradients of weight and bias arrive in their own dtype; that of the weight
/// at its leaf, and in the dtype of that, where it has one.
pub fn mixed_linear(x: &Tensor, layer: &Linear) -> Result<Tensor> {
    let Linear { weight, bias, .. } = layer;
    let at = layer.leaf.as_ref().unwrap_or(weight);
    let mut inputs = vec![x, at];
    inputs.extend(bias);
    apply(&inputs, || {
        let kind = x.f_kind()?;
        let bias = bias.as_ref().map(|bias| bias.f_to_kind(kind)).transpose()?;
        let narrow = weight.f_to_kind(kind)?;
        let output = x.f_linear(&narrow, bias)?;
        let kinds = (at.f_kind()?, weight.f_kind()?);
        let weight = if layer.holds { narrow } else { weight.f_detach()? };
        Ok((output, Kept { x: x.f_detach()?, weight, kinds }))
    })
}

struct Kept {
    x: Tensor,
    weight: Tensor,
    /// Of the gradients of weight and bias.
    kinds: (Kind, Kind),
}

impl Backward for Kept {
    fn backward(&self, gradient: &Tensor, needed: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let (narrow, (at_leaf, wide)) = (self.x.f_kind()?, self.kinds);
        let wants = |index: usize| needed.get(index).copied().unwrap_or(false);
        let rows = |x: &Tensor| -> Result<Tensor> {
            let width = x.size().last().copied().unwrap_or(1);
            Ok(x.f_reshape([-1, width])?)
        };
        let at_output = rows(gradient)?;
        let at_x = |_| -> Result<Tensor> {
            let product = at_output.f_mm(&self.weight.f_to_kind(narrow)?)?;
            Ok(product.f_view(self.x.size().as_slice())?)
        };
        let at_weight = |_| -> Result<Tensor> {
            // Where a narrow gradient is wanted its product is narrow, too.
            let product = if at_leaf == Kind::BFloat16 { at_leaf } else { narrow };
            let (at_output, x) = (at_output.f_to_kind(product)?, rows(&self.x)?.f_to_kind(product)?);
            Ok(at_output.f_tr()?.f_mm(&x)?.f_to_kind(at_leaf)?)
        };
        let at_bias = |_| -> Result<Tensor> { Ok(at_output.f_sum_dim_intlist(0, false, wide)?) };
        Ok(vec![
            wants(0).then_some(()).map(at_x).transpose()?,
            wants(1).then_some(()).map(at_weight).transpose()?,
            wants(2).then_some(()).map(at_bias).transpose()?,
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::Device;

    #[test]
    fn gradients_are_those_of_a_cast_within_the_graph() -> Result<()> {
        crate::torch::manual_seed(0);
        let randn = |size: &[i64]| Tensor::randn(size, (Kind::Double, Device::Cpu)).set_requires_grad(true);
        for (biased, frozen) in [(true, false), (false, false), (true, true)] {
            let (x, weight, bias) = (randn(&[2, 3, 5]), randn(&[7, 5]), randn(&[7]));
            let weight = if frozen { weight.detach() } else { weight };
            let narrow = x.f_to_kind(Kind::Float)?;
            let bias = biased.then_some(&bias);
            let cast = |x: &Tensor| x.f_to_kind(Kind::Float);
            let layer = |holds| {
                let own = bias.map(Tensor::shallow_clone);
                Linear { holds, ..Linear::new(weight.shallow_clone(), own) }
            };
            let reference = narrow.f_linear(&cast(&weight)?, bias.map(cast).transpose()?)?;
            let outputs =
                [mixed_linear(&narrow, &layer(false))?, mixed_linear(&narrow, &layer(true))?, reference];
            let mut leaves = vec![&x];
            leaves.extend((!frozen).then_some(&weight));
            leaves.extend(bias);
            let scales = Tensor::randn([2, 3, 7], (Kind::Float, Device::Cpu));
            let gradients = |output: &Tensor| {
                assert_eq!(output.kind(), Kind::Float);
                Tensor::f_run_backward(&[output.f_mul(&scales)?.f_sum(Kind::Float)?], &leaves, false, false)
            };
            let [again, held, theirs] = outputs.each_ref().map(gradients);
            let theirs = theirs?;
            for (mine, other) in again?.iter().chain(&held?).zip(theirs.iter().chain(&theirs)) {
                assert_eq!((mine.kind(), mine.size()), (Kind::Double, other.size()));
                assert!(mine.f_sub(other)?.f_abs()?.f_max()?.f_double_value(&[])? < 1e-6);
            }
        }
        Ok(())
    }
}
