//! How many images go through the denoiser at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use crate::torch::{Device, Tensor};

/// The most images that fit into the denoiser's memory: unknown until a pass did not fit. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryLimit {
    limit: Arc<AtomicUsize>, // 0: unknown
    reported: Arc<AtomicUsize>,
}

impl MemoryLimit {
    pub fn limit(&self) -> Option<usize> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit != 0)
    }

    /// The limit, once after each change.
    pub fn change(&self) -> Option<usize> {
        let limit = self.limit.load(Ordering::Relaxed);
        (self.reported.swap(limit, Ordering::Relaxed) != limit).then_some(limit)
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
            self.limit.store(images as usize / 2, Ordering::Relaxed);
        }
        images > 1
    }
}

/// How many images of `latents` (B, C, H, W) fill the machine: those that together are as large as one of 64 x 64 on a
/// CPU, and as sixteen elsewhere, where each further pass costs thousands of launches.
pub(super) fn enough(latents: &Tensor) -> usize {
    let pixels: i64 = latents.size().iter().skip(2).product();
    let images = if latents.device() == Device::Cpu { 1 } else { 16 };
    (images * 64 * 64 / pixels.max(1)) as usize
}
