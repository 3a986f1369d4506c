//! Losses by name.

use crate::torch::Tensor;

use crate::error::Result;

/// The losses of a step by the names of their terms, in the order of the objective: 0-dim, on the device.
#[derive(Debug, Default)]
pub struct Losses(Vec<(String, Tensor)>);

impl Losses {
    /// Adds to the loss of that name.
    pub fn add(&mut self, name: &str, loss: &Tensor) -> Result<()> {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, sum)) => *sum = sum.f_add(loss)?,
            None => self.0.push((name.to_string(), loss.shallow_clone())),
        }
        Ok(())
    }

    /// Adds the losses of another part of the batch.
    pub fn add_all(&mut self, other: &Losses) -> Result<()> {
        other.0.iter().try_for_each(|(name, loss)| self.add(name, loss))
    }

    /// The sum of all, in the dtype of the first. `None`: there is none.
    pub fn total(&self) -> Result<Option<Tensor>> {
        sum(self.0.iter().map(|(_, loss)| loss))
    }

    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.iter().find(|(known, _)| *known == name).map(|(_, loss)| loss)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, loss)| (name.as_str(), loss))
    }
}

/// The sum of 0-dim tensors, in the dtype of the first.
pub(crate) fn sum<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<Option<Tensor>> {
    let mut total: Option<Tensor> = None;
    for tensor in tensors {
        total = Some(match total {
            Some(sum) => sum.f_add(&tensor.f_type_as(&sum)?)?,
            None => tensor.shallow_clone(),
        });
    }
    Ok(total)
}
