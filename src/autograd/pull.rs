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
    let total = with_grad(|| weighed(output, gradient))?;
    Ok(Tensor::f_run_backward(&[total], leaves, false, false)?)
}

/// [`pull`] from several outputs at once, given the gradient at each. `None` for a leaf that requires no gradient or that
/// no output depends on.
pub fn pull_all(outputs: &[(&Tensor, &Tensor)], leaves: &[&Tensor]) -> Result<Vec<Option<Tensor>>> {
    let roots = with_grad(|| -> Result<Vec<Tensor>> {
        let learning = outputs.iter().filter(|(output, _)| output.requires_grad());
        learning.map(|(output, gradient)| weighed(output, gradient)).collect()
    })?;
    let wanted: Vec<&Tensor> = leaves.iter().copied().filter(|leaf| leaf.requires_grad()).collect();
    let found = match roots.is_empty() || wanted.is_empty() {
        true => Vec::new(),
        false => Tensor::f_run_backward(&roots, &wanted, false, false)?,
    };
    let mut found = found.into_iter();
    let of = |leaf: &&Tensor| if leaf.requires_grad() { found.next().filter(Tensor::defined) } else { None };
    Ok(leaves.iter().map(of).collect())
}

/// Adds to the `.grad` of everything that `output` was computed from, or of itself, given the gradient at it. Nothing
/// happens where it requires none.
pub fn push(output: &Tensor, gradient: &Tensor) -> Result<()> {
    if !output.requires_grad() {
        return Ok(());
    }
    Ok(with_grad(|| weighed(output, gradient))?.f_backward()?)
}

/// sum(output * gradient): a scalar whose gradient at `output` is `gradient`, exactly.
fn weighed(output: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let product = output.f_mul(&gradient.f_to_other(output, false, false)?)?;
    Ok(product.f_sum(product.kind())?)
}

/// Of gradients that come from two places, or from one.
pub fn sum(a: Option<Tensor>, b: Option<Tensor>) -> Result<Option<Tensor>> {
    Ok(match (a, b) {
        (Some(a), Some(b)) => Some(a.f_add(&b)?),
        (a, b) => a.or(b),
    })
}
