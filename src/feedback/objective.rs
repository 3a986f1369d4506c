//! What is minimised: the loss of a prediction, how draws and anchor are weighed, and how many images fit at a time.

use std::cell::Cell;

use tch::{Kind, Tensor};

use crate::error::{DivaError, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    Mse,
    L1,
}

impl Loss {
    /// One loss per sample, the mean over everything but the batch, in float32 or better: (B, ...) -> (B,).
    pub(super) fn per_sample(self, prediction: &Tensor, target: &Tensor) -> Result<Tensor> {
        if prediction.size() != target.size() {
            let expected = format!("{:?} like the target", target.size());
            return Err(DivaError::shape("feedback", "prediction", prediction, expected));
        }
        let kind = if target.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let difference = prediction.f_to_kind(kind)?.f_sub(&target.f_to_kind(kind)?)?;
        let penalty = match self {
            Loss::Mse => difference.f_square()?,
            Loss::L1 => difference.f_abs()?,
        };
        Ok(penalty.f_flatten(1, -1)?.f_mean_dim(1, false, kind)?)
    }
}

/// How the losses of the draws and the anchor are weighed.
#[derive(Clone, Debug)]
pub struct Objective {
    pub loss: Loss,
    /// One weight per draw.
    pub draw_weights: Vec<f64>,
    /// Gamma of min-SNR weighting (arXiv 2303.09556), if any.
    pub min_snr: Option<f64>,
    /// Weight of `1 - cos(embedding, the original model's embedding)`.
    pub anchor: f64,
    /// The most images that the denoiser sees at a time, draws of an image counted singly; `None`: as many as it takes
    /// to fill the machine, and at least one draw of the batch.
    pub denoiser_batch: Option<usize>,
    pub room: Room,
}

/// How many images of `latents` (B, C, H, W) fill the machine: those that together are as large as one of 64 x 64.
pub(super) fn enough(latents: &Tensor) -> usize {
    let pixels: i64 = latents.size().iter().skip(2).product();
    (64 * 64 / pixels.max(1)) as usize
}

/// The most images that the denoiser's memory has room for at a time: unknown until more of them did not fit.
#[derive(Clone, Debug, Default)]
pub struct Room(Cell<Option<usize>>);

impl Room {
    pub fn limit(&self) -> Option<usize> {
        self.0.get()
    }

    /// How many of the `draws` that are left, of how many of the `batch` samples, go through the denoiser together.
    pub(super) fn pass(&self, most: usize, batch: i64, draws: i64) -> (i64, i64) {
        let wanted = (i64::try_from(most).unwrap_or(i64::MAX) / batch).clamp(1, draws);
        match self.limit().map(|limit| limit as i64) {
            Some(limit) if limit < batch => (1, limit),
            Some(limit) => (wanted.min(limit / batch), batch),
            None => (wanted, batch),
        }
    }

    /// Halves the number that did not fit; false where that was one image.
    pub(super) fn shrink(&self, images: i64) -> bool {
        if images > 1 {
            self.0.set(Some(images as usize / 2));
        }
        images > 1
    }
}
