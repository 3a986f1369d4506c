//! The optimizer: SGD and AdamW over named parameter groups, in place on storage that is shared with Python.
//!
//! The rules are torch.optim's own (`rule.rs`), so that a run can be compared with a plain PyTorch loop number by
//! number. What torch leaves open is strict here: every parameter has a name, and a state is loaded whole or not
//! at all.

mod grads; // norm, clipping and scaling of the gradients
mod lists; // libtorch's operations over lists of tensors
mod lr; //    learning-rate schedules
mod moves; // how parameters move
mod rule; //  the update rules and what they remember
mod slot; //  one parameter: what may be trained
mod state; // names and tensors of the state, out and in

use std::collections::{HashMap, HashSet};
use std::fmt::Display;

use crate::torch::Tensor;

use crate::error::{DivaError, Result};
use moves::Move;
use slot::Slot;

pub use lists::copy;
pub use lr::LrSchedule;
pub use rule::Method;

/// Parameters that share a base learning rate and a weight decay. The key of a state is `parameter.buffer`: a name is
/// unique among all groups.
pub struct ParamGroup {
    pub name: String,
    pub lr: f64,
    pub weight_decay: f64,
    pub params: Vec<(String, Tensor)>,
}

/// A group whose parameters have become slots.
struct Group {
    name: String,
    lr: f64,
    weight_decay: f64,
    slots: Vec<Slot>,
}

pub struct Optimizer {
    method: Method,
    groups: Vec<Group>,
    /// Parameters of earlier groups, which do not move; their state waits for a group that holds them again.
    resting: Vec<Slot>,
}

impl Optimizer {
    /// Takes shallow handles: the caller's own parameters are the ones that move. The state exists from here on, so
    /// that it has the same keys whichever parameters have seen a gradient.
    pub fn new(method: Method, groups: Vec<ParamGroup>) -> Result<Self> {
        method.validate()?;
        let mut optimizer = Optimizer { method, groups: Vec::new(), resting: Vec::new() };
        optimizer.regroup(groups)?;
        Ok(optimizer)
    }

    /// Trains other groups from here on. A parameter that was in a group before, by its name, keeps its state.
    pub fn regroup(&mut self, groups: Vec<ParamGroup>) -> Result<()> {
        const OP: &str = "Optimizer";
        if groups.is_empty() {
            return Err(DivaError::config(OP, "no parameter group was given: pass at least one"));
        }
        let _guard = crate::torch::no_grad_guard();
        let mut keys = HashSet::new();
        let mut addresses = HashMap::new();
        let mut built = Vec::with_capacity(groups.len());
        for group in groups {
            let ParamGroup { name, lr, weight_decay, params } = group;
            in_range(OP, format!("the learning rate of group `{name}`"), lr)?;
            in_range(OP, format!("the weight decay of group `{name}`"), weight_decay)?;
            if params.is_empty() {
                let what = format!("group `{name}` has no parameters: leave it out or give it some");
                return Err(DivaError::config(OP, what));
            }
            let mut slots = Vec::with_capacity(params.len());
            for (key, param) in params {
                if !keys.insert(key.clone()) {
                    let what = format!("two parameters have the name `{key}`: give each its own");
                    return Err(DivaError::config(OP, what));
                }
                let slot = Slot::new(&self.method, key.clone(), param)?;
                // Null on the meta device and for empty tensors: those have no storage to share.
                let address = Some(slot.param.data_ptr() as usize).filter(|address| *address != 0);
                if let Some(other) = address.and_then(|address| addresses.insert(address, key.clone())) {
                    return Err(twice(&other, &key));
                }
                slots.push(slot);
            }
            built.push(Group { name, lr, weight_decay, slots });
        }
        // Nothing fails from here on.
        let before = std::mem::take(&mut self.groups).into_iter().flat_map(|group| group.slots);
        let mut known: HashMap<String, Slot> =
            before.chain(std::mem::take(&mut self.resting)).map(|slot| (slot.key.clone(), slot)).collect();
        for slot in built.iter_mut().flat_map(|group| &mut group.slots) {
            if let Some(kept) = known.remove(&slot.key) {
                slot.memory = kept.memory;
            }
        }
        self.groups = built;
        self.resting = known.into_values().collect();
        self.resting.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(())
    }

    /// One update with the learning rate `group.lr * factor`, one of `factors` for each group. A parameter without a
    /// gradient keeps weight and state as they are (as in torch.optim).
    pub fn step(&mut self, factors: &[f64]) -> Result<()> {
        self.advance(None, None, factors)
    }

    /// `step` where `finite` (0-dim, bool) holds; otherwise no weight and no moment moves: decided on the device, without a
    /// read. AdamW's count of updates, kept on the host, rises in both cases, as the
    /// count of a learning-rate schedule does. `clip` (0-dim): the factor on gradients that are narrower than their
    /// parameters, from `Optimizer::clip`. Those are dropped: the memory of a part of them serves the next.
    pub fn step_if(&mut self, finite: &Tensor, clip: Option<&Tensor>, factors: &[f64]) -> Result<()> {
        self.advance(Some(finite), clip, factors)
    }

    fn advance(&mut self, finite: Option<&Tensor>, clip: Option<&Tensor>, factors: &[f64]) -> Result<()> {
        const OP: &str = "Optimizer.step";
        if factors.len() != self.groups.len() {
            let names: Vec<_> = self.groups.iter().map(|group| group.name.as_str()).collect();
            let what = format!(
                "`factors` has {} entries for {} groups ({}): pass one number per group",
                factors.len(),
                names.len(),
                names.join(", ")
            );
            return Err(DivaError::config(OP, what));
        }
        for &factor in factors {
            in_range(OP, "the learning-rate factor", factor)?;
        }
        let _guard = crate::torch::no_grad_guard();
        // Every gradient is looked at before the first weight moves: a refused step changes nothing.
        let mut moves: Vec<Move> = Vec::new();
        for (group, factor) in self.groups.iter_mut().zip(factors) {
            let (lr, weight_decay) = (group.lr * factor, group.weight_decay);
            let first = moves.len();
            for slot in &mut group.slots {
                let Some(grad) = slot.grad(OP)? else { continue };
                let (device, kinds) = (slot.device, (slot.kind, grad.f_kind()?));
                let takes = |one: &Move| (one.device, one.kinds) == (device, kinds) && one.takes(&grad);
                let at = moves[first..].iter().position(takes).map_or(moves.len(), |at| first + at);
                if at == moves.len() {
                    let (slots, grads) = (Vec::new(), Vec::new());
                    moves.push(Move { lr, weight_decay, device, kinds, slots, grads });
                }
                moves[at].slots.push(slot);
                moves[at].grads.push(grad);
            }
        }
        moves.into_iter().try_for_each(|one| one.run(&self.method, finite, clip))
    }

    /// One line about the method and each group.
    pub fn describe(&self) -> String {
        let groups: Vec<_> = self
            .groups
            .iter()
            .map(|group| format!("{}: {} parameters at lr {}", group.name, group.slots.len(), group.lr))
            .collect();
        format!("Optimizer({:?}, {})", self.method, groups.join(", "))
    }

    fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.groups.iter().flat_map(|group| &group.slots)
    }

    /// Those of earlier groups too.
    fn all_slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots().chain(&self.resting)
    }
}

/// Checks a hyper-parameter. The bound is far beyond use, and keeps every product of them inside float32: tch panics
/// instead of failing when a number does not fit the dtype (its `Scalar` is dropped while the error is pending).
fn in_range(op: &'static str, name: impl Display, value: f64) -> Result<()> {
    if (0.0..=1e9).contains(&value) {
        return Ok(());
    }
    Err(DivaError::config(op, format!("{name} is {value}: it must lie between 0 and 1e9")))
}

/// The error for one tensor under two names: it would be updated twice per step.
pub(crate) fn twice(first: &str, second: &str) -> DivaError {
    let what = format!("`{first}` and `{second}` are the same tensor: pass a shared parameter once");
    DivaError::config("Optimizer", what)
}

#[cfg(test)]
mod tests;
