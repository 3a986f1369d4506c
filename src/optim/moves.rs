//! How parameters move: libtorch's fused kernels, one call for all parameters of a group on one device.

use crate::torch::{Device, Kind, Tensor};

use super::lists::{self, Update};
use super::rule::{Memory, Method};
use super::slot::Slot;
use crate::autograd::set_grad;
use crate::error::Result;

/// The most numbers of gradients that are made wider at a time, but for those of one parameter.
const WIDENED: usize = 1 << 25;

/// Parameters of one group, device and kind, with their gradients, which move together.
pub(super) struct Move<'a> {
    pub lr: f64,
    pub weight_decay: f64,
    pub device: Device,
    /// Of the parameters and of the gradients.
    pub kinds: (Kind, Kind),
    pub slots: Vec<&'a mut Slot>,
    pub grads: Vec<Tensor>,
}

impl Move<'_> {
    fn widens(&self) -> bool {
        self.kinds.0 != self.kinds.1
    }

    /// Whether there is room for one more.
    pub(super) fn takes(&self, grad: &Tensor) -> bool {
        !self.widens() || self.grads.iter().map(Tensor::numel).sum::<usize>() + grad.numel() <= WIDENED
    }

    /// Moves the parameters. To be called without autograd. `finite` (0-dim bool): whether this step is one at all, decided
    /// on the device; `None`: it is. Gradients that are narrower than their parameters are multiplied by `clip` (0-dim),
    /// and dropped where `finite` is given.
    pub(super) fn run(
        mut self,
        method: &Method,
        finite: Option<&Tensor>,
        clip: Option<&Tensor>,
    ) -> Result<()> {
        // The kernels read every tensor of a parameter in the order of its memory.
        let dense: Vec<Tensor> =
            self.slots.iter().map(|slot| in_order(&slot.param)).collect::<Result<_>>()?;
        let alike = self.grads.iter().zip(&dense).map(|(grad, param)| as_ordered(grad, param));
        let grads: Vec<Tensor> = alike.collect::<Result<_>>()?;
        if self.widens() {
            self.grads.clear();
            if finite.is_some() {
                self.slots.iter().for_each(|slot| set_grad(&slot.param, None));
            }
            if let Some(clip) = clip {
                lists::scale(&grads, &clip.f_to_other(&grads[0], true, false)?)?;
            }
        }
        let skip = finite
            .map(|finite| finite.f_logical_not()?.f_to_other(&dense[0], true, false)?.f_to_kind(Kind::Float))
            .transpose()?;
        let update = Update {
            params: &dense,
            grads: &grads,
            lr: self.lr,
            weight_decay: self.weight_decay,
            skip: skip.as_ref(),
        };
        let mut buffers: [Vec<Tensor>; 2] = Default::default();
        let mut steps: Vec<(i64, Tensor)> = Vec::new();
        let mut counts = Vec::new();
        for slot in &mut self.slots {
            match &mut slot.memory {
                Memory::Sgd(buffer) => buffers[0].extend(buffer.iter().map(Tensor::shallow_clone)),
                Memory::AdamW(moments) => {
                    moments.step += 1;
                    if steps.iter().all(|(step, _)| *step != moments.step) {
                        let step = number(&dense[0], moments.step as f64)?.f_to_kind(Kind::Float)?;
                        steps.push((moments.step, step));
                    }
                    let step = steps.iter().find(|(step, _)| *step == moments.step);
                    counts.extend(step.map(|(_, step)| step.shallow_clone()));
                    buffers[0].push(moments.exp_avg.shallow_clone());
                    buffers[1].push(moments.exp_avg_sq.shallow_clone());
                }
            }
        }
        match *method {
            Method::Sgd { momentum } => update.sgd(momentum, &buffers[0])?,
            Method::AdamW { betas, eps } => update.adamw(betas, eps, [&buffers[0], &buffers[1], &counts])?,
        }
        for (slot, moved) in self.slots.iter_mut().zip(&dense) {
            if slot.param.data_ptr() != moved.data_ptr() {
                slot.param.f_copy_(moved)?;
            }
        }
        Ok(())
    }
}

/// A number as a 0-dim tensor of the kind and on the device of another tensor, the meta device too.
pub(super) fn number(like: &Tensor, value: f64) -> Result<Tensor> {
    let size: [i64; 0] = [];
    let first = match like.numel() {
        0 => like.f_sum(like.f_kind()?)?,
        _ => like.f_as_strided(size, size, None)?, // a view of the first element
    };
    Ok(first.f_full_like(value)?)
}

/// The parameter itself where it fills its memory without gaps, or a copy that does.
fn in_order(param: &Tensor) -> Result<Tensor> {
    let mut sides: Vec<_> = param.stride().into_iter().zip(param.size()).filter(|side| side.1 != 1).collect();
    sides.sort_unstable();
    let filled = sides.iter().try_fold(1, |step, &(stride, size)| (stride == step).then_some(step * size));
    if filled.is_some() || param.numel() == 0 {
        return Ok(param.shallow_clone());
    }
    let mut copy = param.f_empty_like()?;
    copy.f_copy_(param)?;
    Ok(copy)
}

/// A gradient in the order of its parameter's memory.
fn as_ordered(grad: &Tensor, param: &Tensor) -> Result<Tensor> {
    if grad.stride() == param.stride() && grad.f_kind()? == param.f_kind()? {
        return Ok(grad.shallow_clone());
    }
    let mut copy = param.f_empty_like()?;
    copy.f_copy_(grad)?;
    Ok(copy)
}
