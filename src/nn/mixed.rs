//! Layers whose weights, activations and products differ in dtype: float32 weights that are trained in bf16, and bf16
//! networks that are multiplied in float32.
//!
//! A cast within the graph would keep its result from the forward pass to the backward pass, which for the weights of a
//! whole network is gigabytes. Here a weight is cast in both passes and not kept between them.

use crate::torch::{Device, Kind, Tensor};

use super::products::row_major;
use super::Linear;
use crate::autograd::{apply, Backward};
use crate::error::Result;

/// x (..., in) rounded to dtype `output` and multiplied in `compute` -> (..., out) in dtype `output`. The gradients arrive
/// in the dtypes of what they belong to; that of the weight at its leaf, where it has one.
pub fn mixed_linear(x: &Tensor, layer: &Linear, compute: Kind, output: Kind) -> Result<Tensor> {
    let own = (&layer.weight, layer.bias.as_ref());
    let at = layer.leaf.as_ref().filter(|_| own.0.requires_grad()).unwrap_or(own.0);
    let mut inputs = vec![x, at];
    inputs.extend(own.1);
    apply(&inputs, || {
        let cast = |tensor: &Tensor| tensor.f_to_kind(compute);
        let (weight, bias) = match &layer.copy {
            Some((weight, bias)) if weight.f_kind()? == compute => (weight, bias.as_ref()),
            _ => own,
        };
        let (narrow, ready) = (row_major(x, output)?, cast(weight)?);
        let found = cast(&narrow)?.f_linear(&ready, bias.map(cast).transpose()?)?;
        let learns = at.requires_grad();
        let kept = OfLinear {
            x: learns.then(|| narrow.f_detach()).transpose()?,
            weight: if layer.holds && learns { ready } else { weight.f_detach()? },
            kinds: (at.f_kind()?, own.0.f_kind()?),
            size: x.size(),
            kind: x.f_kind()?,
            compute,
        };
        Ok((found.f_to_kind(output)?, kept))
    })
}

struct OfLinear {
    x: Option<Tensor>, // where the weight learns
    weight: Tensor,
    /// Of the gradients of weight and bias.
    kinds: (Kind, Kind),
    size: Vec<i64>, // of x
    kind: Kind,     // of x
    compute: Kind,
}

impl Backward for OfLinear {
    fn backward(&self, gradient: &Tensor, needed: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let wants = |index: usize| needed.get(index).copied().unwrap_or(false);
        let rows = |x: &Tensor| -> Result<Tensor> {
            let width = x.size().last().copied().unwrap_or(1);
            Ok(row_major(x, self.compute)?.f_reshape([-1, width])?)
        };
        let at_output = rows(gradient)?;
        let at_x = |_| -> Result<Tensor> {
            let found = product(&at_output, &self.weight.f_to_kind(self.compute)?, self.kind)?;
            Ok(found.f_view(self.size.as_slice())?)
        };
        let at_weight = |x: &Tensor| {
            // Where a narrow gradient is wanted its product is narrow, too.
            let kind = if self.kinds.0 == Kind::BFloat16 { self.kinds.0 } else { self.compute };
            product(&at_output.f_to_kind(kind)?.f_tr()?, &rows(x)?.f_to_kind(kind)?, self.kinds.0)
        };
        let at_bias = |_| -> Result<Tensor> { Ok(at_output.f_sum_dim_intlist(0, false, self.kinds.1)?) };
        Ok(vec![
            wants(0).then_some(()).map(at_x).transpose()?,
            self.x.as_ref().filter(|_| wants(1)).map(at_weight).transpose()?,
            wants(2).then_some(()).map(at_bias).transpose()?,
        ])
    }
}

/// a b in dtype `kind`. CUDA's products can write the float32 sums of bf16 factors; MPS has no such product.
fn product(a: &Tensor, b: &Tensor, kind: Kind) -> Result<Tensor> {
    if a.device() != Device::Cpu && (a.f_kind()?, kind) == (Kind::BFloat16, Kind::Float) {
        if let Ok(product) = a.f_mm_dtype(b, kind) {
            return Ok(product);
        }
    }
    Ok(a.f_mm(b)?.f_to_kind(kind)?)
}

/// A frozen function of x, such as a convolution, in `compute` -> its output in the dtype of `x`. `pull` gives the gradient
/// at an input of a size, given the one at the output.
pub fn mixed_function<P>(
    x: &Tensor,
    compute: Kind,
    function: impl FnOnce(&Tensor) -> Result<Tensor>,
    pull: P,
) -> Result<Tensor>
where
    P: Fn(&Tensor, &[i64]) -> Result<Tensor> + Send + 'static,
{
    apply(&[x], || {
        let (size, kind) = (x.size(), x.f_kind()?);
        let output = function(&x.f_to_kind(compute)?)?.f_to_kind(kind)?;
        Ok((output, OfFunction { pull, size, kind, compute }))
    })
}

struct OfFunction<P> {
    pull: P,
    size: Vec<i64>, // of x
    kind: Kind,     // of x
    compute: Kind,
}

impl<P: Fn(&Tensor, &[i64]) -> Result<Tensor> + Send> Backward for OfFunction<P> {
    fn backward(&self, gradient: &Tensor, _needed: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let found = (self.pull)(&gradient.f_to_kind(self.compute)?, &self.size)?;
        Ok(vec![Some(found.f_to_kind(self.kind)?)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{quick_attention, Conv2d, Wide};

    fn randn(size: &[i64], kind: Kind) -> Tensor {
        Tensor::randn(size, (kind, Device::Cpu)).set_requires_grad(true)
    }

    /// Output and gradients at `leaves` of sum(scales * output), as float64.
    fn both(output: &Tensor, scales: &Tensor, leaves: &[&Tensor]) -> Result<Vec<Tensor>> {
        let loss = output.f_mul(scales)?.f_sum(Kind::Float)?;
        let mut found = Tensor::f_run_backward(&[&loss], leaves, false, false)?;
        found.push(output.f_detach()?);
        Ok(found)
    }

    fn assert_near(ours: &[Tensor], theirs: &[Tensor], bound: f64) -> Result<()> {
        for (mine, other) in ours.iter().zip(theirs) {
            assert_eq!((mine.kind(), mine.size()), (other.kind(), other.size()));
            let off = mine.f_sub(other)?.f_abs()?.f_max()?.f_double_value(&[])?;
            assert!(off <= bound * other.f_abs()?.f_max()?.f_double_value(&[])?, "{off}");
        }
        Ok(())
    }

    #[test]
    fn gradients_are_those_of_a_cast_within_the_graph() -> Result<()> {
        crate::torch::manual_seed(0);
        for (biased, frozen) in [(true, false), (false, false), (true, true)] {
            let [x, weight, bias] = [&[2, 3, 5][..], &[7, 5], &[7]].map(|size| randn(size, Kind::Double));
            let weight = if frozen { weight.detach() } else { weight };
            let narrow = x.f_to_kind(Kind::Float)?;
            let bias = biased.then_some(&bias);
            let cast = |x: &Tensor| x.f_to_kind(Kind::Float);
            let mut leaves = vec![&x];
            leaves.extend((!frozen).then_some(&weight));
            leaves.extend(bias);
            let scales = Tensor::randn([2, 3, 7], (Kind::Float, Device::Cpu));
            let theirs = narrow.f_linear(&cast(&weight)?, bias.map(cast).transpose()?)?;
            let theirs = both(&theirs, &scales, &leaves)?;
            let mut layer = Linear::new(weight.shallow_clone(), bias.map(Tensor::shallow_clone));
            for copied in [false, true] {
                layer.holds = !copied;
                let ours = [
                    mixed_linear(&narrow, &layer, Kind::Float, Kind::Float)?,
                    layer.narrowed(&x, Kind::Float)?,
                ];
                for ours in ours {
                    assert_near(&both(&ours, &scales, &leaves)?, &theirs, 1e-6)?;
                }
                if !copied {
                    layer.copy_in(Kind::Float)?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn wide_layers_multiply_bf16_matrices_in_float32() -> Result<()> {
        crate::torch::manual_seed(0);
        let wide = |x: &Tensor| x.f_to_kind(Kind::Float);
        let narrow = |x: &Tensor| x.f_to_kind(Kind::BFloat16);
        for trained in [Kind::BFloat16, Kind::Float] {
            let (x, weight, bias) =
                (randn(&[2, 3, 64], Kind::BFloat16), randn(&[7, 64], trained), randn(&[7], trained));
            let scales = randn(&[2, 3, 7], Kind::BFloat16).detach();
            let theirs = narrow(&wide(&x)?.f_linear(&wide(&weight)?, Some(wide(&bias)?))?)?;
            let layer = Linear::new(weight.shallow_clone(), Some(bias.shallow_clone()));
            let _wide = Wide::set(true);
            let leaves = [&x, &weight, &bias];
            let ours = both(&layer.forward(&x)?, &scales, &leaves)?;
            assert_near(&ours, &both(&theirs, &scales, &leaves)?, 8e-3)?;
        }
        for (kernel, stride, padding) in [(3, 1, 1), (3, 2, 1), (3, 2, 0), (1, 1, 0)] {
            let (weight, x) =
                (randn(&[4, 3, kernel, kernel], Kind::BFloat16), randn(&[2, 3, 6, 7], Kind::BFloat16));
            let conv = Conv2d { weight: weight.detach(), bias: None, stride, padding };
            let theirs = narrow(&conv.plain(&wide(&x)?)?)?;
            let scales = theirs.f_randn_like()?;
            let _wide = Wide::set(true);
            let ours = both(&conv.forward(&x)?, &scales, &[&x])?;
            assert_near(&ours, &both(&theirs, &scales, &[&x])?, 8e-3)?;
        }
        let [query, key, value] = [5, 4, 4].map(|length| randn(&[2, length, 6], Kind::BFloat16)); // heads of an odd width
        let theirs = crate::nn::attention(&wide(&query)?, &wide(&key)?, &wide(&value)?, 2)?;
        let _wide = Wide::set(true);
        let scales = randn(&[2, 5, 6], Kind::BFloat16).detach();
        let leaves = [&query, &key, &value];
        let ours = both(&quick_attention(&query, &key, &value, 2)?, &scales, &leaves)?;
        assert_near(&ours, &both(&narrow(&theirs)?, &scales, &leaves)?, 8e-3)
    }
}
