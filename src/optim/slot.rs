//! One parameter of the caller: what may be trained, and that it stays what it was.

use crate::torch::{Device, Kind, Tensor};

use super::rule::{Memory, Method};
use crate::error::{DivaError, Result};

/// A parameter, its key, what it was when the state was made, and what the method remembers of it.
pub(super) struct Slot {
    pub(super) key: String,
    pub(super) param: Tensor,
    pub(super) kind: Kind,
    pub(super) memory: Memory,
    pub(super) device: Device,
    size: Vec<i64>,
}

impl Slot {
    pub(super) fn new(method: &Method, key: String, param: Tensor) -> Result<Self> {
        let kind = trainable(&key, &param)?;
        let memory = Memory::new(method, &param)?;
        let (device, size) = (param.device(), param.size());
        Ok(Slot { key, param, kind, memory, device, size })
    }

    /// The gradient, None where autograd has left none.
    pub(super) fn grad(&self, op: &'static str) -> Result<Option<Tensor>> {
        let grad = self.param.f_grad()?;
        if !grad.defined() {
            return Ok(None);
        }
        self.unchanged(op)?;
        if grad.is_sparse() {
            let what = format!("`{}` has a sparse gradient: only dense ones are taken", self.key);
            return Err(DivaError::config(op, what));
        }
        Ok(Some(grad))
    }

    /// `model.to(...)` after construction swaps what is behind a parameter, and the state would no longer fit it.
    fn unchanged(&self, op: &'static str) -> Result<()> {
        const WHEN: &str = "when the optimizer was built: build it after the model is cast, moved or resized";
        let kind = self.param.f_kind()?;
        if kind != self.kind {
            let expected = format!("{:?} as {WHEN}", self.kind);
            return Err(DivaError::kind(op, self.key.clone(), kind, expected));
        }
        if self.param.size() != self.size {
            return Err(DivaError::shape(op, &self.key, &self.param, format!("{:?} as {WHEN}", self.size)));
        }
        if self.param.device() != self.device {
            let what = format!("`{}` is not on {:?} as {WHEN}", self.key, self.device);
            return Err(DivaError::device(op, what));
        }
        Ok(())
    }
}

/// The kind of `param`, if it can be trained in place without losing small updates.
fn trainable(key: &str, param: &Tensor) -> Result<Kind> {
    const OP: &str = "Optimizer";
    let refuse = |what: &str| Err(DivaError::config(OP, format!("`{key}` {what}")));
    let kind = param.f_kind().map_err(|err| DivaError::config(OP, format!("`{key}`: {err}")))?;
    if !matches!(kind, Kind::Float | Kind::Double) {
        // Updates of 1e-5 vanish in bfloat16; lower precision belongs into the forward pass.
        let expected = "float32 or float64 master weights: call .float() on the model".to_string();
        return Err(DivaError::kind(OP, key.to_string(), kind, expected));
    }
    if param.is_sparse() {
        return refuse("is a sparse tensor: only dense parameters are taken");
    }
    if param.f_is_inference()? {
        return refuse("was made under torch.inference_mode() and cannot be trained: clone it outside");
    }
    if param.size().iter().zip(param.stride()).any(|(size, stride)| *size > 1 && stride == 0) {
        return refuse("is an expanded view whose elements share memory: pass a contiguous copy");
    }
    if !param.f_is_leaf()? {
        return refuse("is not a leaf (it was computed from other tensors): pass the nn.Parameter itself");
    }
    Ok(kind)
}
