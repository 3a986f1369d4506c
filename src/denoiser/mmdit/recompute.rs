//! Gradient checkpointing: the forward pass keeps each block's input alone, and the backward pass runs one block at a time
//! again, this time with its graph.

use crate::torch::{no_grad_guard, Tensor};

use super::blocks::{Given, State};
use super::{Entries, MMDiT};
use crate::autograd::pull::{leaf, pull_all, sum};
use crate::denoiser::{Condition, Denoiser, Gradients, LossGradient, Query};
use crate::error::Result;

impl MMDiT {
    /// The gradients of the loss whose gradient at the prediction `loss_gradient` gives.
    pub(super) fn recomputed(&self, query: &Query, loss_gradient: LossGradient) -> Result<Gradients> {
        let entries = self.entries(query)?;
        let slots = self.slots();
        let source = |slot: &Tensor, own| if own { leaf(slot) } else { Ok(slot.shallow_clone()) };
        let (tokens, pooled) =
            (source(&entries.tokens, slots.tokens)?, source(&entries.pooled, slots.pooled)?);
        let entries = Entries { tokens, pooled, ..entries };
        let (entered, given) = self.enter(query, &entries)?;
        let embedded = given.embedded;
        let given = Given { embedded: leaf(&embedded)?, ..given };
        let (last, inputs) = self.recorded(&entered, &given)?;

        let mut params = Params::of(self);
        let outside = |key: &str| !self.blocks.iter().any(|(block, _)| key.starts_with(block));
        let image = leaf(&last.image)?;
        let prediction = self.patches.leave(&image, &given.embedded, entries.grid)?;
        let at_prediction = loss_gradient(&query.home(&prediction.f_detach()?)?)?;
        let mut found =
            params.pull(&[(&prediction, Some(&at_prediction))], &[&image, &given.embedded], outside)?;
        let (mut at_embedded, mut at_image, mut at_text) =
            (found.pop().flatten(), found.pop().flatten(), None);
        for (i, ((key, block), input)) in self.blocks.iter().zip(inputs).enumerate().rev() {
            // Before the first block a stream may have nothing that a gradient is for.
            let ready = |x: &Tensor, from: &Tensor| source(x, i > 0 || from.requires_grad());
            let text = input.text.as_ref().zip(entered.text.as_ref());
            let input = State {
                image: ready(&input.image, &entered.image)?,
                text: text.map(|(text, from)| ready(text, from)).transpose()?,
            };
            let output = block.forward(&input, &given)?;
            let mut outputs = vec![(&output.image, at_image.as_ref())];
            outputs.extend(output.text.as_ref().map(|text| (text, at_text.as_ref())));
            let mut leaves = vec![&given.embedded, &input.image];
            leaves.extend(&input.text);
            let mut found = params.pull(&outputs, &leaves, |other| other.starts_with(key))?.into_iter();
            at_embedded = sum(at_embedded, found.next().flatten())?;
            (at_image, at_text) = (found.next().flatten(), found.next().flatten());
        }
        let mut outputs = vec![(&embedded, at_embedded.as_ref()), (&entered.image, at_image.as_ref())];
        outputs.extend(entered.text.as_ref().map(|text| (text, at_text.as_ref())));
        let mut found = params.pull(&outputs, &[&entries.tokens, &entries.pooled], outside)?;
        let condition = Condition { pooled: found.pop().flatten(), tokens: found.pop().flatten() };
        Ok(Gradients { condition, params: params.found })
    }

    /// The output of the last block, and the input of each, outside any graph.
    fn recorded(&self, entered: &State, given: &Given) -> Result<(State, Vec<State>)> {
        let _no_grad = no_grad_guard();
        let text = entered.text.as_ref().map(Tensor::f_detach).transpose()?;
        let mut state = State { image: entered.image.f_detach()?, text };
        let mut inputs = Vec::with_capacity(self.blocks.len());
        for (_, block) in &self.blocks {
            let output = block.forward(&state, given)?;
            inputs.push(std::mem::replace(&mut state, output));
        }
        Ok((state, inputs))
    }
}

/// Where the gradients of the parameters that train arrive, and the gradients as far as they are found.
struct Params {
    all: Vec<(String, Tensor)>,
    found: Vec<Option<Tensor>>,
}

impl Params {
    fn of(network: &MMDiT) -> Self {
        let all = network.params.iter().zip(&network.leaves).filter(|((_, param), _)| param.requires_grad());
        let all: Vec<_> = all.map(|((key, _), leaf)| (key.clone(), leaf.shallow_clone())).collect();
        Params { found: all.iter().map(|_| None).collect(), all }
    }

    /// The gradients at `leaves`, given those at `outputs`; those at the parameters whose keys are of `part` are added.
    fn pull(
        &mut self,
        outputs: &[(&Tensor, Option<&Tensor>)],
        leaves: &[&Tensor],
        part: impl Fn(&str) -> bool,
    ) -> Result<Vec<Option<Tensor>>> {
        let outputs: Vec<_> = outputs.iter().filter_map(|(output, at)| Some((*output, (*at)?))).collect();
        let own: Vec<usize> = (0..self.all.len()).filter(|&i| part(&self.all[i].0)).collect();
        let all: Vec<&Tensor> = leaves.iter().copied().chain(own.iter().map(|&i| &self.all[i].1)).collect();
        let mut found = pull_all(&outputs, &all)?;
        for (i, gradient) in own.into_iter().zip(found.split_off(leaves.len())) {
            self.found[i] = sum(self.found[i].take(), gradient)?;
        }
        Ok(found)
    }
}
