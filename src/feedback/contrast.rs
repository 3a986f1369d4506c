//! The contrast of DCR: an image's prediction under its own condition is near its target and the prediction under an
//! augmented view's condition, and apart from those of the same noisy latent under other images' conditions.

use crate::torch::{Kind, Tensor};

use super::targets::SampleData;
use super::term::{Scope, Term};
use super::view::View;
use crate::draws::negatives;
use crate::error::{DivaError, Result};

/// The mean of two InfoNCE losses of each row, over the cosines of predictions. The positives are the augmented view's
/// prediction and the target; the candidates of both losses are the two positives and the predictions under other images'
/// conditions (DCR, arXiv 2603.04803, section 4.2).
pub struct Contrast {
    pub temperature: f64,
    /// One weight per draw.
    pub draw_weights: Vec<f64>,
}

/// Which other images are the negatives of an image.
pub struct Negatives {
    pub seed: u64,
    /// Images, in the order of the batch, that are negatives of each other; `None`: the batch.
    pub group: Option<usize>,
    /// Of each image; `None`: the group's others.
    pub count: Option<usize>,
}

impl Negatives {
    /// The places in the batch of `samples`, for each image, in one draw.
    pub(super) fn of(&self, data: &SampleData, samples: i64, draw: i64) -> Result<Vec<Vec<i64>>> {
        let unkeyed = || DivaError::config("contrast", "negatives are drawn by keys: give the step a Batch");
        let (keys, epoch) = match (&data.keyed, self.count) {
            (Some(keyed), _) => (keyed.keys.clone(), keyed.epoch),
            (None, None) => ((0..samples as u64).collect(), 0),
            (None, Some(_)) => return Err(unkeyed()),
        };
        if keys.len() as i64 != samples {
            let what = format!("the Batch has {} keys for {samples} samples", keys.len());
            return Err(DivaError::data("contrast", what));
        }
        Ok(negatives(self.seed, &keys, epoch, draw as u32, self.group, self.count))
    }
}

impl Term for Contrast {
    fn name(&self) -> &str {
        "contrast"
    }

    fn scope(&self) -> Scope {
        Scope::Row
    }

    fn loss(&self, view: &View) -> Result<Tensor> {
        let pass = view.pass()?;
        let (own, target) = (&pass.prediction, &pass.target);
        let others = pass.others.as_ref().ok_or_else(|| DivaError::config("contrast", "a row of one"))?;
        if own.size() != target.size() {
            let expected = format!("{:?} like the target", target.size());
            return Err(DivaError::shape("contrast", "prediction", own, expected));
        }
        let kind = if target.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let flat =
            |tensor: &Tensor, from| -> Result<Tensor> { Ok(tensor.f_to_kind(kind)?.f_flatten(from, -1)?) };
        let own = flat(own, 1)?.f_unsqueeze(1)?; // (R, 1, D)
        let logits = |tensor: &Tensor| -> Result<Tensor> {
            Ok(Tensor::f_cosine_similarity(&own, tensor, -1, 1e-8)?.f_div_scalar(self.temperature)?)
        };
        let right = logits(&flat(target, 1)?.f_unsqueeze(1)?)?; // (R, 1)
        let all = Tensor::f_cat(&[right, logits(&flat(others, 2)?)?], 1)?; // (R, 2 + negatives): the positives first
        let positive = all.f_narrow(1, 0, 2)?.f_mean_dim([1i64].as_slice(), false, kind)?;
        let rows = all.f_logsumexp([1i64].as_slice(), false)?.f_sub(&positive)?;
        let weight = self.draw_weights.get(pass.start as usize).copied().unwrap_or(1.0);
        Ok(rows.f_sum(kind)?.f_mul_scalar(weight)?)
    }
}
