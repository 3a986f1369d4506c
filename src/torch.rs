//! libtorch: the only file that names `tch` and the crates around it.
//!
//! `tch` is generated for torch 2.13. The crate uses only what torch 2.9 to 2.15 have in common;
//! `.cargo/torch_versions.h` supplies the C++ functions that `tch` names beyond it. Where versions
//! differ for Rust, this is the place to decide it.

pub use tch::{
    get_num_threads, kind, manual_seed, no_grad, no_grad_guard, set_num_threads, with_grad, Device, IndexOp,
    Kind, TchError, Tensor,
};

#[cfg(feature = "python")]
pub(crate) use pyo3_tch::PyTensor;
pub(crate) use torch_sys as sys;
