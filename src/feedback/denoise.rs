//! The denoising loss: how far the predictions are from their targets.

use std::sync::Arc;

use crate::torch::{Kind, Tensor};

use super::term::{Scope, Term};
use super::view::View;
use crate::error::{DivaError, Result};
use crate::schedule::Schedule;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distance {
    Mse,
    L1,
}

impl Distance {
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "mse" => Ok(Distance::Mse),
            "l1" => Ok(Distance::L1),
            other => Err(DivaError::config("Step", format!("unknown loss {other:?}: use \"mse\" or \"l1\""))),
        }
    }

    /// One loss per sample, the mean over everything but the batch, in float32 or better: (B, ...) -> (B,).
    pub(super) fn per_sample(self, prediction: &Tensor, target: &Tensor) -> Result<Tensor> {
        if prediction.size() != target.size() {
            let expected = format!("{:?} like the target", target.size());
            return Err(DivaError::shape("feedback", "prediction", prediction, expected));
        }
        let kind = if target.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let difference = prediction.f_to_kind(kind)?.f_sub(&target.f_to_kind(kind)?)?;
        let penalty = match self {
            Distance::Mse => difference.f_square()?,
            Distance::L1 => difference.f_abs()?,
        };
        Ok(penalty.f_flatten(1, -1)?.f_mean_dim(1, false, kind)?)
    }
}

pub struct Denoise {
    pub distance: Distance,
    /// One weight per draw.
    pub draw_weights: Vec<f64>,
    /// Gamma of min-SNR weighting (arXiv 2303.09556), if any, on this schedule.
    pub min_snr: Option<(f64, Arc<Schedule>)>,
}

impl Term for Denoise {
    fn name(&self) -> &str {
        "denoising"
    }

    fn scope(&self) -> Scope {
        Scope::Draw
    }

    fn loss(&self, view: &View) -> Result<Tensor> {
        let pass = view.pass()?;
        let mut per_sample = self.distance.per_sample(&pass.prediction, &pass.target)?;
        if let Some((gamma, schedule)) = &self.min_snr {
            let weights = schedule.weights(&pass.timesteps, *gamma, &per_sample)?;
            per_sample = per_sample.f_mul(&weights)?;
        }
        let each = per_sample.size1()? / pass.draws;
        let mut total: Option<Tensor> = None;
        for (draw, &weight) in (0..pass.draws).zip(self.draw_weights.iter().skip(pass.start as usize)) {
            let loss =
                per_sample.f_narrow(0, draw * each, each)?.f_sum(per_sample.kind())?.f_mul_scalar(weight)?;
            total = Some(match total {
                Some(sum) => sum.f_add(&loss)?,
                None => loss,
            });
        }
        total.ok_or_else(|| DivaError::config("feedback", "no draws: `draws` must be at least 1"))
    }
}
