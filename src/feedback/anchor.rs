//! Penalties that keep the pooled embedding near the untouched model's, where text can find it.

use crate::torch::{Kind, Tensor};

use super::term::{Scope, Term};
use super::view::View;
use crate::error::{DivaError, Result};

/// How far embeddings are from the original ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// `1 - cos(embedding, original embedding)` of each sample.
    Cosine,
    /// Squared Euclidean distance of each sample's embeddings (KUEA, ICML 2025).
    Squared,
    /// Mean squared difference of the batch's kernel matrices (KUEA): `k(a, b) = (a.b / D + 1)^3`, normalised by
    /// `sqrt(k(a, a) k(b, b))`.
    Kernel,
    /// `Squared` and half of `Kernel`, the weights of KUEA.
    Both,
}

impl Anchor {
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "cosine" => Ok(Anchor::Cosine),
            "squared" => Ok(Anchor::Squared),
            "kernel" => Ok(Anchor::Kernel),
            "squared+kernel" => Ok(Anchor::Both),
            other => {
                let what = format!(
                    "unknown anchor {other:?}: use \"cosine\", \"squared\", \"kernel\" or \"squared+kernel\""
                );
                Err(DivaError::config("Step", what))
            }
        }
    }
}

impl Term for Anchor {
    fn name(&self) -> &str {
        "anchor"
    }

    fn scope(&self) -> Scope {
        match self {
            Anchor::Cosine | Anchor::Squared => Scope::Sample,
            Anchor::Kernel | Anchor::Both => Scope::Batch,
        }
    }

    fn loss(&self, view: &View) -> Result<Tensor> {
        let (embedding, original) = (view.pooled()?, view.original()?);
        if embedding.size() != original.size() {
            let expected = format!("{:?} like the embedding", embedding.size());
            return Err(DivaError::shape("anchor", "original", &original, expected));
        }
        let kind = embedding.kind();
        let (embedding, original) = (embedding.f_to_kind(WIDE)?, original.f_to_kind(WIDE)?.f_detach()?);
        let loss = match self {
            Anchor::Cosine => Tensor::f_cosine_similarity(&embedding, &original, 1, 1e-8)?
                .f_rsub_scalar(1.0)?
                .f_sum(WIDE)?,
            Anchor::Squared => squares(&embedding, &original)?,
            Anchor::Kernel => gap(&embedding, &original)?,
            // A term of the batch gives its mean, one of samples their sum.
            Anchor::Both => squares(&embedding, &original)?
                .f_div_scalar(embedding.size2()?.0)?
                .f_add(&gap(&embedding, &original)?.f_mul_scalar(0.5)?)?,
        };
        Ok(loss.f_to_kind(kind)?)
    }
}

/// What the penalties are computed in. At the original weights the gradient of a float32 cosine is rounding
/// noise of 1e-7, which AdamW turns into full steps; in float64 it lies far below AdamW's `eps`.
const WIDE: Kind = Kind::Double;

/// The squared distances of a batch, added up.
fn squares(embedding: &Tensor, original: &Tensor) -> Result<Tensor> {
    Ok(embedding.f_sub(original)?.f_square()?.f_sum(WIDE)?)
}

/// The mean squared difference of the kernel matrices.
fn gap(embedding: &Tensor, original: &Tensor) -> Result<Tensor> {
    Ok(kernel(embedding)?.f_sub(&kernel(original)?)?.f_square()?.f_mean(WIDE)?)
}

/// The normalised cubic kernel (B, B) of embeddings (B, D).
fn kernel(embeddings: &Tensor) -> Result<Tensor> {
    let width = embeddings.size2()?.1 as f64;
    let powers = |products: Tensor| products.f_div_scalar(width)?.f_add_scalar(1.0)?.f_pow_tensor_scalar(3);
    let norms = powers(embeddings.f_square()?.f_sum_dim_intlist(1, true, WIDE)?)?.f_sqrt()?;
    Ok(powers(embeddings.f_matmul(&embeddings.f_transpose(0, 1)?)?)?
        .f_div(&norms.f_matmul(&norms.f_transpose(0, 1)?)?)?)
}
