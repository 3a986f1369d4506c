//! Visual rows and text become the condition, by libtorch operations.

use crate::torch::Tensor;

use super::plan::Plan;
use super::OP;
use crate::error::{DivaError, Result};

/// How the text joins the visual tokens (the official code adds; for MetaCLIP, DFN and SigLIP it
/// adds the mean).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextJoin {
    /// Text token i is added to visual token i.
    Add,
    /// The mean of the text tokens is added to each visual token.
    Mean,
    /// The text tokens follow the visual ones.
    Concat,
    /// The one visual token is added to each text token, as in DCR.
    Broadcast,
    None,
}

impl TextJoin {
    /// By the name of the recipe field `text`.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "add" => Ok(TextJoin::Add),
            "mean" => Ok(TextJoin::Mean),
            "concat" => Ok(TextJoin::Concat),
            "broadcast" => Ok(TextJoin::Broadcast),
            "none" => Ok(TextJoin::None),
            _ => {
                let what = format!("unknown text join `{name}`: choose add, mean, concat, broadcast or none");
                Err(DivaError::config(OP, what))
            }
        }
    }
}

/// The control: text (1 or B, L, C) -> (B, 1, L, C).
pub(super) fn text_alone(plan: &Plan, text: &Tensor) -> Result<Tensor> {
    Ok(text.f_unsqueeze(1)?.f_expand(plan.condition(), false)?.f_contiguous()?)
}

/// The condition (B, N', S, C) from the projected rows (B*M, C).
pub(super) fn forward(plan: &Plan, rows: &Tensor, text: &Tensor, choice: Option<&Tensor>) -> Result<Tensor> {
    let (batch, draws, channels) = (plan.batch, plan.draws, plan.channels);
    let rows = rows.f_reshape([batch, plan.stored(), channels])?;
    let class = rows.f_narrow(1, 0, 1)?.f_unsqueeze(1)?.f_expand([batch, draws, 1, channels], false)?;
    let picked = rows.f_narrow(1, 1, draws * plan.picked)?;
    let picked = without_empty(plan, picked, choice)?.f_reshape([batch, draws, plan.picked, channels])?;
    let visual = Tensor::f_cat(&[class, picked], 2)?;
    Ok(match plan.join {
        TextJoin::None => visual,
        TextJoin::Broadcast => visual.f_add(&text.f_unsqueeze(1)?)?,
        TextJoin::Add => visual.f_add(&text.f_narrow(1, 0, plan.rows())?.f_unsqueeze(1)?)?,
        TextJoin::Mean => {
            let mean = text.f_mean_dim([1i64].as_slice(), true, text.f_kind()?)?;
            visual.f_add(&mean.f_unsqueeze(1)?)?
        }
        TextJoin::Concat => {
            let text = text.f_unsqueeze(1)?.f_expand([batch, draws, plan.text, channels], false)?;
            Tensor::f_cat(&[visual, text], 2)?
        }
    })
}

/// `picked` (B, N'*picked, C) with zeros in the empty slots.
fn without_empty(plan: &Plan, picked: Tensor, choice: Option<&Tensor>) -> Result<Tensor> {
    let Some(choice) = choice else { return Ok(picked) };
    let empty = choice.f_lt(0)?.f_reshape([plan.batch, plan.draws * plan.picked, 1])?;
    Ok(picked.f_masked_fill(&empty, 0)?)
}
