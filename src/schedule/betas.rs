//! The beta schedules of diffusers' training schedulers, in float32 by the same libtorch operations in the same
//! order: what a checkpoint was trained with is reproduced bit for bit.

use std::f64::consts::PI;

use tch::{Device, Kind, Tensor};

use crate::error::{DivaError, Result};

const OP: &str = "Schedule.ddpm";
const NAMES: [&str; 6] = ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp"];
/// More timesteps than any model has, few enough that the table always fits into memory.
const MOST_STEPS: usize = 1_000_000;
const MAX_BETA: f64 = 0.999;
const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

/// How the variance of the added noise grows with the timestep.
#[derive(Debug, Clone, PartialEq)]
pub enum Betas {
    /// DDPM, arXiv 2006.11239.
    Linear { start: f64, end: f64 },
    /// Linear in the square root: Stable Diffusion.
    ScaledLinear { start: f64, end: f64 },
    /// GeoDiff, arXiv 2203.02923.
    Sigmoid { start: f64, end: f64 },
    /// Cosine, arXiv 2102.09672.
    SquaredCosCapV2,
    /// Laplace noise schedule, arXiv 2407.03297.
    Laplace,
    /// `abar(t) = exp(-12 t)`, as diffusers' `HeunDiscreteScheduler` has it.
    Exp,
    /// The values themselves; up to 1, with which a schedule of zero terminal SNR ends.
    Trained(Vec<f64>),
}

impl Betas {
    /// By diffusers' `beta_schedule` name. `start` and `end` only count where the schedule has them.
    pub fn parse(name: &str, start: f64, end: f64) -> Result<Self> {
        Ok(match name {
            "linear" => Betas::Linear { start, end },
            "scaled_linear" => Betas::ScaledLinear { start, end },
            "sigmoid" => Betas::Sigmoid { start, end },
            "squaredcos_cap_v2" => Betas::SquaredCosCapV2,
            "laplace" => Betas::Laplace,
            "exp" => Betas::Exp,
            _ => {
                let names = NAMES.join("\", \"");
                return Err(DivaError::config(
                    OP,
                    format!("beta_schedule \"{name}\" is not one of \"{names}\""),
                ));
            }
        })
    }

    /// `prod (1 - beta)` up to each timestep: float32 `(steps,)` on the CPU.
    pub fn alphas_cumprod(&self, steps: usize, rescale_zero_snr: bool) -> Result<Tensor> {
        if !(1..=MOST_STEPS).contains(&steps) {
            let what = format!("num_train_timesteps is {steps}, expected 1 to {MOST_STEPS}");
            return Err(DivaError::config(OP, what));
        }
        if rescale_zero_snr && steps < 2 {
            return Err(DivaError::config(OP, "rescale_betas_zero_snr needs at least 2 timesteps"));
        }
        let _guard = tch::no_grad_guard();
        let mut betas = self.values(steps)?;
        if rescale_zero_snr {
            betas = zero_terminal_snr(&betas)?;
        }
        // `1 - betas` first: float32 betas are what diffusers keeps, and the rounding is part of the schedule.
        Ok(betas.f_rsub_scalar(1.0)?.f_cumprod(0, None)?)
    }

    /// diffusers, scheduling_ddpm.py `DDPMScheduler.__init__`.
    fn values(&self, steps: usize) -> Result<Tensor> {
        let count = steps as i64; // at most MOST_STEPS
        Ok(match self {
            Betas::Linear { start, end } => {
                check_range(*start, *end)?;
                Tensor::f_linspace(*start, *end, count, FLOAT)?
            }
            Betas::ScaledLinear { start, end } => {
                check_range(*start, *end)?;
                Tensor::f_linspace(start.powf(0.5), end.powf(0.5), count, FLOAT)?.f_square()?
            }
            Betas::Sigmoid { start, end } => {
                check_range(*start, *end)?;
                let ramp = Tensor::f_linspace(-6.0, 6.0, count, FLOAT)?.f_sigmoid()?;
                ramp.f_mul_scalar(end - start)?.f_add_scalar(*start)?
            }
            Betas::SquaredCosCapV2 => from_alpha_bar(steps, cosine)?,
            Betas::Laplace => from_alpha_bar(steps, laplace)?,
            Betas::Exp => from_alpha_bar(steps, |t| (t * -12.0).exp())?,
            Betas::Trained(values) => {
                if values.len() != steps {
                    let what =
                        format!("trained_betas has {} values, num_train_timesteps is {steps}", values.len());
                    return Err(DivaError::config(OP, what));
                }
                for (t, beta) in values.iter().enumerate() {
                    if !(0.0..=1.0).contains(beta) {
                        let what = format!("trained_betas[{t}] is {beta}, expected a number in [0, 1]");
                        return Err(DivaError::config(OP, what));
                    }
                }
                Tensor::f_from_slice(values)?.f_to_kind(Kind::Float)?
            }
        })
    }
}

fn check_range(start: f64, end: f64) -> Result<()> {
    for (name, beta) in [("beta_start", start), ("beta_end", end)] {
        if !(beta > 0.0 && beta < 1.0) {
            return Err(DivaError::config(OP, format!("{name} is {beta}, expected a number in (0, 1)")));
        }
    }
    if start > end {
        return Err(DivaError::config(OP, format!("beta_start is {start}, above beta_end, which is {end}")));
    }
    Ok(())
}

/// diffusers, scheduling_ddpm.py `betas_for_alpha_bar`: each beta from two points of a continuous schedule.
fn from_alpha_bar(steps: usize, alpha_bar: impl Fn(f64) -> f64) -> Result<Tensor> {
    let count = steps as f64;
    let beta = |i: usize| {
        let (t1, t2) = (i as f64 / count, (i + 1) as f64 / count);
        (1.0 - alpha_bar(t2) / alpha_bar(t1)).min(MAX_BETA)
    };
    let betas: Vec<f64> = (0..steps).map(beta).collect();
    Ok(Tensor::f_from_slice(&betas)?.f_to_kind(Kind::Float)?)
}

/// arXiv 2102.09672, eq. 17.
fn cosine(t: f64) -> f64 {
    ((t + 0.008) / 1.008 * PI / 2.0).cos().powf(2.0)
}

/// arXiv 2407.03297, table 1, with mean 0 and scale 0.5 as in diffusers.
fn laplace(t: f64) -> f64 {
    let log_snr = -0.5 * 1f64.copysign(0.5 - t) * (1.0 - 2.0 * (0.5 - t).abs() + 1e-6).ln();
    let snr = log_snr.exp();
    (snr / (1.0 + snr)).sqrt()
}

/// arXiv 2305.08891, algorithm 1; diffusers `rescale_zero_terminal_snr`. At least two timesteps.
fn zero_terminal_snr(betas: &Tensor) -> Result<Tensor> {
    let root = betas.f_rsub_scalar(1.0)?.f_cumprod(0, None)?.f_sqrt()?;
    let (first, last) = (root.f_select(0, 0)?, root.f_select(0, -1)?);
    // Shift the last level to zero, then scale the first one back to where it was.
    let scale = first.f_div(&first.f_sub(&last)?)?;
    let bar = root.f_sub(&last)?.f_mul(&scale)?.f_square()?;
    let len = bar.size1()?;
    let ratio = bar.f_narrow(0, 1, len - 1)?.f_div(&bar.f_narrow(0, 0, len - 1)?)?;
    Ok(Tensor::f_cat(&[&bar.f_narrow(0, 0, 1)?, &ratio], 0)?.f_rsub_scalar(1.0)?)
}
