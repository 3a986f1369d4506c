//! A name -> tensor map that networks take their weights from, strictly: a missing key, a wrong
//! shape and a key that no network took are errors that name it. A missing weight is never
//! initialised.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::Div;

use crate::torch::{Kind, Tensor};

use crate::error::{DivaError, Result};

const OP: &str = "loading weights";

/// The map, and which of its keys have been taken.
pub struct Store {
    tensors: BTreeMap<String, Tensor>,
    leaves: BTreeMap<String, Tensor>,
    taken: RefCell<BTreeSet<String>>,
}

impl Store {
    pub fn new(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        Store { tensors: tensors.into_iter().collect(), leaves: BTreeMap::new(), taken: RefCell::default() }
    }

    /// With a leaf for each of these weights: a tensor of its shape in the dtype `kind`, without memory, at which its
    /// gradient arrives in that dtype. A gradient in the weight's own, wider one would take more memory.
    pub fn with_leaves<'a>(mut self, keys: impl Iterator<Item = &'a str>, kind: Kind) -> Result<Self> {
        for key in keys {
            if let Some(weight) = self.tensors.get(key) {
                let one = Tensor::f_empty([1], (kind, weight.device()))?;
                let leaf = one.f_expand(weight.size(), false)?.f_set_requires_grad(true)?;
                self.leaves.insert(key.to_string(), leaf);
            }
        }
        Ok(self)
    }

    pub fn root(&self) -> Path<'_> {
        Path { store: self, prefix: String::new() }
    }

    /// Error when a key was left over: the network does not compute with it, so it is not the
    /// checkpoint's network.
    pub fn finish(&self) -> Result<()> {
        let taken = self.taken.borrow();
        match self.tensors.keys().find(|key| !taken.contains(*key)) {
            None => Ok(()),
            Some(key) => Err(DivaError::weights(
                OP,
                key.clone(),
                "is unexpected: no part of this network has such a weight",
            )),
        }
    }
}

/// A place in the tree of keys: `&path / "down_blocks" / 0 / "resnets"`.
#[derive(Clone)]
pub struct Path<'a> {
    store: &'a Store,
    prefix: String,
}

impl<'a, T: Display> Div<T> for &Path<'a> {
    type Output = Path<'a>;

    fn div(self, part: T) -> Path<'a> {
        let prefix =
            if self.prefix.is_empty() { part.to_string() } else { format!("{}.{part}", self.prefix) };
        Path { store: self.store, prefix }
    }
}

impl<'a, T: Display> Div<T> for Path<'a> {
    type Output = Path<'a>;

    fn div(self, part: T) -> Path<'a> {
        &self / part
    }
}

impl Path<'_> {
    fn key(&self, name: &str) -> String {
        if self.prefix.is_empty() {
            name.to_string()
        } else {
            format!("{}.{name}", self.prefix)
        }
    }

    /// The tensor `name` at this place, sharing storage with the map's; its shape must be `shape`.
    pub fn get(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let key = self.key(name);
        match self.store.tensors.get(&key) {
            None => Err(DivaError::weights(OP, key, format!("is missing (expected shape {shape:?})"))),
            Some(tensor) if tensor.size() != shape => {
                let what = format!("has shape {:?}, expected {shape:?}", tensor.size());
                Err(DivaError::weights(OP, key, what))
            }
            Some(tensor) => {
                self.store.taken.borrow_mut().insert(key);
                Ok(tensor.shallow_clone())
            }
        }
    }

    /// The leaf of the tensor `name`, where it has one.
    pub fn leaf(&self, name: &str) -> Option<Tensor> {
        self.store.leaves.get(&self.key(name)).map(Tensor::shallow_clone)
    }

    /// Whether the tensor `name`, or anything below it, is in the map.
    pub fn has(&self, name: &str) -> bool {
        let key = self.key(name);
        let below = format!("{key}.");
        self.store.tensors.contains_key(&key)
            || self.store.tensors.range(below.clone()..).next().is_some_and(|(k, _)| k.starts_with(&below))
    }

    /// The shape of the tensor `name`, for sizes that only the checkpoint holds.
    pub fn shape(&self, name: &str) -> Result<Vec<i64>> {
        let key = self.key(name);
        match self.store.tensors.get(&key) {
            Some(tensor) => Ok(tensor.size()),
            None => Err(DivaError::weights(OP, key, "is missing")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::Device;

    fn store() -> Store {
        let tensor = || Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        Store::new([("a.weight".to_string(), tensor()), ("a.b.weight".to_string(), tensor())])
    }

    #[test]
    fn keys_are_strict_in_both_directions() {
        let store = store();
        let path = store.root() / "a";
        assert!(path.get("weight", &[2, 3]).is_ok());
        let missing = path.get("bias", &[2]).unwrap_err().to_string();
        assert!(missing.contains("a.bias") && missing.contains("[2]"), "{missing}");
        let shape = (&path / "b").get("weight", &[3, 2]).unwrap_err().to_string();
        assert!(
            shape.contains("a.b.weight") && shape.contains("[2, 3]") && shape.contains("[3, 2]"),
            "{shape}"
        );
        assert!(store.finish().unwrap_err().to_string().contains("a.b.weight"));
        assert!((&path / "b").get("weight", &[2, 3]).is_ok());
        assert!(store.finish().is_ok());
    }

    #[test]
    fn absent_weights_are_told_from_present_ones() {
        let store = store();
        let path = store.root() / "a";
        assert!(path.has("b") && path.has("weight") && !path.has("bias"));
    }
}
