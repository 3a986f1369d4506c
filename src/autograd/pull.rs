//! The backward pass of one part of a network.

use crate::torch::{with_grad, Tensor};

use crate::error::{DivaError, Result};

/// The same values as a leaf that requires a gradient.
pub fn leaf(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.f_detach()?.f_set_requires_grad(true)?)
}

/// The gradients at `leaves`, given the one at `output`: those of the scalar sum(output * gradient)
/// are the same, exactly. The caller's grad mode does not matter.
///
/// Errors: `Config` for an output that was computed without a graph (libtorch would end the
/// process).
pub fn pull(output: &Tensor, gradient: &Tensor, leaves: &[&Tensor]) -> Result<Vec<Tensor>> {
    if !output.requires_grad() {
        return Err(DivaError::config("backward", "the output was computed without a graph"));
    }
    let gradient = gradient.f_to_other(output, false, false)?;
    let total = with_grad(|| -> Result<Tensor> {
        let product = output.f_mul(&gradient)?;
        Ok(product.f_sum(product.kind())?)
    })?;
    Ok(Tensor::f_run_backward(&[total], leaves, false, false)?)
}
