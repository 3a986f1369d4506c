//! Limits of a plan. They lie far beyond any use: sizes above them are mistakes, and must not be allocated.

use super::{DrawPlan, Timesteps, TokenRule};
use crate::error::{DivaError, Result};

/// Draws per sample.
pub const MAX_DRAWS: usize = 1 << 16;
/// Dimensions of a latent.
pub const MAX_DIMS: usize = 8;
/// Patches of an image.
pub const MAX_PATCHES: usize = 1 << 20;
/// End of the timestep range.
pub const MAX_TIMESTEP: i64 = 1 << 31;
/// Bytes of each of the arrays that one call returns.
pub const MAX_BYTES: usize = 16 << 30;

/// Lengths of the arrays of one batch.
pub(super) struct Sizes {
    /// B*N
    pub rows: usize,
    /// Values of one latent.
    pub latent: usize,
    pub noise: usize,
    pub tokens: usize,
}

fn wrong(what: String) -> DivaError {
    DivaError::config("draws", what)
}

impl DrawPlan {
    pub(super) fn check(&self) -> Result<()> {
        if !(1..=MAX_DRAWS).contains(&self.draws) {
            return Err(wrong(format!(
                "`draws` is {}, expected 1 to {MAX_DRAWS} draws per sample",
                self.draws
            )));
        }
        if self.latent.is_empty() || self.latent.len() > MAX_DIMS || self.latent.contains(&0) {
            return Err(wrong(format!(
                "`latent_shape` is {:?}, expected 1 to {MAX_DIMS} sizes of at least 1, such as [4, 64, 64]: the shape \
                 of one sample's latent, without the batch",
                self.latent
            )));
        }
        let (low, high) = self.range;
        if low < 0 || low >= high || high > MAX_TIMESTEP {
            return Err(wrong(format!(
                "`timestep_range` is ({low}, {high}), expected 0 <= low < high <= {MAX_TIMESTEP}; timesteps are drawn \
                 from low up to, not including, high"
            )));
        }
        if let Timesteps::LogitNormal { mean, std } = self.timesteps {
            if !mean.is_finite() || !std.is_finite() || std <= 0.0 {
                return Err(wrong(format!(
                    "`logit_mean` is {mean} and `logit_std` is {std}, expected a finite mean and a finite std above 0"
                )));
            }
        }
        self.check_tokens()?;
        self.sizes_of(1).map(|_| ())
    }

    fn check_tokens(&self) -> Result<()> {
        let patches = self.patches;
        if patches > MAX_PATCHES {
            return Err(wrong(format!("`patches` is {patches}, expected at most {MAX_PATCHES}")));
        }
        match self.tokens {
            TokenRule::None => Ok(()),
            _ if patches == 0 => {
                Err(wrong("`patches` is 0, but tokens are to be chosen; give the patches of the vision tower".into()))
            }
            TokenRule::Choose { k: 0, .. } => {
                Err(wrong("`choose` is 0, expected at least 1 patch; leave it out to choose none".into()))
            }
            TokenRule::Choose { k, replacement: false } if k > patches => Err(wrong(format!(
                "`choose` is {k} of {patches} patches; without replacement it can be at most {patches}, or set \
                 `replacement=True`"
            ))),
            TokenRule::Choose { .. } => Ok(()),
            TokenRule::Bernoulli { density } if !(0.0..=1.0).contains(&density) => {
                Err(wrong(format!("`density` is {density}, expected a share of the patches from 0 to 1")))
            }
            TokenRule::Bernoulli { .. } => Ok(()),
        }
    }

    /// Lengths for a batch of `batch` samples. Checks the plan again: its fields are public.
    pub(super) fn sizes(&self, batch: usize) -> Result<Sizes> {
        self.check()?;
        if batch == 0 {
            let what = "the batch is empty (no ids); a step needs at least one sample".to_string();
            return Err(DivaError::data("draws", what));
        }
        self.sizes_of(batch)
    }

    fn sizes_of(&self, batch: usize) -> Result<Sizes> {
        let sizes = || -> Option<Sizes> {
            let rows = batch.checked_mul(self.draws)?;
            let latent = self.latent.iter().try_fold(1usize, |product, &size| product.checked_mul(size))?;
            let (noise, tokens) = (rows.checked_mul(latent)?, rows.checked_mul(self.width())?);
            let bytes =
                noise.checked_mul(size_of::<f32>())?.max(tokens.max(rows).checked_mul(size_of::<i64>())?);
            (bytes <= MAX_BYTES).then_some(Sizes { rows, latent, noise, tokens })
        };
        sizes().ok_or_else(|| {
            wrong(format!(
                "{batch} sample(s) with {} draw(s) of latents {:?} and {} chosen tokens exceed {} GiB for one call; \
                 reduce the batch, `draws`, `latent_shape` or `choose`",
                self.draws,
                self.latent,
                self.width(),
                MAX_BYTES >> 30
            ))
        })
    }
}
