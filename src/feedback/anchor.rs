//! The penalty that holds the student near the model that it was.

use tch::Tensor;

use crate::condition::{embed, Bridge, BridgeGrads};
use crate::error::{DivaError, Result};

/// Adds the gradient of the anchor, `weight * sum(1 - cos(embedding, original))`, to the gradients at hand.
/// It keeps the pooled embedding near the untouched model's, where text can find it.
pub(super) fn anchor(
    bridge: &Bridge,
    tokens: &Tensor,
    original: &Tensor,
    weight: f64,
    grads: &mut BridgeGrads,
) -> Result<Tensor> {
    let leaf = tokens.f_detach()?.f_set_requires_grad(true)?;
    let embedding = embed(&bridge.head, &leaf)?;
    if embedding.size() != original.size() {
        let expected = format!("{:?} like the embedding", embedding.size());
        return Err(DivaError::shape("anchor", "original", original, expected));
    }
    let similarity =
        Tensor::f_cosine_similarity(&embedding, &original.f_type_as(&embedding)?.f_detach()?, 1, 1e-8)?;
    let loss = similarity.f_rsub_scalar(1.0)?.f_sum(similarity.kind())?.f_mul_scalar(weight)?;
    let params = bridge.params();
    // Only the head's own parameters take part; a frozen one has no gradient to add.
    let heads: Vec<usize> = params
        .iter()
        .enumerate()
        .filter(|(_, (name, param))| !name.starts_with("projector") && param.requires_grad())
        .map(|(i, _)| i)
        .collect();
    let mut inputs = vec![&leaf];
    inputs.extend(heads.iter().map(|&i| params[i].1));
    let mut gradients = Tensor::f_run_backward(&[&loss], &inputs, false, false)?.into_iter();
    if let Some(gradient) = gradients.next() {
        grads.tokens = grads.tokens.f_add(&gradient)?;
    }
    for (&i, gradient) in heads.iter().zip(gradients) {
        if let Some(slot) = grads.params.get_mut(i) {
            *slot = slot.f_add(&gradient)?;
        }
    }
    loss.f_detach().map_err(Into::into)
}
