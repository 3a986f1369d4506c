//! The arithmetic of products of bf16 matrices on a CPU: the processor's own, or that of float32 over the same memory,
//! which is the faster one where bf16 instructions are slow or missing.

use std::cell::Cell;

use crate::error::Result;
use crate::torch::{Device, Kind, Tensor};

thread_local! {
    static WIDE: Cell<bool> = const { Cell::new(false) };
}

/// The choice of this thread while it lives. `true`: float32.
pub struct Wide(bool);

impl Wide {
    pub fn set(wide: bool) -> Self {
        Wide(WIDE.replace(wide))
    }
}

impl Drop for Wide {
    fn drop(&mut self) {
        WIDE.set(self.0);
    }
}

/// The dtype in which a product with `x` is computed. Its result has the dtype of `x`.
pub fn compute_of(x: &Tensor) -> Result<Kind> {
    Ok(compute_in(x.f_kind()?, x))
}

/// The dtype in which a product of matrices of dtype `kind` is computed where `x` is.
pub(super) fn compute_in(kind: Kind, x: &Tensor) -> Kind {
    let wide = WIDE.get() && kind == Kind::BFloat16 && x.device() == Device::Cpu;
    if wide {
        Kind::Float
    } else {
        kind
    }
}

/// `x` in dtype `kind`. Off the CPU, where each operation is a launch, also contiguous: with other strides libtorch adds a
/// layer's bias by itself.
pub(super) fn row_major(x: &Tensor, kind: Kind) -> Result<Tensor> {
    let x = x.f_to_kind(kind)?;
    Ok(if x.device() == Device::Cpu { x } else { x.f_contiguous()? })
}
