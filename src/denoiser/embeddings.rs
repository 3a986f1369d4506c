//! Timestep embeddings: sinusoids of a number, and the two-layer network that reads them.

use crate::torch::{Device, Kind, Tensor};

use super::layers::linear;
use crate::error::{DivaError, Result};
use crate::nn::{Activation, Linear, Path};

/// Sines and cosines of a number at geometrically falling frequencies (arXiv 1706.03762 section 3.5), with the options
/// of diffusers embeddings.py `get_timestep_embedding`.
pub struct Sinusoids {
    frequencies: Tensor, // (width / 2,) float32
    width: i64,
    flip_sin_to_cos: bool,
}

impl Sinusoids {
    /// `flip_sin_to_cos`: cosines come first. `shift`: diffusers' `downscale_freq_shift`, 1 in DDPM, 0 in Stable
    /// Diffusion. The frequencies live where `like` does.
    pub fn new(width: i64, flip_sin_to_cos: bool, shift: f64, like: &Tensor) -> Result<Self> {
        let op = "Sinusoids";
        if width < 2 {
            return Err(DivaError::config(op, format!("width {width}: must be at least 2")));
        }
        let half = width / 2;
        if !shift.is_finite() || shift == half as f64 {
            return Err(DivaError::config(
                op,
                format!("shift {shift}: must be finite and not half of width {width}"),
            ));
        }
        // exp(-ln(10000) i / (half - shift)), in float32 and on the device, as diffusers rounds it.
        let place = like.f_detach()?.f_flatten(0, -1)?.f_narrow(0, 0, 1)?.f_to_kind(Kind::Float)?;
        let index = Tensor::f_arange(half, (Kind::Float, Device::Cpu))?.f_to_other(&place, false, false)?;
        let exponent = index.f_mul_scalar(-(10000f64.ln()))?.f_div_scalar(half as f64 - shift)?;
        Ok(Sinusoids { frequencies: exponent.f_exp()?, width, flip_sin_to_cos })
    }

    /// A tensor where the network's are, for moving others there.
    pub fn place(&self) -> &Tensor {
        &self.frequencies
    }

    /// (N,) of any dtype -> (N, width), always float32.
    pub fn forward(&self, values: &Tensor) -> Result<Tensor> {
        let values = values.f_to_kind(Kind::Float)?.f_to_other(&self.frequencies, false, false)?;
        let angles = values.f_unsqueeze(1)?.f_mul(&self.frequencies.f_unsqueeze(0)?)?; // (N, width / 2)
        let (sines, cosines) = (angles.f_sin()?, angles.f_cos()?);
        let parts = if self.flip_sin_to_cos { [cosines, sines] } else { [sines, cosines] };
        let embedding = Tensor::f_cat(&parts, 1)?;
        if self.width % 2 == 0 {
            return Ok(embedding);
        }
        Ok(embedding.f_constant_pad_nd([0, 1])?) // an odd width ends with a zero
    }
}

/// 0, 1, ... in float64 where `place` is, made on the device: a copy from the host would have to be waited for.
pub fn count(place: &Tensor, length: i64) -> Result<Tensor> {
    let one =
        place.f_detach()?.f_flatten(0, -1)?.f_narrow(0, 0, 1)?.f_to_kind(Kind::Double)?.f_ones_like()?;
    Ok(one.f_expand([length], false)?.f_cumsum(0, Kind::Double)?.f_sub_scalar(1.0)?)
}

/// diffusers embeddings.py `TimestepEmbedding`: Linear, activation, Linear.
pub struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
    activation: Activation,
}

impl TimestepEmbedding {
    /// (N, inputs) -> (N, outputs).
    pub fn load(path: &Path, inputs: i64, outputs: i64, activation: Activation) -> Result<Self> {
        Ok(TimestepEmbedding {
            linear_1: linear(&(path / "linear_1"), inputs, outputs)?,
            linear_2: linear(&(path / "linear_2"), outputs, outputs)?,
            activation,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.linear_2.forward(&self.activation.forward(&self.linear_1.forward(x)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embed(width: i64, flip: bool, shift: f64, value: f64) -> Result<Vec<f64>> {
        let like = Tensor::zeros([3], (Kind::BFloat16, Device::Cpu));
        let embedding = Sinusoids::new(width, flip, shift, &like)?.forward(&Tensor::from_slice(&[value]))?;
        assert_eq!((embedding.kind(), embedding.size()), (Kind::Float, vec![1, width]));
        Ok(Vec::<f64>::try_from(embedding.f_view([-1])?.f_to_kind(Kind::Double)?)?)
    }

    #[test]
    fn values_follow_the_formula() -> Result<()> {
        let slow = 7.0 * (-(10000f64.ln()) / 2.0).exp();
        let close = |ours: Vec<f64>, formula: &[f64]| {
            assert!(ours.iter().zip(formula).all(|(a, b)| (a - b).abs() < 1e-6), "{ours:?} {formula:?}");
        };
        close(embed(4, false, 0.0, 7.0)?, &[7f64.sin(), slow.sin(), 7f64.cos(), slow.cos()]);
        close(embed(4, true, 0.0, 7.0)?, &[7f64.cos(), slow.cos(), 7f64.sin(), slow.sin()]);
        let shifted = 7.0 * (-(10000f64.ln())).exp();
        close(embed(4, false, 1.0, 7.0)?, &[7f64.sin(), shifted.sin(), 7f64.cos(), shifted.cos()]);
        close(embed(5, true, 0.0, 7.0)?, &[7f64.cos(), slow.cos(), 7f64.sin(), slow.sin(), 0.0]);
        Ok(())
    }

    #[test]
    fn a_shift_that_divides_by_zero_is_an_error() {
        let like = Tensor::zeros([1], (Kind::Float, Device::Cpu));
        for (width, shift, word) in
            [(4, 2.0, "half of width 4"), (1, 0.0, "at least 2"), (4, f64::NAN, "finite")]
        {
            let error = Sinusoids::new(width, true, shift, &like).err().map(|err| err.to_string());
            assert!(error.as_ref().is_some_and(|text| text.contains(word)), "{error:?}");
        }
    }
}
