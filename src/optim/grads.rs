//! All gradients at once: their norm, clipping and scaling. Nothing here reads a value on the host.

use crate::torch::{Device, Kind, Tensor};

use super::moves::number;
use super::{in_range, lists, Optimizer};
use crate::error::{DivaError, Result};

/// The places of some parameters, and their gradients.
type Part = (Vec<usize>, Vec<Tensor>);

impl Optimizer {
    /// The norm of all gradients as one vector (0-dim, on their device), after which they are scaled in place so that
    /// it is at most `max`. torch/nn/utils/clip_grad.py, clip_grad_norm_ with norm_type=2.
    pub fn clip_grad_norm(&self, max: Option<f64>) -> Result<Tensor> {
        let (norm, factor) = self.clip(max)?;
        if let Some(factor) = factor {
            self.scale_all(&factor, true)?;
        }
        Ok(norm)
    }

    /// `clip_grad_norm`, but for gradients that are narrower than their parameters: those are to be multiplied by the
    /// factor (0-dim) that is given besides, once they are as wide.
    pub(crate) fn clip(&self, max: Option<f64>) -> Result<(Tensor, Option<Tensor>)> {
        const OP: &str = "Optimizer.clip_grad_norm";
        if let Some(max) = max {
            in_range(OP, "the maximal norm (None: no clipping)", max)?;
        }
        let _guard = crate::torch::no_grad_guard();
        // In the order of the parameters, whatever their kinds.
        let mut norms: Vec<(usize, Tensor)> = Vec::new();
        for (places, grads) in self.grads(OP)? {
            norms.extend(places.into_iter().zip(lists::norms(&grads)?));
        }
        norms.sort_unstable_by_key(|(place, _)| *place);
        let Some((_, first)) = norms.first() else { return Ok((self.zero()?, None)) };
        // Groups may live on several devices: their norms meet on the first.
        let here = |norm: &Tensor| match norm.device() == first.device() {
            true => Ok(norm.shallow_clone()),
            false => norm.f_to_other(first, true, false),
        };
        let norms: std::result::Result<Vec<_>, _> = norms.iter().map(|(_, norm)| here(norm)).collect();
        let total = Tensor::f_stack(&norms?, 0)?.f_norm()?;
        let Some(max) = max else { return Ok((total, None)) };
        // Clamped instead of compared: a comparison would wait for the device.
        let factor = total.f_add_scalar(1e-6)?.f_reciprocal()?.f_mul_scalar(max)?.f_clamp_max(1.0)?;
        self.scale_all(&factor, false)?;
        Ok((total, Some(factor)))
    }

    /// Multiplies the gradients, those that are narrower than their parameters or the others, by `factor` (0-dim).
    fn scale_all(&self, factor: &Tensor, narrow: bool) -> Result<()> {
        let parts = self.grads("Optimizer.clip_grad_norm")?;
        let mut parts = parts.iter().filter(|(_, part)| (part[0].kind() == Kind::BFloat16) == narrow);
        parts.try_for_each(|(_, part)| lists::scale(part, &factor.f_to_other(&part[0], true, false)?))
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
        for (_, part) in &self.grads(OP)? {
            lists::scale(part, &number(&part[0], factor)?)?;
        }
        Ok(())
    }

    /// The gradients with the places of their parameters, those of one device and kind together.
    fn grads(&self, op: &'static str) -> Result<Vec<Part>> {
        let mut parts: Vec<((Device, Kind), Part)> = Vec::new();
        for (place, slot) in self.slots().enumerate() {
            let Some(grad) = slot.grad(op)? else { continue };
            let alike = (grad.device(), grad.f_kind()?);
            let at = parts.iter().position(|(other, _)| *other == alike).unwrap_or(parts.len());
            if at == parts.len() {
                parts.push((alike, Default::default()));
            }
            parts[at].1 .0.push(place);
            parts[at].1 .1.push(grad);
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
