//! Rotary positions over rows and columns (arXiv 2104.09864), as diffusers' `FluxPosEmbed` and `apply_rotary_emb` have
//! them: pairs of neighbouring channels turn by an angle. Text stands at position zero and does not turn.

use crate::torch::{Kind, Tensor};

use super::config::Flux;
use crate::denoiser::embeddings::count;
use crate::error::Result;

pub struct Rotary {
    cos: Tensor, // (1, S + P, 1, d) float32
    sin: Tensor,
}

impl Rotary {
    /// Of `text` positions and then height * width patches. The angles are float64.
    pub fn of(flux: &Flux, place: &Tensor, text: i64, (height, width): (i64, i64)) -> Result<Self> {
        let mut axes = Vec::with_capacity(3);
        for (channels, shape) in flux.axes.iter().zip([[1, 1], [height, 1], [1, width]]) {
            let half = channels / 2;
            let exponents = count(place, half)?.f_div_scalar(half as f64)?;
            let frequencies = Tensor::f_pow_scalar(flux.theta, &exponents)?.f_reciprocal()?;
            let angles = count(place, shape[0] * shape[1])?.f_outer(&frequencies)?;
            axes.push(angles.f_view([shape[0], shape[1], half])?.f_expand([height, width, half], false)?);
        }
        let angles = Tensor::f_cat(&axes, 2)?.f_flatten(0, 1)?.f_constant_pad_nd([0, 0, text, 0])?;
        let table = |values: Tensor| -> Result<Tensor> {
            let values = values.f_repeat_interleave_self_int(2, 1, None)?.f_to_kind(Kind::Float)?;
            Ok(values.f_unsqueeze(0)?.f_unsqueeze(2)?)
        };
        Ok(Rotary { cos: table(angles.f_cos()?)?, sin: table(angles.f_sin()?)? })
    }

    /// x (B, S + P, heads, d) turned, in its own dtype; computed in float32, as diffusers does in a network of any dtype.
    pub fn turn(&self, x: &Tensor) -> Result<Tensor> {
        let pairs = x.f_unflatten(3, [-1, 2])?;
        let (real, imaginary) = (pairs.f_select(4, 0)?, pairs.f_select(4, 1)?);
        let quarter = Tensor::f_stack(&[imaginary.f_neg()?, real], 4)?.f_flatten(3, 4)?;
        let kept = x.f_to_kind(Kind::Float)?.f_mul(&self.cos)?;
        let turned = quarter.f_to_kind(Kind::Float)?.f_mul(&self.sin)?;
        Ok(kept.f_add(&turned)?.f_to_kind(x.f_kind()?)?)
    }
}
