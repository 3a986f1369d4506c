//! The penalty that keeps the pooled embedding near the untouched model's, where text can find it.

use crate::torch::Tensor;

use super::term::{Scope, Term};
use super::view::View;
use crate::error::{DivaError, Result};

/// `1 - cos(embedding, original embedding)` of each sample.
pub struct Anchor {
    pub weight: f64,
}

impl Term for Anchor {
    fn name(&self) -> &str {
        "anchor"
    }

    fn weight(&self) -> f64 {
        self.weight
    }

    fn scope(&self) -> Scope {
        Scope::Sample
    }

    fn loss(&self, view: &View) -> Result<Tensor> {
        let (embedding, original) = (view.pooled()?, view.original()?);
        if embedding.size() != original.size() {
            let expected = format!("{:?} like the embedding", embedding.size());
            return Err(DivaError::shape("anchor", "original", &original, expected));
        }
        let original = original.f_type_as(&embedding)?.f_detach()?;
        let similarity = Tensor::f_cosine_similarity(&embedding, &original, 1, 1e-8)?;
        Ok(similarity.f_rsub_scalar(1.0)?.f_sum(similarity.kind())?)
    }
}
