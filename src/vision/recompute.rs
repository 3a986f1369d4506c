//! Gradient checkpointing per block: the forward pass keeps each block's input alone, and the backward pass runs one
//! block at a time again, this time with its graph.

use std::sync::{Arc, Mutex, PoisonError};

use crate::torch::{no_grad_guard, with_grad, Tensor};

use super::vit::Vit;
use crate::autograd::pull::push;
use crate::error::Result;
use crate::step::{Carry, VisionTower};

/// What `Vit::backward` needs of one forward pass: the pixels and the input of every block and of the tail.
pub struct Recording {
    images: Tensor,
    inputs: Vec<Tensor>,
}

impl Vit {
    /// The tokens of [`VisionTower::tokens`], outside any graph.
    pub fn record(&self, images: &Tensor) -> Result<(Tensor, Recording)> {
        let _no_grad = no_grad_guard();
        let mut inputs = vec![self.stem(images)?];
        for block in &self.blocks {
            if let Some(last) = inputs.last() {
                inputs.push(block.forward(last, self.compute)?);
            }
        }
        let tokens = match inputs.last() {
            Some(last) => self.tail(last)?,
            None => self.tokens(images)?,
        };
        Ok((tokens, Recording { images: images.shallow_clone(), inputs }))
    }

    /// Adds to the `.grad` of every weight what the graph of [`VisionTower::tokens`] would, given the gradient of the
    /// tokens (B, 1 + P, W).
    pub fn backward(&self, recording: Recording, gradient: &Tensor) -> Result<()> {
        let Recording { images, mut inputs } = recording;
        with_grad(|| {
            let mut gradient = match inputs.pop() {
                Some(input) => pull(&input, gradient, |x| self.tail(x))?,
                None => return Ok(()),
            };
            for (block, input) in self.blocks.iter().zip(inputs).rev() {
                gradient = pull(&input, &gradient, |x| block.forward(x, self.compute))?;
            }
            push(&self.stem(&images)?, &gradient)
        })
    }
}

/// One tower for several owners: the object that Python holds and the step that runs it.
impl VisionTower for Arc<Mutex<Vit>> {
    fn tokens(&self, images: &Tensor) -> Result<Tensor> {
        self.lock().unwrap_or_else(PoisonError::into_inner).tokens(images)
    }

    fn record(&self, images: &Tensor) -> Result<Option<(Tensor, Carry)>> {
        let vit = self.lock().unwrap_or_else(PoisonError::into_inner);
        if !vit.checkpoint {
            return Ok(None);
        }
        let (tokens, recording) = vit.record(images)?;
        let tower = self.clone();
        let carry = move |gradient: &Tensor| {
            tower.lock().unwrap_or_else(PoisonError::into_inner).backward(recording, gradient)
        };
        Ok(Some((tokens, Box::new(carry))))
    }
}

/// The gradient at `input`, given the one at `layer(input)`; the layer's weights get theirs on the way.
fn pull(input: &Tensor, gradient: &Tensor, layer: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let leaf = input.f_detach()?.f_set_requires_grad(true)?;
    push(&layer(&leaf)?, gradient)?;
    Ok(leaf.f_grad()?)
}
