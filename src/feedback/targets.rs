//! What a batch of samples is denoised from.

use tch::Tensor;

use crate::error::{DivaError, Result};

/// What a batch of B samples is denoised from, N draws each.
pub struct Targets {
    pub latents: Tensor,        // (B, ...)
    pub noise: Tensor,          // (B, N, ...)
    pub timesteps: Tensor,      // (B, N) int64
    pub choice: Option<Tensor>, // (B, N, k) int64
    pub text: Tensor,           // (1 | B, L, C)
}

impl Targets {
    pub(super) fn check(&self, tokens: &Tensor, draws: usize) -> Result<()> {
        let op = "feedback";
        let batch = tokens.size().first().copied().unwrap_or(0);
        let draws = draws as i64;
        if self.latents.dim() < 2 || self.latents.size()[0] != batch {
            return Err(DivaError::shape(
                op,
                "latents",
                &self.latents,
                format!("({batch}, ...) like the tokens"),
            ));
        }
        if self.timesteps.size() != [batch, draws] {
            return Err(DivaError::shape(op, "timesteps", &self.timesteps, format!("[{batch}, {draws}]")));
        }
        let mut noise = vec![batch, draws];
        noise.extend(&self.latents.size()[1..]);
        if self.noise.size() != noise {
            return Err(DivaError::shape(
                op,
                "noise",
                &self.noise,
                format!("{noise:?}, (B, N, ...) for these latents"),
            ));
        }
        Ok(())
    }

    /// The samples `start..start + length`, as views.
    pub fn narrow(&self, start: i64, length: i64) -> Result<Targets> {
        let part = |tensor: &Tensor| tensor.f_narrow(0, start, length);
        Ok(Targets {
            latents: part(&self.latents)?,
            noise: part(&self.noise)?,
            timesteps: part(&self.timesteps)?,
            choice: self.choice.as_ref().map(part).transpose()?,
            text: if self.text.size().first() == Some(&1) {
                self.text.shallow_clone()
            } else {
                part(&self.text)?
            },
        })
    }
}
