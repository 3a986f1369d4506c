//! Generative feedback for CLIP: the training step of DIVA (arXiv 2407.20171) over libtorch.
//!
//! The map of the house, in the order in which a step walks through it:

pub mod draws; //     timesteps, noise and token choices, keyed by sample
pub mod condition; // tokens + text -> condition, forward and backward
pub mod schedule; //  noise levels, targets and loss weights
pub mod step; //      the two cuts: draws -> tokens -> condition -> feedback -> gradients
pub mod optim; //     SGD, AdamW, clipping, learning-rate schedules

pub mod error; //     what can go wrong
pub mod slices; //    raw views of tensors' memory for the fused CPU passes
pub mod threads; //   one rayon pool, as wide as libtorch's

#[cfg(feature = "python")]
mod python; //        the PyO3 door

pub use error::{DivaError, Result};
