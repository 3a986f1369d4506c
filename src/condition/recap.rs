//! Which tokens take part, by libtorch operations: any device, any layout, any floating dtype. The
//! sizes of every intermediate value follow from the shapes of the inputs alone.

use crate::torch::{Kind, Tensor};

use super::plan::Plan;
use super::{Norm, OP};
use crate::error::{DivaError, Result};

/// Which visual tokens make up the condition. Token 0, the class or pooled token, always comes
/// first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recap {
    /// Token 0 alone, which the projector turns into that many tokens of the condition.
    Class(i64),
    /// Token 0 and the patches of a choice, in its order.
    Random,
    /// Token 0 and the means over consecutive windows of that many patches; a remainder is dropped.
    /// The mean is taken after the norm: what follows is linear up to the projector, so this is the
    /// mean of CLIP's own projected tokens.
    Windows(i64),
    /// Every token.
    All,
    /// No visual token: the control.
    Text,
}

impl Recap {
    /// By the name of the recipe field `condition`, and its number: the width of the windows, or how
    /// many tokens the class token becomes, one if there is none.
    pub fn parse(name: &str, number: Option<i64>) -> Result<Self> {
        let recap = match (name, number) {
            ("class", count) => Recap::Class(count.unwrap_or(1)),
            ("random", None) => Recap::Random,
            ("window", Some(window)) => Recap::Windows(window),
            ("all", None) => Recap::All,
            ("text", None) => Recap::Text,
            ("window", None) => return Err(DivaError::config(OP, "the `window` recap needs a window")),
            ("random" | "all" | "text", Some(number)) => {
                let what = format!("a window of {number} was given, but the `{name}` recap takes none");
                return Err(DivaError::config(OP, what));
            }
            _ => {
                let what = format!("unknown recap `{name}`: choose class, random, window, all or text");
                return Err(DivaError::config(OP, what));
            }
        };
        Ok(recap)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Recap::Class(_) => "class",
            Recap::Random => "random",
            Recap::Windows(_) => "window",
            Recap::All => "all",
            Recap::Text => "text",
        }
    }
}

/// The rows (B*M, W) after the norm, in dtype `kind`, recorded by autograd.
pub(super) fn rows(
    plan: &Plan,
    tokens: &Tensor,
    choice: Option<&Tensor>,
    norm: Option<&Norm>,
    kind: Kind,
) -> Result<Tensor> {
    // Before the gather: sums over many rows do not fit the 8 bits of a bfloat16 mantissa.
    let tokens = &tokens.f_to_kind(kind)?;
    let source = match (plan.recap, choice) {
        (Recap::Random, Some(choice)) => gather(plan, tokens, &slots(plan, choice)?)?,
        (Recap::Windows(window), _) => tokens.f_narrow(1, 0, 1 + plan.picked * window)?,
        (Recap::All, _) => tokens.shallow_clone(),
        _ => tokens.f_narrow(1, 0, 1)?,
    };
    let normed = match norm {
        None => source,
        Some(norm) => norm.forward(&source)?,
    };
    let rows = match plan.recap {
        Recap::Windows(window) => pool(plan, &normed, window)?,
        _ => normed,
    };
    Ok(rows.f_reshape([plan.batch * plan.gathered(), plan.width])?)
}

/// The tokens (B, M, W) at `index` (B, M). An embedding lookup: its backward pass adds duplicates
/// in sorted order, where that of a gather would add them in random order on CUDA.
fn gather(plan: &Plan, tokens: &Tensor, index: &Tensor) -> Result<Tensor> {
    let table = tokens.f_reshape([plan.batch * (1 + plan.patches), plan.width])?;
    Ok(Tensor::f_embedding(&table, &flat(plan, index)?, -1, false, false)?)
}

/// Token of each stored row (B, M): token 0, then the chosen patches. Patch i is token 1 + i; an
/// empty slot (-1) becomes token 0, and is masked behind the projector.
fn slots(plan: &Plan, choice: &Tensor) -> Result<Tensor> {
    let patches = choice.f_reshape([plan.batch, plan.draws * plan.picked])?;
    // Padding with zeros creates token 0's column on the device of the choice.
    Ok(patches.f_add_scalar(1)?.f_constant_pad_nd([1, 0])?)
}

/// The index (B, M) into tokens flattened over the batch.
fn flat(plan: &Plan, index: &Tensor) -> Result<Tensor> {
    let sample = index.f_narrow(1, 0, 1)?.f_ones_like()?.f_cumsum(0, Kind::Int64)?.f_sub_scalar(1)?;
    Ok(index.f_add(&sample.f_mul_scalar(1 + plan.patches)?)?.f_contiguous()?)
}

/// (B, 1 + picked*window, W) -> (B, 1 + picked, W)
fn pool(plan: &Plan, rows: &Tensor, window: i64) -> Result<Tensor> {
    let means = rows
        .f_narrow(1, 1, plan.picked * window)?
        .f_reshape([plan.batch, plan.picked, window, plan.width])?
        .f_mean_dim([2i64].as_slice(), false, rows.f_kind()?)?;
    Ok(Tensor::f_cat(&[rows.f_narrow(1, 0, 1)?, means], 1)?)
}
