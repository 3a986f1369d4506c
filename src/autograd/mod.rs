//! Functions with a backward pass of their own in libtorch's graph: what a kernel of this crate
//! computes is differentiable like any operation of libtorch, and keeps for its backward pass what
//! it chooses to keep.
//!
//! The node is C++ (`node.cpp`), as autograd's interface is.

use crate::torch::{no_grad_guard, Tensor};

use crate::error::Result;

mod border;
pub mod pull;

pub(crate) use border::{said, set_grad};

/// The backward pass of a function with one output. It holds what the forward pass kept, as tensors
/// without a graph: the output with its graph would hold itself.
pub trait Backward: Send {
    /// The gradients at the inputs, in their order and of their shapes and dtypes, given the one at
    /// the output. `needed`: which inputs ask for one; those of the others may be left out. Runs
    /// outside any graph.
    fn backward(&self, gradient: &Tensor, needed: &[bool]) -> Result<Vec<Option<Tensor>>>;
}

/// What `forward` computes of `inputs`, outside any graph, joined to the graph of the inputs
/// through the backward pass that it gives besides.
pub fn apply<B: Backward + 'static>(
    inputs: &[&Tensor],
    forward: impl FnOnce() -> Result<(Tensor, B)>,
) -> Result<Tensor> {
    let (output, backward) = {
        let _no_grad = no_grad_guard();
        forward()?
    };
    border::attach(output, inputs, Box::new(backward))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::DivaError;
    use crate::torch::{Device, Kind};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::Arc;

    /// a * b with a factor on its gradients, so that they differ from autograd's.
    struct Product {
        inputs: [Tensor; 2],
        alive: Arc<AtomicBool>,
    }

    impl Drop for Product {
        fn drop(&mut self) {
            self.alive.store(false, Ordering::SeqCst);
        }
    }

    impl Backward for Product {
        fn backward(&self, gradient: &Tensor, needed: &[bool]) -> Result<Vec<Option<Tensor>>> {
            let [a, b] = &self.inputs;
            let at = |other: &Tensor| -> Result<Tensor> { Ok(gradient.f_mul(other)?.f_mul_scalar(3.0)?) };
            if gradient.f_double_value(&[0])? < 0.0 {
                return Err(DivaError::config("product", "a negative gradient"));
            }
            Ok(vec![needed[0].then(|| at(b)).transpose()?, needed[1].then(|| at(a)).transpose()?])
        }
    }

    fn leaf(value: f64, learns: bool) -> Result<Tensor> {
        Ok(Tensor::f_full([2], value, (Kind::Double, Device::Cpu))?.f_set_requires_grad(learns)?)
    }

    fn product(a: &Tensor, b: &Tensor) -> Result<(Tensor, Arc<AtomicBool>)> {
        let alive = Arc::new(AtomicBool::new(true));
        let kept = Product { inputs: [a.f_detach()?, b.f_detach()?], alive: alive.clone() };
        Ok((apply(&[a, b], || Ok((a.f_mul(b)?, kept)))?, alive))
    }

    #[test]
    fn gradients_come_from_the_given_backward_pass_and_its_state_is_dropped() -> Result<()> {
        let (a, b) = (leaf(2.0, true)?, leaf(5.0, true)?);
        let (c, alive) = product(&a.f_mul_scalar(1.0)?, &b)?;
        let loss = c.f_mul_scalar(7.0)?.f_sum(Kind::Double)?;
        let found = Tensor::f_run_backward(&[&loss], &[&a, &b], false, false)?;
        assert_eq!(found[0].f_double_value(&[1])?, 7.0 * 5.0 * 3.0);
        assert_eq!(found[1].f_double_value(&[1])?, 7.0 * 2.0 * 3.0);
        assert!(!alive.load(Ordering::SeqCst), "a graph that is not kept frees its state");
        assert!(Tensor::f_run_backward(&[&loss], &[&a], false, false).is_err());
        Ok(())
    }

    #[test]
    fn a_graph_that_is_kept_can_be_walked_again() -> Result<()> {
        let (a, b) = (leaf(2.0, false)?, leaf(5.0, true)?);
        let (c, alive) = product(&a, &b)?;
        let loss = c.f_sum(Kind::Double)?;
        for _ in 0..2 {
            let found = Tensor::f_run_backward(&[&loss], &[&b], true, false)?;
            assert_eq!(found[0].f_double_value(&[0])?, 6.0);
        }
        drop((c, loss));
        assert!(!alive.load(Ordering::SeqCst));
        Ok(())
    }

    #[test]
    fn without_a_gradient_there_is_no_graph() -> Result<()> {
        let (c, alive) = product(&leaf(2.0, false)?, &leaf(5.0, false)?)?;
        assert!(!c.requires_grad() && !alive.load(Ordering::SeqCst));
        let (a, b) = (leaf(2.0, true)?, leaf(5.0, true)?);
        let (c, alive) = crate::torch::no_grad(|| product(&a, &b))?;
        assert!(!c.requires_grad() && !alive.load(Ordering::SeqCst));
        Ok(())
    }

    #[test]
    fn errors_and_second_derivatives_are_reported() -> Result<()> {
        let (a, b) = (leaf(2.0, true)?, leaf(5.0, true)?);
        let loss = product(&a, &b)?.0.f_neg()?.f_sum(Kind::Double)?;
        let error = Tensor::f_run_backward(&[&loss], &[&a], false, false).err().map(|err| err.to_string());
        assert!(error.as_ref().is_some_and(|text| text.contains("a negative gradient")), "{error:?}");
        let loss = product(&a, &b)?.0.f_sum(Kind::Double)?;
        let error = Tensor::f_run_backward(&[&loss], &[&a], true, true).err().map(|err| err.to_string());
        assert!(error.as_ref().is_some_and(|text| text.contains("create_graph")), "{error:?}");
        Ok(())
    }
}
