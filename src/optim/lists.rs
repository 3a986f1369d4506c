//! The Rust side of `lists.cpp`: libtorch's operations over lists of tensors of one dtype on one device.

use std::ffi::c_char;
use std::ptr::{null, null_mut};

use crate::autograd::said;
use crate::error::Result;
use crate::torch::sys::C_tensor;
use crate::torch::{no_grad_guard, Tensor};

type List = *const *const C_tensor;

#[allow(unsafe_code)]
extern "C" {
    fn diva_norms(tensors: List, count: usize, norms: *mut *mut C_tensor) -> *mut c_char;
    fn diva_copy(to: List, from: List, count: usize) -> *mut c_char;
    fn diva_scale(tensors: List, count: usize, factor: *const C_tensor) -> *mut c_char;
    fn diva_sgd(
        params: List,
        grads: List,
        buffers: List,
        count: usize,
        lr: f64,
        weight_decay: f64,
        momentum: f64,
        skip: *const C_tensor,
    ) -> *mut c_char;
    fn diva_adamw(
        params: List,
        grads: List,
        exp_avgs: List,
        exp_avg_sqs: List,
        steps: List,
        count: usize,
        lr: f64,
        weight_decay: f64,
        beta1: f64,
        beta2: f64,
        eps: f64,
        skip: *const C_tensor,
    ) -> *mut c_char;
}

/// The 2-norm of each tensor (0-dim), float32 or better.
#[allow(unsafe_code)]
pub(super) fn norms(tensors: &[Tensor]) -> Result<Vec<Tensor>> {
    let mut found = vec![null_mut(); tensors.len()];
    // SAFETY: the tensors are alive during the call, and `found` has room for one each.
    said(unsafe { diva_norms(pointers(tensors).as_ptr(), tensors.len(), found.as_mut_ptr()) })?;
    // SAFETY: without a message every place holds a tensor that was made for us.
    Ok(found.into_iter().map(|norm| unsafe { Tensor::from_ptr(norm) }).collect())
}

/// Overwrites each tensor by its counterpart, of any dtype, outside any graph.
#[allow(unsafe_code)]
pub fn copy(to: &[Tensor], from: &[Tensor]) -> Result<()> {
    let _no_grad = no_grad_guard();
    let count = to.len().min(from.len());
    // SAFETY: the tensors are alive during the call, and both lists have `count` of them.
    said(unsafe { diva_copy(pointers(to).as_ptr(), pointers(from).as_ptr(), count) })
}

/// Multiplies every tensor by `factor` (0-dim).
#[allow(unsafe_code)]
pub(super) fn scale(tensors: &[Tensor], factor: &Tensor) -> Result<()> {
    // SAFETY: the tensors are alive during the call.
    said(unsafe { diva_scale(pointers(tensors).as_ptr(), tensors.len(), factor.as_ptr()) })
}

/// What one update of several parameters takes, all lists equally long.
pub(super) struct Update<'a> {
    pub params: &'a [Tensor],
    pub grads: &'a [Tensor],
    pub lr: f64,
    pub weight_decay: f64,
    /// 0-dim float32: where it is 1, nothing changes.
    pub skip: Option<&'a Tensor>,
}

impl Update<'_> {
    /// torch/optim/sgd.py: d = g + wd p; b = momentum b + d; p -= lr b. Without buffers: p -= lr d.
    #[allow(unsafe_code)]
    pub fn sgd(&self, momentum: f64, buffers: &[Tensor]) -> Result<()> {
        let buffers = pointers(buffers);
        // SAFETY: the tensors are alive during the call, and every list that is not null has `count` of them.
        said(unsafe {
            diva_sgd(
                pointers(self.params).as_ptr(),
                pointers(self.grads).as_ptr(),
                if buffers.is_empty() { null() } else { buffers.as_ptr() },
                self.params.len(),
                self.lr,
                self.weight_decay,
                momentum,
                self.skip(),
            )
        })
    }

    /// torch/optim/adamw.py with `exp_avg`, `exp_avg_sq` and the count of updates of each parameter.
    #[allow(unsafe_code)]
    pub fn adamw(&self, betas: (f64, f64), eps: f64, state: [&[Tensor]; 3]) -> Result<()> {
        let [exp_avgs, exp_avg_sqs, steps] = state.map(pointers);
        // SAFETY: the tensors are alive during the call, and every list has `count` of them.
        said(unsafe {
            diva_adamw(
                pointers(self.params).as_ptr(),
                pointers(self.grads).as_ptr(),
                exp_avgs.as_ptr(),
                exp_avg_sqs.as_ptr(),
                steps.as_ptr(),
                self.params.len(),
                self.lr,
                self.weight_decay,
                betas.0,
                betas.1,
                eps,
                self.skip(),
            )
        })
    }

    fn skip(&self) -> *const C_tensor {
        self.skip.map_or(null(), |skip| skip.as_ptr())
    }
}

fn pointers(tensors: &[Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(Tensor::as_ptr).collect()
}
