//! How much noise a sample gets at a timestep, what the denoiser predicts there, and how much its
//! error counts. One table of noise levels, indexed by integer timesteps, serves both families of
//! diffusion models:
//!
//! * variance preserving (DDPM, arXiv 2006.11239 eq. 4):
//!   `x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) e`,
//! * flow matching (rectified flow, arXiv 2209.03003): `x_t = (1 - s) x_0 + s e`.

mod fused;
mod levels;
mod prediction;
mod weights;

use std::sync::{Mutex, MutexGuard};

use crate::torch::{Device, Kind, Tensor};

use crate::error::{DivaError, Result};
use crate::slices;

pub use prediction::Prediction;

use levels::{Levels, Tables};

/// What [`Schedule::add_noise`] makes of a batch. Nothing in it requires a gradient.
#[derive(Debug)]
pub struct Noised {
    /// `x_t`, shape, dtype and device of the latents.
    pub noisy: Tensor,
    /// The target of the prediction. For `Epsilon` and `Sample` it shares the memory of the
    /// noise or the latents.
    pub target: Tensor,
    /// `(B,)`: the denoiser's timestep input. The timesteps themselves, or for flow matching
    /// `sigma * num_train_timesteps` as float32.
    pub model_timesteps: Tensor,
}

/// The noise levels of a model, immutable after construction and usable from several threads.
#[derive(Debug)]
pub struct Schedule {
    prediction: Prediction,
    len: usize,
    /// Flow matching only: the model's timestep input is the noise level times this.
    train_timesteps: Option<f64>,
    tables: Mutex<Tables>,
}

impl Schedule {
    /// A schedule from the `alphas_cumprod` of any variance-preserving scheduler: float32 or
    /// float64, `(T,)`, in [0, 1], not increasing. The table is copied.
    pub fn from_alphas_cumprod(table: &Tensor, prediction: Prediction) -> Result<Self> {
        const OP: &str = "Schedule.from_alphas_cumprod";
        if prediction == Prediction::Flow {
            return Err(DivaError::config(
                OP,
                "flow matching has no alphas_cumprod: use Schedule.flow(sigmas)",
            ));
        }
        let (table, values) = levels::host_table(OP, "alphas_cumprod", table)?;
        // Not strictly: with zero terminal SNR diffusers' sampling schedulers lift the last entry
        // from 0 to 2^-24, which can be above the one before it.
        if let Some(t) = values.windows(2).position(|pair| pair[1] > pair[0] + 1e-6) {
            let what = format!("alphas_cumprod increases at timestep {}: it must fall with the noise", t + 1);
            return Err(DivaError::config(OP, what));
        }
        let tables = Tables::new(table, None);
        Ok(Self { prediction, len: values.len(), train_timesteps: None, tables })
    }

    /// Flow matching with noise levels `sigmas` `(T,)` in [0, 1], all different and in order; a
    /// falling table (as diffusers keeps it) is reversed, so that the index rises with the noise.
    /// The model's timestep input is `sigma * train_timesteps`, 1000 in every published model.
    pub fn flow(sigmas: &Tensor, train_timesteps: f64) -> Result<Self> {
        const OP: &str = "Schedule.flow";
        if !(train_timesteps.is_finite() && train_timesteps > 0.0) {
            let what = format!("num_train_timesteps is {train_timesteps}, expected a positive number");
            return Err(DivaError::config(OP, what));
        }
        let (mut table, values) = levels::host_table(OP, "sigmas", sigmas)?;
        let rising = values.windows(2).all(|pair| pair[0] < pair[1]);
        let falling = values.windows(2).all(|pair| pair[0] > pair[1]);
        if !rising && !falling {
            return Err(DivaError::config(
                OP,
                "sigmas must rise or fall strictly from one entry to the next",
            ));
        }
        if !rising {
            table = table.f_flip([0])?;
        }
        // diffusers, scheduling_flow_match_euler_discrete.py: `self.timesteps = sigmas *
        // num_train_timesteps`
        let steps = table.f_to_kind(Kind::Float)?.f_mul_scalar(train_timesteps)?;
        let (prediction, train_timesteps) = (Prediction::Flow, Some(train_timesteps));
        Ok(Self { prediction, len: values.len(), train_timesteps, tables: Tables::new(table, Some(steps)) })
    }

    /// The number of timesteps: valid ones are `0..len`.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn prediction(&self) -> Prediction {
        self.prediction
    }

    /// The factor between the noise level and the timestep input of a flow-matching model; `None`
    /// for other models, whose input is the timestep.
    pub fn train_timesteps(&self) -> Option<f64> {
        self.train_timesteps
    }

    /// `(T,)`, a copy on the CPU. A flow-matching schedule has none.
    pub fn alphas_cumprod(&self) -> Result<Tensor> {
        match self.prediction {
            Prediction::Flow => Err(DivaError::config(
                "Schedule.alphas_cumprod",
                "flow matching has no alphas_cumprod: see sigmas",
            )),
            _ => Ok(self.lock().table().f_detach_copy()?),
        }
    }

    /// `(T,)`, rising, a copy on the CPU. A variance-preserving schedule has none.
    pub fn sigmas(&self) -> Result<Tensor> {
        match self.prediction {
            Prediction::Flow => Ok(self.lock().table().f_detach_copy()?),
            _ => {
                Err(DivaError::config("Schedule.sigmas", "only flow matching has sigmas: see alphas_cumprod"))
            }
        }
    }

    /// `x_t`, the prediction target and the model's timestep for latents `(B, ..)`, noise of the
    /// same shape, dtype and device, and timesteps `(B,)` int64 on that device or on the CPU.
    ///
    /// Timesteps on the CPU are checked against `0..len`; elsewhere that would be a host read, and
    /// libtorch's own device-side check stands. Rounds exactly as diffusers' `add_noise`,
    /// `get_velocity` and `scale_noise`.
    pub fn add_noise(&self, latents: &Tensor, noise: &Tensor, timesteps: &Tensor) -> Result<Noised> {
        const OP: &str = "Schedule.add_noise";
        let _guard = crate::torch::no_grad_guard();
        let kind = levels::floating(OP, "latents", latents)?;
        let noise_kind = levels::kind(OP, "noise", noise)?;
        let shape = latents.size();
        let Some(&batch) = shape.first() else {
            return Err(DivaError::shape(OP, "latents", latents, "(B, ...)"));
        };
        if noise.size() != shape {
            return Err(DivaError::shape(OP, "noise", noise, format!("{shape:?}, the shape of `latents`")));
        }
        if noise_kind != kind {
            let expected = format!("{kind:?}, the dtype of `latents`");
            return Err(DivaError::kind(OP, "noise", noise_kind, expected));
        }
        if noise.device() != latents.device() {
            return Err(elsewhere(OP, "noise", "latents"));
        }
        let probe = levels::probe(latents, kind)?;
        let index = self.index(OP, timesteps, "latents", &probe, Some(batch))?;
        let levels = self.lock().levels(&probe)?;
        let model_timesteps = match &levels.steps {
            Some(steps) => steps.f_index_select(0, &index)?,
            None => index.shallow_clone(),
        };
        let (noisy, target) = match kind {
            Kind::Float | Kind::Double if fused::takes(latents) && fused::takes(noise) => {
                fused::add_noise(self.prediction, &levels, latents, noise, &index)?
            }
            _ => self.by_libtorch(&levels, latents, noise, &index)?,
        };
        Ok(Noised { noisy, target, model_timesteps })
    }

    /// The same as the fused pass, in libtorch operations: every other device and dtype.
    fn by_libtorch(
        &self,
        levels: &Levels,
        x0: &Tensor,
        e: &Tensor,
        index: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let mut column = vec![1i64; x0.dim()]; // (B, 1, ..)
        if let Some(batch) = column.first_mut() {
            *batch = -1;
        }
        let signal = levels.signal.f_index_select(0, index)?.f_view(column.as_slice())?;
        let noise = levels.noise.f_index_select(0, index)?.f_view(column.as_slice())?;
        let noisy = signal.f_mul(x0)?.f_add(&noise.f_mul(e)?)?;
        let target = match self.prediction {
            Prediction::Epsilon => e.f_detach()?,
            Prediction::Sample => x0.f_detach()?,
            Prediction::V => signal.f_mul(e)?.f_sub(&noise.f_mul(x0)?)?,
            Prediction::Flow => e.f_sub(x0)?,
        };
        Ok((noisy, target))
    }

    /// Min-SNR loss weights `(B,)` for timesteps `(B,)`, in the dtype and on the device of `like`.
    /// See `weights.rs`.
    pub fn weights(&self, timesteps: &Tensor, min_snr: f64, like: &Tensor) -> Result<Tensor> {
        const OP: &str = "Schedule.weights";
        let _guard = crate::torch::no_grad_guard();
        let kind = levels::floating(OP, "like", like)?;
        if !(min_snr.is_finite() && min_snr > 0.0) {
            let what = format!("min_snr is {min_snr}, expected a finite number above 0 (5 in the paper)");
            return Err(DivaError::config(OP, what));
        }
        // In float32 whatever the dtype of `like`, as diffusers' `compute_snr`.
        let probe = levels::probe(like, Kind::Float)?;
        let index = self.index(OP, timesteps, "like", &probe, None)?;
        let levels = self.lock().levels(&probe)?;
        let signal = levels.signal.f_index_select(0, &index)?;
        let noise = levels.noise.f_index_select(0, &index)?;
        Ok(weights::min_snr(self.prediction, &signal, &noise, min_snr)?.f_to_kind(kind)?)
    }

    /// The timesteps, checked, on the device of `probe`, which stands for the tensor called
    /// `anchor`.
    fn index(
        &self,
        op: &'static str,
        timesteps: &Tensor,
        anchor: &str,
        probe: &Tensor,
        batch: Option<i64>,
    ) -> Result<Tensor> {
        let got = levels::kind(op, "timesteps", timesteps)?;
        if got != Kind::Int64 {
            let expected = "int64: timesteps are indices into the schedule".to_string();
            return Err(DivaError::kind(op, "timesteps", got, expected));
        }
        let size = timesteps.size();
        if size.len() != 1 || batch.is_some_and(|batch| size.first() != Some(&batch)) {
            let expected =
                batch.map_or("(B,)".to_string(), |batch| format!("[{batch}], one for each of `{anchor}`"));
            return Err(DivaError::shape(op, "timesteps", timesteps, expected));
        }
        if timesteps.device() != Device::Cpu {
            return match timesteps.device() == probe.device() {
                true => Ok(timesteps.f_detach()?),
                false => Err(elsewhere(op, "timesteps", anchor)),
            };
        }
        let host = timesteps.f_contiguous()?;
        for (i, &t) in slices::view::<i64>(&host)?.iter().enumerate() {
            if usize::try_from(t).map_or(true, |t| t >= self.len) {
                let what =
                    format!("timesteps[{i}] is {t}, outside of [0, {}), the range of the schedule", self.len);
                return Err(DivaError::data(op, what));
            }
        }
        Ok(host.f_to_other(&probe.f_to_kind(Kind::Int64)?, true, false)?)
    }

    /// A lock poisoned by a panic is still usable: the tables are replaced whole or not at all.
    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Devices are not named: tch cannot tell those apart that it does not know.
fn elsewhere(op: &'static str, name: &str, anchor: &str) -> DivaError {
    let what =
        format!("`{name}` is on another device than `{anchor}`: move it there with .to({anchor}.device)");
    DivaError::device(op, what)
}

#[cfg(test)]
mod tests;
