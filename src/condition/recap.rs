//! Which tokens take part, by libtorch operations: any device, any layout, any floating dtype. The sizes of every
//! intermediate value follow from the shapes of the inputs alone.

use tch::{Kind, Tensor};

use super::norm::{self, Stats};
use super::plan::Plan;
use super::{Norm, OP};
use crate::error::{DivaError, Result};

/// Which visual tokens make up the condition. Token 0, the class or pooled token, always comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recap {
    /// Token 0 alone.
    Class,
    /// Token 0 and the patches of a choice, in its order.
    Random,
    /// Token 0 and the means over consecutive windows of that many patches; a remainder is dropped. The mean is
    /// taken after the norm: what follows is linear up to the projector, so this is the mean of CLIP's own
    /// projected tokens.
    Windows(i64),
    /// Every token.
    All,
    /// No visual token: the control.
    Text,
}

impl Recap {
    /// By the name of the recipe field `condition`, and its `window`.
    pub fn parse(name: &str, window: Option<i64>) -> Result<Self> {
        let recap = match (name, window) {
            ("class", None) => Recap::Class,
            ("random", None) => Recap::Random,
            ("window", Some(window)) => Recap::Windows(window),
            ("all", None) => Recap::All,
            ("text", None) => Recap::Text,
            ("window", None) => return Err(DivaError::config(OP, "the `window` recap needs a window")),
            ("class" | "random" | "all" | "text", Some(window)) => {
                let what = format!("a window of {window} was given, but the `{name}` recap takes none");
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
            Recap::Class => "class",
            Recap::Random => "random",
            Recap::Windows(_) => "window",
            Recap::All => "all",
            Recap::Text => "text",
        }
    }
}

/// What [`backward`] needs of [`forward`].
pub(super) struct Gathered {
    /// Rows before the norm (B, G, W), in the parameters' dtype.
    source: Tensor,
    stats: Option<Stats>,
    /// Token of each row (B, G), where it is not the row itself. An empty slot points at token 0.
    index: Option<Tensor>,
}

/// Gradients of the tokens (B, 1+P, W) and of the norm's parameters where these exist.
pub(super) struct Back {
    pub tokens: Tensor,
    pub weight: Option<Tensor>,
    pub bias: Option<Tensor>,
}

/// The rows (B*M, W) after the norm, in dtype `kind`.
pub(super) fn forward(
    plan: &Plan,
    tokens: &Tensor,
    choice: Option<&Tensor>,
    norm: Option<&Norm>,
    kind: Kind,
) -> Result<(Tensor, Gathered)> {
    let index = choice.map(|choice| slots(plan, choice)).transpose()?;
    let source = match (plan.recap, &index) {
        (Recap::Random, Some(index)) => {
            let size = [plan.batch, plan.stored(), plan.width];
            tokens.f_gather(1, &index.f_unsqueeze(-1)?.f_expand(size, false)?, false)?
        }
        (Recap::Windows(window), _) => tokens.f_narrow(1, 0, 1 + plan.picked * window)?,
        (Recap::All, _) => tokens.shallow_clone(),
        _ => tokens.f_narrow(1, 0, 1)?,
    };
    let source = source.f_to_kind(kind)?;
    let (normed, stats) = match norm {
        None => (source.shallow_clone(), None),
        Some(Norm { weight, bias, eps }) => {
            let (normed, stats) = norm::forward(&source, weight.as_ref(), bias.as_ref(), *eps)?;
            (normed, Some(stats))
        }
    };
    let hidden = match plan.recap {
        Recap::Windows(window) => pool(plan, &normed, window)?,
        _ => normed,
    };
    let hidden = hidden.f_reshape([plan.batch * plan.stored(), plan.width])?;
    Ok((hidden, Gathered { source, stats, index }))
}

/// From the gradient of the rows (B*M, W).
pub(super) fn backward(plan: &Plan, gathered: &Gathered, norm: Option<&Norm>, grad: &Tensor) -> Result<Back> {
    let grad = grad.f_reshape([plan.batch, plan.stored(), plan.width])?;
    let grad = match plan.recap {
        Recap::Windows(window) => unpool(plan, &grad, window)?,
        _ => grad,
    };
    let (grad, weight, bias) = match (norm, &gathered.stats) {
        (Some(norm), Some(stats)) => {
            let back = norm::backward(&gathered.source, stats, norm.weight.as_ref(), &grad)?;
            (back.input, norm.weight.as_ref().map(|_| back.weight), norm.bias.as_ref().map(|_| back.bias))
        }
        _ => (grad, None, None),
    };
    let count = 1 + plan.patches;
    let tokens = match &gathered.index {
        // A sorted sum, where `scatter_add` would add in random order on CUDA.
        Some(index) => Tensor::f_embedding_dense_backward(
            &grad.f_contiguous()?,
            &flat(plan, index)?,
            plan.batch * count,
            -1,
            false,
        )?
        .f_reshape([plan.batch, count, plan.width])?,
        None => {
            let rows = grad.size().get(1).copied().unwrap_or_default();
            grad.f_constant_pad_nd([0, 0, 0, count - rows])?
        }
    };
    Ok(Back { tokens, weight, bias })
}

/// Token of each stored row (B, M): token 0, then the chosen patches. Patch i is token 1 + i; an empty slot (-1)
/// becomes token 0, and is masked behind the projector.
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

/// The gradient of [`pool`].
fn unpool(plan: &Plan, grad: &Tensor, window: i64) -> Result<Tensor> {
    let size = [plan.batch, plan.picked, window, plan.width];
    let spread = grad
        .f_narrow(1, 1, plan.picked)?
        .f_div_scalar(window)?
        .f_unsqueeze(2)?
        .f_expand(size, false)?
        .f_reshape([plan.batch, plan.picked * window, plan.width])?;
    Ok(Tensor::f_cat(&[grad.f_narrow(1, 0, 1)?, spread], 1)?)
}
