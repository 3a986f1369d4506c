//! What a term sees.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::torch::Tensor;

use super::targets::{Keyed, SampleData};
use crate::condition::{embed, Head};
use crate::error::{DivaError, Result};

/// Computes a tensor when it is first read.
pub type Make = Box<dyn FnOnce() -> Result<Tensor> + Send>;

/// Predictions of `draws` draws from `start` on, draw by draw, of some samples of the batch.
pub struct Pass {
    pub samples: (i64, i64), // from, how many
    pub start: i64,
    pub draws: i64,
    pub prediction: Tensor,     // (n * B, ...)
    pub others: Option<Tensor>, // (n * B, K, ...), under other conditions: of the augmented view, of other images
    pub target: Tensor,         // (n * B, ...)
    pub timesteps: Tensor,      // (n * B,)
}

/// The tensors of some samples, each computed when it is first read; clones share them. Tokens and predictions are leaves
/// that ask for a gradient; embeddings are computed from the tokens, with their graph.
#[derive(Clone)]
pub struct View(Arc<Mutex<Parts>>);

struct Parts {
    tokens: Lazy,
    pooled: Lazy,
    original: Lazy,
    predictions: Lazy,
    targets: Lazy,
    timesteps: Lazy,
    keyed: Option<Keyed>,
    pass: Option<Pass>,
}

struct Lazy {
    name: &'static str,
    value: Option<Tensor>,
    make: Option<Make>,
}

/// How the parts of a view of whole samples are computed.
#[derive(Default)]
pub(super) struct Makers {
    pub original: Option<Make>,
    pub predictions: Option<Make>,
    pub targets: Option<Make>,
}

impl View {
    /// Of whole samples.
    pub(super) fn of_samples(tokens: &Tensor, head: Head, data: &SampleData, make: Makers) -> Result<Self> {
        let leaf = tokens.f_detach()?.f_set_requires_grad(true)?;
        let source = leaf.shallow_clone();
        Ok(View::new(Parts {
            tokens: Lazy::of("tokens", Some(leaf)),
            pooled: Lazy::new("pooled embedding", Some(Box::new(move || embed(&head, &source)))),
            original: Lazy::new("original embedding", make.original),
            predictions: Lazy::new("predictions", make.predictions),
            targets: Lazy::new("targets", make.targets),
            timesteps: Lazy::of("timesteps", data.targets.as_ref().map(|t| t.timesteps.shallow_clone())),
            keyed: data.keyed.clone(),
            pass: None,
        }))
    }

    /// Of the draws of one pass through the denoiser.
    pub(super) fn of_draws(pass: Pass) -> Result<Self> {
        let draws = pass.draws;
        let of = |name, tensor: &Tensor| {
            let tensor = tensor.shallow_clone();
            Lazy::new(name, Some(Box::new(move || by_sample(&tensor, draws))))
        };
        Ok(View::new(Parts {
            tokens: Lazy::new("tokens", None),
            pooled: Lazy::new("pooled embedding", None),
            original: Lazy::new("original embedding", None),
            predictions: of("predictions", &pass.prediction),
            targets: of("targets", &pass.target),
            timesteps: Lazy::of("timesteps", Some(by_sample(&pass.timesteps, draws)?)),
            keyed: None,
            pass: Some(pass),
        }))
    }

    fn new(parts: Parts) -> Self {
        View(Arc::new(Mutex::new(parts)))
    }

    /// (B, 1+P, W): token 0 is the class (or pooled) token.
    pub fn tokens(&self) -> Result<Tensor> {
        self.parts().tokens.get()
    }

    /// The student's embedding (B, D), as CLIP itself pools and projects it.
    pub fn pooled(&self) -> Result<Tensor> {
        self.parts().pooled.get()
    }

    /// The untouched model's embedding (B, D).
    pub fn original(&self) -> Result<Tensor> {
        self.parts().original.get()
    }

    /// (B, N, ...)
    pub fn predictions(&self) -> Result<Tensor> {
        self.parts().predictions.get()
    }

    /// What the predictions are compared with (B, N, ...).
    pub fn targets(&self) -> Result<Tensor> {
        self.parts().targets.get()
    }

    /// (B, N) int64
    pub fn timesteps(&self) -> Result<Tensor> {
        self.parts().timesteps.get()
    }

    /// Which samples these are.
    pub fn keyed(&self) -> Result<Keyed> {
        let missing = || DivaError::config("terms", "this view has no keys: give the step a Batch");
        self.parts().keyed.clone().ok_or_else(missing)
    }

    /// The draws of this view, in the order in which they went through the denoiser.
    pub fn pass(&self) -> Result<Pass> {
        match &self.parts().pass {
            Some(pass) => Ok(Pass {
                prediction: pass.prediction.shallow_clone(),
                others: pass.others.as_ref().map(Tensor::shallow_clone),
                target: pass.target.shallow_clone(),
                timesteps: pass.timesteps.shallow_clone(),
                ..*pass
            }),
            None => Err(DivaError::config("terms", "a term of this scope has no single pass")),
        }
    }

    /// Sets the predictions, which are otherwise computed when a term reads them.
    pub(super) fn set_predictions(&self, predictions: &Tensor) -> Result<()> {
        let leaf = predictions.f_detach()?.f_set_requires_grad(true)?;
        self.parts().predictions.make = Some(Box::new(move || Ok(leaf)));
        Ok(())
    }

    /// The predictions, if a term has read them.
    pub(super) fn predictions_read(&self) -> Option<Tensor> {
        self.parts().predictions.value.as_ref().map(Tensor::shallow_clone)
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Lazy {
    fn new(name: &'static str, make: Option<Make>) -> Self {
        Lazy { name, value: None, make }
    }

    fn of(name: &'static str, value: Option<Tensor>) -> Self {
        Lazy { name, value, make: None }
    }

    fn get(&mut self) -> Result<Tensor> {
        if let Some(make) = self.make.take() {
            self.value = Some(make()?);
        }
        match &self.value {
            Some(value) => Ok(value.shallow_clone()),
            None => {
                let what = format!("this view has no {}: the step has no model that makes them", self.name);
                Err(DivaError::config("terms", what))
            }
        }
    }
}

/// (n * B, ...), draw by draw -> (B, n, ...)
pub(super) fn by_sample(tensor: &Tensor, draws: i64) -> Result<Tensor> {
    let mut size = tensor.size();
    size.splice(..1, [draws, size.first().map_or(0, |rows| rows / draws.max(1))]);
    Ok(tensor.f_view(size.as_slice())?.f_transpose(0, 1)?)
}

/// (B, n, ...) -> (n * B, ...), draw by draw.
pub(super) fn by_draw(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.f_transpose(0, 1)?.f_flatten(0, 1)?)
}
