//! The Rust side of `node.cpp`.

use std::ffi::{c_char, c_void, CStr, CString};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr::{null, null_mut};
use std::slice;

use crate::torch::sys::C_tensor;
use crate::torch::{no_grad_guard, Tensor};

use super::Backward;
use crate::error::{DivaError, Result};

type State = Box<dyn Backward>;
type Apply = extern "C" fn(*mut c_void, *mut C_tensor, *const bool, *mut *mut C_tensor, usize) -> *mut c_char;

#[allow(unsafe_code)]
extern "C" {
    fn diva_attach(
        output: *mut C_tensor,
        inputs: *const *const C_tensor,
        count: usize,
        state: *mut c_void,
        apply: Apply,
        drop: extern "C" fn(*mut c_void),
        free_message: extern "C" fn(*mut c_char),
    ) -> *mut c_char;
    fn diva_set_grad(leaf: *mut C_tensor, gradient: *const C_tensor);
    fn diva_free(message: *mut c_char);
}

/// `output` with a node that runs `backward` and leads to `inputs`.
#[allow(unsafe_code)]
pub fn attach(mut output: Tensor, inputs: &[&Tensor], backward: State) -> Result<Tensor> {
    let raw: Vec<_> = inputs.iter().map(|input| input.as_ptr()).collect();
    // A thin pointer to the wide one.
    let state = Box::into_raw(Box::new(backward)).cast::<c_void>();
    // SAFETY: all tensors are alive during the call, `raw` has `raw.len()` of them, and the node
    // owns `state` from here on: it gives it to `run` any number of times and to `release` once,
    // after the last.
    let message = unsafe {
        diva_attach(output.as_mut_ptr(), raw.as_ptr(), raw.len(), state, run, release, free_message)
    };
    said(message)?;
    Ok(output)
}

/// Makes `gradient`, which may have another dtype than the leaf, its `.grad`; `None`: it has none.
#[allow(unsafe_code)]
pub fn set_grad(leaf: &Tensor, gradient: Option<&Tensor>) {
    let mut leaf = leaf.shallow_clone();
    // SAFETY: both tensors are alive during the call.
    unsafe { diva_set_grad(leaf.as_mut_ptr(), gradient.map_or(null(), Tensor::as_ptr)) }
}

/// What C++ of this crate says of a call: a message where it failed, otherwise null.
#[allow(unsafe_code)]
pub(crate) fn said(message: *mut c_char) -> Result<()> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a message that is not null is a C string made with malloc, which is ours to free.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        diva_free(message);
        text
    };
    Err(DivaError::Torch(text))
}

/// Called by the node: no panic may leave it.
#[allow(unsafe_code)]
extern "C" fn run(
    state: *mut c_void,
    gradient: *mut C_tensor,
    needed: *const bool,
    gradients: *mut *mut C_tensor,
    count: usize,
) -> *mut c_char {
    // SAFETY: `state` is what `attach` made and not yet released, and no two threads run one node
    // at a time; `gradient` is a tensor that was made for this call; both arrays have `count`
    // elements.
    let (state, gradient, needed, gradients) = unsafe {
        (
            &*state.cast::<State>(),
            Tensor::from_ptr(gradient),
            slice::from_raw_parts(needed, count),
            slice::from_raw_parts_mut(gradients, count),
        )
    };
    let found = catch_unwind(AssertUnwindSafe(|| {
        let _no_grad = no_grad_guard();
        state.backward(&gradient, needed)
    }));
    let found = match found {
        Ok(found) => found.map_err(|err| err.to_string()),
        Err(_) => Err("internal error (please report it): a panic in a backward pass".to_string()),
    };
    let message = match found {
        Ok(found) => {
            for (to, tensor) in gradients.iter_mut().zip(found) {
                *to = tensor.map_or(null_mut(), owned);
            }
            return null_mut();
        }
        Err(message) => message,
    };
    CString::new(message.replace('\0', " ")).unwrap_or_default().into_raw()
}

/// The C++ tensor, whose owner is the caller from here on.
fn owned(tensor: Tensor) -> *mut C_tensor {
    let mut tensor = std::mem::ManuallyDrop::new(tensor);
    tensor.as_mut_ptr()
}

#[allow(unsafe_code)]
extern "C" fn release(state: *mut c_void) {
    // SAFETY: made by `attach`, and this is the one call that the node makes with it.
    drop(unsafe { Box::from_raw(state.cast::<State>()) });
}

#[allow(unsafe_code)]
extern "C" fn free_message(message: *mut c_char) {
    // SAFETY: made by `run` through `CString::into_raw`.
    drop(unsafe { CString::from_raw(message) });
}
