//! Min-SNR-gamma loss weights (arXiv 2303.09556, section 3.4): noise levels at which the task is
//! easy must not outweigh the others.
//!
//! With `snr = (signal / noise)^2` the clean latents' error is weighted `min(snr, gamma)`; for the
//! other targets that is multiplied by what turns their error into the clean latents' error:
//!
//! | target | weight |
//! |---|---|
//! | sample | `min(snr, gamma)` |
//! | epsilon | `min(snr, gamma) / snr` |
//! | v | `min(snr, gamma) / (snr + 1)` |
//! | flow | `min(snr, gamma) * noise^2`, as `x_0 = x_t - noise * velocity` |
//!
//! Each is written so that neither `snr = 0` (a schedule with zero terminal SNR) nor `snr = inf`
//! (no noise at all) gives a NaN: the limits are 1 and 0 for epsilon.

use crate::torch::Tensor;

use super::Prediction;
use crate::error::Result;

/// Weights `(B,)` from amplitudes `(B,)` of the same dtype and device.
pub fn min_snr(prediction: Prediction, signal: &Tensor, noise: &Tensor, gamma: f64) -> Result<Tensor> {
    // No bound for any ratio of amplitudes; a larger one would overflow as a scalar of float32.
    let gamma = gamma.min(f64::from(f32::MAX));
    // diffusers, training_utils.py `compute_snr`: the quotient first, then the square.
    let snr = signal.f_div(noise)?.f_square()?;
    Ok(match prediction {
        Prediction::Sample => snr.f_clamp_max(gamma)?,
        Prediction::Epsilon => snr.f_full_like(gamma)?.f_div(&snr)?.f_clamp_max(1.0)?,
        Prediction::V => snr.f_clamp_max(gamma)?.f_div(&snr.f_add_scalar(1.0)?)?,
        Prediction::Flow => signal.f_square()?.f_minimum(&noise.f_square()?.f_mul_scalar(gamma)?)?,
    })
}
