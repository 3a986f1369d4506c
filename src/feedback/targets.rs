//! What a batch of samples is denoised from, and which samples these are.

use crate::torch::Tensor;

use crate::error::{DivaError, Result};

/// Which samples a batch holds: the keys of their draws, one for each, and the pass over the data.
#[derive(Clone)]
pub struct Keyed {
    pub keys: Vec<u64>,
    pub epoch: u64,
}

/// What belongs to the samples of a batch beside their images.
pub struct SampleData {
    /// `None`: there is no denoiser.
    pub targets: Option<Targets>,
    /// `None`: nobody said which samples these are.
    pub keyed: Option<Keyed>,
}

impl SampleData {
    /// The samples `start..start + length`.
    pub fn narrow(&self, start: i64, length: i64) -> Result<SampleData> {
        Ok(SampleData {
            targets: self.targets.as_ref().map(|targets| targets.narrow(start, length)).transpose()?,
            keyed: self.keyed.as_ref().map(|keyed| Keyed {
                keys: keyed.keys.iter().skip(start as usize).take(length as usize).copied().collect(),
                epoch: keyed.epoch,
            }),
        })
    }
}

/// What a batch of B samples is denoised from, N draws each.
pub struct Targets {
    pub latents: Tensor,        // (B, ...)
    pub noise: Tensor,          // (B, N, ...)
    pub timesteps: Tensor,      // (B, N) int64
    pub choice: Option<Tensor>, // (B, N, k) int64
    pub text: Tensor,           // (1 | B, L, C)
    pub pooled: Option<Tensor>, // (B, N, C): noise at a pooled condition
}

impl Targets {
    /// (B, N)
    pub(super) fn sizes(&self) -> Result<(i64, i64)> {
        Ok(self.timesteps.size2()?)
    }

    /// An error where the tensors do not fit each other, the `tokens` or the number of `draws`.
    pub(super) fn check(&self, tokens: &Tensor, draws: i64) -> Result<()> {
        let op = "feedback";
        let batch = tokens.size().first().copied().unwrap_or(0);
        if self.latents.dim() < 2 || self.latents.size()[0] != batch {
            let expected = format!("({batch}, ...) like the tokens");
            return Err(DivaError::shape(op, "latents", &self.latents, expected));
        }
        if self.timesteps.size() != [batch, draws] {
            return Err(DivaError::shape(op, "timesteps", &self.timesteps, format!("[{batch}, {draws}]")));
        }
        let mut noise = vec![batch, draws];
        noise.extend(&self.latents.size()[1..]);
        if self.noise.size() != noise {
            let expected = format!("{noise:?}, (B, N, ...) for these latents");
            return Err(DivaError::shape(op, "noise", &self.noise, expected));
        }
        Ok(())
    }

    /// The same, with the text and token choices of 2B conditions: those of augmented views follow.
    pub(super) fn twice(&self) -> Result<Targets> {
        let twice = |tensor: &Tensor| Tensor::f_cat(&[tensor, tensor], 0);
        let one = self.text.size().first() == Some(&1);
        Ok(Targets {
            choice: self.choice.as_ref().map(twice).transpose()?,
            text: if one { self.text.shallow_clone() } else { twice(&self.text)? },
            pooled: self.pooled.as_ref().map(twice).transpose()?,
            ..self.shallow_clone()
        })
    }

    /// The same tensors.
    pub fn shallow_clone(&self) -> Targets {
        Targets {
            latents: self.latents.shallow_clone(),
            noise: self.noise.shallow_clone(),
            timesteps: self.timesteps.shallow_clone(),
            choice: self.choice.as_ref().map(Tensor::shallow_clone),
            text: self.text.shallow_clone(),
            pooled: self.pooled.as_ref().map(Tensor::shallow_clone),
        }
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
            pooled: self.pooled.as_ref().map(part).transpose()?,
        })
    }
}
