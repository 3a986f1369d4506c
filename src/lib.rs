//! Generative feedback for CLIP: the training step of DIVA (arXiv 2407.20171) over libtorch.
//!
//! The map of the house, in the order in which a step walks through it:
//!
//! * [`train`]: the whole of it, from images to updated weights
//! * [`inputs`]: a loader's batch as the tensors of a step
//! * [`pixels`]: pixel conventions and resizing
//! * [`draws`]: timesteps, noise and token choices, keyed by sample
//! * [`step`]: the student's side: tokens from the vision tower, gradients back into it (cut 1)
//! * [`vision`]: the student's tower, native, on the caller's own weights
//! * [`condition`]: tokens + text -> condition, forward and backward
//! * [`schedule`]: noise levels, targets and loss weights
//! * [`feedback`]: the teacher's side: N denoising losses and their gradient at the condition (cut 2)
//! * [`denoiser`]: the teacher's networks
//! * [`networks`]: the native networks by kind
//! * [`optim`]: SGD, AdamW, clipping, learning-rate schedules
//!
//! and what they stand on: [`nn`] (blocks of the native networks, strict loading), [`autograd`] (backward passes of our own
//! in libtorch's graph), `simd` (bf16 products in AVX-512), [`error`], [`slices`] (raw views for the fused CPU passes),
//! [`threads`] (one rayon pool, as wide as libtorch's). `python` is the PyO3 door, behind the cargo feature of that name.

pub mod autograd;
pub mod condition;
pub mod denoiser;
pub mod draws;
pub mod error;
pub mod feedback;
pub mod inputs;
pub mod networks;
pub mod nn;
pub mod optim;
pub mod pixels;
pub mod schedule;
#[cfg(target_arch = "x86_64")]
mod simd;
pub mod slices;
pub mod step;
pub mod threads;
pub mod train;
pub mod vision;

#[cfg(feature = "python")]
mod python;

pub use error::{DivaError, Result};
