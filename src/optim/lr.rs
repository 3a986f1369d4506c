//! Learning-rate schedules: a factor on the base learning rate as a function of the step alone, so that a resumed run
//! needs no schedule state.

use std::f64::consts::PI;

use crate::error::{DivaError, Result};

/// Linear warm-up from 0, then constant, or half a cosine down to 0 at `steps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LrSchedule {
    Constant { warmup: i64 },
    Cosine { warmup: i64, steps: i64 },
}

impl LrSchedule {
    pub const NAMES: [&'static str; 2] = ["constant", "cosine"];

    /// `steps` is the length of the whole run, warm-up included; "constant" does not look at it.
    pub fn parse(name: &str, warmup: i64, steps: i64) -> Result<Self> {
        const OP: &str = "lr schedule";
        if warmup < 0 {
            return Err(DivaError::config(OP, format!("warmup is {warmup}: it must not be negative")));
        }
        match name {
            "constant" => Ok(LrSchedule::Constant { warmup }),
            "cosine" if steps < 1 => Err(DivaError::config(
                OP,
                format!("steps is {steps}: \"cosine\" needs the length of the run"),
            )),
            "cosine" => Ok(LrSchedule::Cosine { warmup, steps }),
            other => {
                let what = format!("unknown schedule {other:?}: use one of {}", Self::NAMES.join(", "));
                Err(DivaError::config(OP, what))
            }
        }
    }

    /// The factor for the update number `step`, counted from 0: the first update of a warm-up has factor 0.
    /// transformers/optimization.py, get_constant_schedule_with_warmup and get_cosine_schedule_with_warmup
    /// (0.5 cycles; past `steps` the cosine rises again, as there).
    pub fn factor(&self, step: i64) -> f64 {
        let (LrSchedule::Constant { warmup } | LrSchedule::Cosine { warmup, .. }) = *self;
        if step < warmup {
            return step as f64 / warmup.max(1) as f64;
        }
        match *self {
            LrSchedule::Constant { .. } => 1.0,
            LrSchedule::Cosine { warmup, steps } => {
                let length = steps.saturating_sub(warmup).max(1);
                let progress = step.saturating_sub(warmup) as f64 / length as f64;
                (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
            }
        }
    }
}
