//! The optimizer's state as named tensors, so that it can be written beside the weights and read back strictly.

use std::collections::HashMap;

use crate::torch::{Kind, Tensor};

use super::rule::Memory;
use super::slot::Slot;
use super::Optimizer;
use crate::error::{DivaError, Result};
use crate::slices;

const OP: &str = "Optimizer.load_state";

impl Optimizer {
    /// Every buffer under `parameter.buffer`, named as in torch.optim: `momentum_buffer` for SGD with momentum;
    /// `step` (0-dim float32), `exp_avg` and `exp_avg_sq` for AdamW. The buffers are the live ones, not copies.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut state = Vec::new();
        for Slot { key, memory, .. } in self.all_slots() {
            if let Memory::AdamW(moments) = memory {
                let step = slices::copied(&[moments.step as f32], &[])?;
                state.push((format!("{key}.step"), step));
            }
            for (name, buffer) in memory.buffers() {
                state.push((format!("{key}.{name}"), buffer.shallow_clone()));
            }
        }
        Ok(state)
    }

    /// Copies a state back in. Strict: every key exactly once with its shape and dtype; otherwise nothing changes.
    pub fn load_state(&mut self, state: Vec<(String, Tensor)>) -> Result<()> {
        let _guard = crate::torch::no_grad_guard();
        let mut given = Given::new(state)?;
        let mut steps = Vec::new();
        let mut copies = Vec::new();
        for Slot { key, memory, .. } in self.all_slots() {
            if let Memory::AdamW(_) = memory {
                steps.push(given.step(format!("{key}.step"))?);
            }
            for (name, buffer) in memory.buffers() {
                copies.push((buffer.shallow_clone(), given.take(format!("{key}.{name}"), buffer)?));
            }
        }
        given.finish()?;
        for (mut buffer, source) in copies {
            buffer.f_copy_(&source)?;
        }
        let slots = self.groups.iter_mut().flat_map(|group| &mut group.slots).chain(&mut self.resting);
        let counters = slots.filter_map(|slot| match &mut slot.memory {
            Memory::AdamW(moments) => Some(&mut moments.step),
            Memory::Sgd(_) => None,
        });
        for (counter, step) in counters.zip(steps) {
            *counter = step;
        }
        Ok(())
    }
}

impl Memory {
    fn buffers(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Memory::Sgd(buffer) => buffer.iter().map(|buffer| ("momentum_buffer", buffer)).collect(),
            Memory::AdamW(moments) => {
                vec![("exp_avg", &moments.exp_avg), ("exp_avg_sq", &moments.exp_avg_sq)]
            }
        }
    }
}

/// What the caller handed over, taken out key by key.
struct Given(HashMap<String, Tensor>);

impl Given {
    fn new(state: Vec<(String, Tensor)>) -> Result<Self> {
        let mut given = HashMap::with_capacity(state.len());
        for (key, tensor) in state {
            if given.insert(key.clone(), tensor).is_some() {
                return Err(weights(key, "is given twice"));
            }
        }
        Ok(Given(given))
    }

    fn tensor(&mut self, key: &str, expected: &[i64]) -> Result<Tensor> {
        let Some(tensor) = self.0.remove(key) else {
            let what = format!("is missing from the state (expected shape {expected:?})");
            return Err(weights(key, what));
        };
        if tensor.size() != expected {
            return Err(weights(key, format!("has shape {:?}, expected {expected:?}", tensor.size())));
        }
        Ok(tensor)
    }

    fn take(&mut self, key: String, like: &Tensor) -> Result<Tensor> {
        let tensor = self.tensor(&key, &like.size())?;
        let (kind, expected) = (tensor.f_kind()?, like.f_kind()?);
        if kind != expected {
            // A silent cast would lose the promise that a resumed run equals a straight one.
            return Err(weights(key, format!("is {kind:?}, expected {expected:?} as the parameter")));
        }
        Ok(tensor)
    }

    /// A number of updates: a whole number in any dtype.
    fn step(&mut self, key: String) -> Result<i64> {
        let tensor = self.tensor(&key, &[])?;
        let value = tensor.f_to_kind(Kind::Double).and_then(|step| step.f_double_value(&[]));
        match value {
            Ok(value) if value >= 0.0 && value.fract() == 0.0 && value < i64::MAX as f64 => Ok(value as i64),
            Ok(value) => Err(weights(key, format!("is {value}, expected a number of updates"))),
            Err(err) => Err(weights(key, format!("cannot be read: {}", DivaError::from(err)))),
        }
    }

    fn finish(self) -> Result<()> {
        let Some(key) = self.0.keys().min() else { return Ok(()) };
        let more = self.0.len() - 1;
        let rest = if more == 0 { String::new() } else { format!(" (and {more} more)") };
        let fix = "method, groups and names must be those it was saved from";
        Err(weights(key, format!("is not a state of this optimizer{rest}: {fix}")))
    }
}

fn weights(key: impl Into<String>, what: impl Into<String>) -> DivaError {
    DivaError::weights(OP, key.into(), what.into())
}
