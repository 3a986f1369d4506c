//! The activations of CLIP towers and denoisers, by the names that their configurations use.

use crate::torch::{Kind, Tensor};
use serde::Deserialize;

use crate::autograd::{apply, Backward};
use crate::error::Result;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x * sigmoid(1.702 x): OpenAI's CLIP.
    QuickGelu,
    /// The exact form, with erf.
    Gelu,
    /// The tanh approximation: transformers' SigLIP, DiT's feed-forward.
    GeluTanh,
    Silu,
}

impl Activation {
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Activation::QuickGelu => quick_gelu(x)?,
            Activation::Gelu => x.f_gelu("none")?,
            Activation::GeluTanh => x.f_gelu("tanh")?,
            Activation::Silu => x.f_silu()?,
        })
    }
}

/// Its gradient is that of silu at 1.702 x: one pass and one tensor kept, where autograd needs five and two.
fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    apply(&[x], || {
        let scaled = x.f_mul_scalar(1.702)?;
        Ok((scaled.f_sigmoid()?.f_mul_(x)?, OfSilu(scaled)))
    })
}

/// silu(x) in dtype `kind`; its backward pass takes the gradient in that dtype as it is.
pub fn narrow_silu(x: &Tensor, kind: Kind) -> Result<Tensor> {
    if x.f_kind()? == kind {
        return Ok(x.f_silu()?);
    }
    apply(&[x], || Ok((x.f_silu()?.f_to_kind(kind)?, OfSilu(x.f_detach()?))))
}

struct OfSilu(Tensor);

impl Backward for OfSilu {
    fn backward(&self, gradient: &Tensor, _needed: &[bool]) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(self.0.f_silu_backward(gradient)?)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::Device;

    #[test]
    fn quick_gelu_is_x_times_a_sigmoid() -> Result<()> {
        crate::torch::manual_seed(0);
        let x =
            Tensor::randn([50, 40], (Kind::Double, Device::Cpu)).f_mul_scalar(4.0)?.set_requires_grad(true);
        let scales = x.f_randn_like()?;
        let [ours, theirs] =
            [Activation::QuickGelu.forward(&x)?, x.f_mul(&x.f_mul_scalar(1.702)?.f_sigmoid()?)?];
        let gradient = |output: &Tensor| -> Result<Tensor> {
            let loss = output.f_mul(&scales)?.f_sum(Kind::Double)?;
            Ok(Tensor::f_run_backward(&[&loss], &[&x], false, false)?.swap_remove(0))
        };
        for (mine, other) in [(ours.detach(), theirs.detach()), (gradient(&ours)?, gradient(&theirs)?)] {
            assert!(mine.f_sub(&other)?.f_abs()?.f_max()?.f_double_value(&[])? < 1e-13);
        }
        Ok(())
    }

    #[test]
    fn a_narrow_silu_is_a_silu_and_a_cast() -> Result<()> {
        crate::torch::manual_seed(0);
        let x = Tensor::randn([50, 40], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let scales = x.f_randn_like()?.f_to_kind(Kind::BFloat16)?;
        let gradient = |output: &Tensor| -> Result<Tensor> {
            assert_eq!(output.kind(), Kind::BFloat16);
            let loss = output.f_mul(&scales)?.f_sum(Kind::Float)?;
            Ok(Tensor::f_run_backward(&[&loss], &[&x], false, false)?.swap_remove(0))
        };
        let [ours, theirs] = [narrow_silu(&x, Kind::BFloat16)?, x.f_silu()?.f_to_kind(Kind::BFloat16)?];
        assert_eq!(ours.detach(), theirs.detach());
        assert_eq!(gradient(&ours)?, gradient(&theirs)?);
        Ok(())
    }
}
