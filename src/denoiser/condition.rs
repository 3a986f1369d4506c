//! What a prediction is conditioned on, by the slot through which it enters a network.

use crate::torch::{Kind, Tensor};

use crate::error::{floating, DivaError, Result};

/// Which slots of a network carry the condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Tokens that attention reads.
    pub tokens: bool,
    /// One vector per sample, as class embeddings and adaLN read it.
    pub pooled: bool,
    /// Width of the tokens' columns, which come first, where each slot has its own; None: one condition fills
    /// both.
    pub split: Option<i64>,
}

impl Slots {
    pub const TOKENS: Slots = Slots { tokens: true, pooled: false, split: None };
    pub const POOLED: Slots = Slots { tokens: false, pooled: true, split: None };

    /// Both slots, each with columns of its own: the tokens' first, `split` of them.
    pub const fn apart(split: i64) -> Slots {
        Slots { tokens: true, pooled: true, split: Some(split) }
    }

    /// A condition (B, S, C) in these slots, differentiable: as it is in the tokens' slot, as its mean over the
    /// positions in the pooled one; each from its own columns where it has some.
    pub fn fill(self, condition: &Tensor) -> Result<Condition> {
        let op = "condition";
        let width = condition.size().last().copied().unwrap_or_default();
        if !matches!(condition.size()[..], [_, length, _] if length > 0) {
            return Err(DivaError::shape(op, "condition", condition, "(B, S, C) with S > 0"));
        }
        floating(op, "condition", condition)?;
        let (tokens, pooled) = match self.split {
            None => (condition.shallow_clone(), condition.shallow_clone()),
            Some(at) if 0 < at && at < width => {
                (condition.f_narrow(2, 0, at)?, condition.f_narrow(2, at, width - at)?)
            }
            Some(at) => {
                let expected = format!("(B, S, C) with C > {at}, the width of the tokens' slot");
                return Err(DivaError::shape(op, "condition", condition, expected));
            }
        };
        let mean = || pooled.f_mean_dim([1i64].as_slice(), false, None::<Kind>);
        Ok(Condition { tokens: self.tokens.then_some(tokens), pooled: self.pooled.then(mean).transpose()? })
    }

    /// From the names of the slots, "tokens" and "pooled".
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>, split: Option<i64>) -> Result<Slots> {
        let mut slots = Slots { tokens: false, pooled: false, split };
        for name in names {
            match name {
                "tokens" => slots.tokens = true,
                "pooled" => slots.pooled = true,
                other => {
                    let what = format!("unknown slot {other:?}: use \"tokens\" or \"pooled\"");
                    return Err(DivaError::config("slots", what));
                }
            }
        }
        Ok(slots)
    }

    pub fn names(self) -> Vec<&'static str> {
        let names = [("tokens", self.tokens), ("pooled", self.pooled)];
        names.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
    }
}

/// A condition in the slots of a network, or the gradients at them.
#[derive(Debug, Default)]
pub struct Condition {
    pub tokens: Option<Tensor>, // (B, S, C)
    pub pooled: Option<Tensor>, // (B, V)
}

impl Condition {
    pub fn of_tokens(tokens: Tensor) -> Self {
        Condition { tokens: Some(tokens), pooled: None }
    }

    pub fn of_pooled(pooled: Tensor) -> Self {
        Condition { tokens: None, pooled: Some(pooled) }
    }

    /// The tensors that are there: tokens first.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.tokens.iter().chain(&self.pooled)
    }

    /// The tokens (B, S, C), which this network needs.
    pub fn tokens(&self, op: &'static str) -> Result<&Tensor> {
        self.tokens.as_ref().ok_or_else(|| DivaError::config(op, "the condition has no tokens"))
    }

    /// The pooled vector (B, V), which this network needs.
    pub fn pooled(&self, op: &'static str) -> Result<&Tensor> {
        self.pooled.as_ref().ok_or_else(|| DivaError::config(op, "the condition has no pooled vector"))
    }

    /// The same values outside any graph.
    pub fn detached(&self) -> Result<Condition> {
        let detached = |slot: &Option<Tensor>| slot.as_ref().map(Tensor::f_detach).transpose();
        Ok(Condition { tokens: detached(&self.tokens)?, pooled: detached(&self.pooled)? })
    }

    /// The gradient at `source`, which the slots were computed from, given the gradients at the slots.
    pub fn pull(&self, gradients: &Condition, source: &Tensor) -> Result<Tensor> {
        let mut roots = Vec::with_capacity(2);
        let pairs = [(&self.tokens, &gradients.tokens), (&self.pooled, &gradients.pooled)];
        for (slot, gradient) in pairs {
            if let (Some(slot), Some(gradient)) = (slot, gradient) {
                let product = slot.f_mul(&gradient.f_to_other(slot, false, false)?)?;
                roots.push(product.f_sum(product.f_kind()?)?);
            }
        }
        Ok(Tensor::f_run_backward(&roots, &[source], false, false)?.swap_remove(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::Device;

    const BOTH: Slots = Slots { tokens: true, pooled: true, split: None };

    fn condition() -> Tensor {
        Tensor::arange(12, (Kind::Double, Device::Cpu)).view([2, 3, 2]).set_requires_grad(true)
    }

    #[test]
    fn each_slot_gets_its_form_of_the_condition() -> Result<()> {
        let source = condition();
        let both = BOTH.fill(&source)?;
        assert_eq!(both.tokens("test")?.size(), [2, 3, 2]);
        assert_eq!(Vec::<f64>::try_from(both.pooled("test")?.view([-1]))?, [2.0, 3.0, 8.0, 9.0]);
        assert!(Slots::TOKENS.fill(&source)?.pooled("test").is_err());
        assert!(Slots::POOLED.fill(&source)?.tokens("test").is_err());
        Ok(())
    }

    #[test]
    fn slots_of_two_widths_have_columns_of_their_own() -> Result<()> {
        let source = condition();
        let apart = Slots::apart(1).fill(&source)?;
        assert_eq!(Vec::<f64>::try_from(apart.tokens("test")?.view([-1]))?, [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(Vec::<f64>::try_from(apart.pooled("test")?.view([-1]))?, [3.0, 9.0]);
        let gradients = Condition {
            tokens: Some(apart.tokens("test")?.ones_like()),
            pooled: Some(apart.pooled("test")?.ones_like() * 3),
        };
        let gradient = apart.pull(&gradients, &source)?;
        assert_eq!(Vec::<f64>::try_from(gradient.view([-1]))?, [1.0; 12]); // 1, and 3 / 3 positions
        assert!(Slots::apart(2).fill(&source).is_err());
        Ok(())
    }

    #[test]
    fn gradients_of_both_slots_add_up() -> Result<()> {
        let source = condition();
        let both = BOTH.fill(&source)?;
        let gradients = Condition {
            tokens: Some(source.ones_like()),
            pooled: Some(both.pooled("test")?.ones_like() * 3),
        };
        let gradient = both.pull(&gradients, &source)?;
        assert_eq!(Vec::<f64>::try_from(gradient.view([-1]))?, [2.0; 12]); // 1 + 3 / 3 positions
        Ok(())
    }

    #[test]
    fn a_condition_without_positions_or_of_whole_numbers_is_an_error() {
        for (size, kind) in
            [(vec![2, 0, 4], Kind::Float), (vec![2, 4], Kind::Float), (vec![2, 1, 4], Kind::Int64)]
        {
            let found = Slots::POOLED.fill(&Tensor::zeros(size.as_slice(), (kind, Device::Cpu)));
            assert!(found.is_err_and(|err| err.to_string().contains("`condition`")));
        }
    }

    #[test]
    fn slots_have_names() -> Result<()> {
        let both = Slots::named(["pooled", "tokens"], None)?;
        assert_eq!(both.names(), ["tokens", "pooled"]);
        assert!(Slots::named(["text"], None).is_err());
        Ok(())
    }
}
