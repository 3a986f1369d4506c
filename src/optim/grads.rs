//! All gradients at once: their norm, clipping and scaling. Nothing here reads a value on the host.

use crate::torch::{Device, Kind, Tensor};

use super::moves::number;
use super::{in_range, lists, Optimizer};
use crate::error::{DivaError, Result};

impl Optimizer {
    /// The norm of all gradients as one vector (0-dim, on their device), after which they are scaled in place so that
    /// it is at most `max`. torch/nn/utils/clip_grad.py, clip_grad_norm_ with norm_type=2.
    pub fn clip_grad_norm(&self, max: Option<f64>) -> Result<Tensor> {
        const OP: &str = "Optimizer.clip_grad_norm";
        if let Some(max) = max {
            in_range(OP, "the maximal norm (None: no clipping)", max)?;
        }
        let _guard = crate::torch::no_grad_guard();
        let parts = self.grads(OP)?;
        let mut norms: Vec<Tensor> = Vec::new();
        for norm in
            parts.iter().map(|part| lists::norms(part)).collect::<Result<Vec<_>>>()?.into_iter().flatten()
        {
            // Groups may live on several devices: their norms meet on the first.
            norms.push(match norms.first() {
                Some(first) if Tensor::device(first) != norm.device() => {
                    norm.f_to_other(first, true, false)?
                }
                _ => norm,
            });
        }
        if norms.is_empty() {
            return self.zero();
        }
        let total = Tensor::f_stack(&norms, 0)?.f_norm()?;
        let Some(max) = max else { return Ok(total) };
        // Clamped instead of compared: a comparison would wait for the device.
        let factor = total.f_add_scalar(1e-6)?.f_reciprocal()?.f_mul_scalar(max)?.f_clamp_max(1.0)?;
        for part in &parts {
            lists::scale(part, &factor.f_to_other(&part[0], true, false)?)?;
        }
        Ok(total)
    }

    /// Multiplies every gradient by `factor`.
    pub fn scale_grads(&self, factor: f64) -> Result<()> {
        const OP: &str = "Optimizer.scale_grads";
        if !(factor as f32).is_finite() {
            return Err(DivaError::config(
                OP,
                format!("the factor is {factor}: it must be finite in float32"),
            ));
        }
        let _guard = crate::torch::no_grad_guard();
        for part in &self.grads(OP)? {
            lists::scale(part, &number(&part[0], factor)?)?;
        }
        Ok(())
    }

    /// The gradients, those of one device and kind together.
    fn grads(&self, op: &'static str) -> Result<Vec<Vec<Tensor>>> {
        let mut parts: Vec<((Device, Kind), Vec<Tensor>)> = Vec::new();
        for slot in self.slots() {
            let Some(grad) = slot.grad(op)? else { continue };
            let place = (grad.device(), grad.f_kind()?);
            match parts.iter_mut().find(|(other, _)| *other == place) {
                Some((_, part)) => part.push(grad),
                None => parts.push((place, vec![grad])),
            }
        }
        Ok(parts.into_iter().map(|(_, part)| part).collect())
    }

    /// The norm of nothing, where the first parameter lives.
    fn zero(&self) -> Result<Tensor> {
        let Some(slot) = self.slots().next() else {
            return Err(DivaError::config("Optimizer", "there are no parameters"));
        };
        Ok(slot.param.f_zeros_like()?.f_sum(slot.kind)?)
    }
}
