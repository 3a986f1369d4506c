//! The backward pass of one part of a network.

use tch::Tensor;

use crate::error::Result;

/// The same values as a leaf that requires a gradient.
pub fn leaf(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.f_detach()?.f_set_requires_grad(true)?)
}

/// The gradients at `leaves`, given the one at `output`: those of the scalar sum(output * gradient)
/// are the same, exactly.
pub fn pull(output: &Tensor, gradient: &Tensor, leaves: &[&Tensor]) -> Result<Vec<Tensor>> {
    let gradient = gradient.f_to_other(output, false, false)?;
    let product = output.f_mul(&gradient)?;
    Ok(Tensor::f_run_backward(&[product.f_sum(product.kind())?], leaves, false, false)?)
}
