//! Generative feedback for CLIP: the training step of DIVA (arXiv 2407.20171) over libtorch.
//!
//! The modules, in the order in which a step runs through them:
//!
//! * [`train`]: the whole of it, from images to updated weights
//! * [`inputs`]: a loader's batch as the tensors of a step
//! * [`resample`]: a loader's crops of decoded pictures
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
//! Below them: [`nn`] (blocks of the native networks, strict loading), [`autograd`] (backward passes
//! in libtorch's graph), [`error`]. `python` is the PyO3 door, behind the cargo feature of that name.
//!
//! About 2,300 lines serve CPUs alone; a CUDA step never runs them: `condition/fused` and
//! `schedule/fused.rs` (fused passes over host memory), [`slices`] (the raw views they read),
//! `simd` and `nn/attention/{flash,blocks}` (bf16 attention in AVX-512), [`threads`] (kernels on
//! libtorch's threads). On CUDA the same rooms use libtorch's operations.

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
pub mod resample;
pub mod schedule;
#[cfg(target_arch = "x86_64")]
mod simd;
pub mod slices;
pub mod step;
pub mod threads;
pub mod torch;
pub mod train;
pub mod vision;

#[cfg(feature = "python")]
mod python;

pub use error::{DivaError, Result};
