//! The bridge between the student and the teacher: chosen visual tokens and text become the
//! condition (DIVA, arXiv 2407.20171, section 3.3, "visual dense recap").
//!
//! ```text
//! tokens (B, 1+P, W) -> recap: class token + chosen patches -> LayerNorm -> CLIP projection -> projector -> + text
//! ```
//!
//! Only the chosen rows are normalised and projected. Autograd records the operations on leaves of
//! this room, so a backward pass never touches a `.grad`. Tokens in contiguous CPU memory take
//! fused passes before and after the projections (`fused`), each with a backward pass by hand;
//! every other device, layout or dtype takes libtorch operations that neither read a value on the
//! host nor depend on one, or one kernel of the device's own (`Kernel`).

mod assemble;
mod check;
mod fused;
mod plan;
mod projector;
mod recap;
mod sizes;

use std::convert::Infallible;
use std::sync::Arc;

use crate::torch::{with_grad, Kind, Tensor};

use crate::autograd::pull::{leaf, pull};
use crate::error::{DivaError, Result};

pub use assemble::TextJoin;
pub use projector::{Map, Projector};
pub use recap::Recap;

use plan::Plan;

const OP: &str = "condition";

/// CLIP's final LayerNorm over the tower's width W.
pub struct Norm {
    /// (W,)
    pub weight: Option<Tensor>,
    /// (W,)
    pub bias: Option<Tensor>,
    pub eps: f64,
}

/// CLIP's projection from the tower's width W into the joint space of width D.
pub struct Proj {
    /// (W, D) as open_clip's `proj`, or (D, W) as an `nn.Linear` weight when `transposed`.
    pub weight: Tensor,
    pub transposed: bool,
}

/// What CLIP itself does with a token after its last block.
pub struct Head {
    pub norm: Option<Norm>,
    pub proj: Option<Proj>,
}

/// The visual path as one operation that autograd records: what a device's own kernel computes.
pub trait Kernel: Send + Sync {
    /// The condition (B, N', S, C) as [`Bridge::forward`] gives it, from inputs that were checked.
    /// `params` are in the order of [`Bridge::params`].
    fn condition(
        &self,
        tokens: &Tensor,
        text: &Tensor,
        choice: Option<&Tensor>,
        params: &[Tensor],
    ) -> Result<Tensor>;
}

/// From the tokens of the student to the condition of the teacher.
pub struct Bridge {
    pub head: Head,
    pub projector: Projector,
    pub recap: Recap,
    pub join: TextJoin,
    /// Takes the place of this room's operations.
    pub kernel: Option<Arc<dyn Kernel>>,
}

/// What the backward pass needs. It refers to the tokens and parameters of the forward pass without
/// a copy, so neither may be changed in place between the two.
pub struct Tape {
    plan: Plan,
    /// The dtype of the tokens, in which their gradient goes back.
    kind: Kind,
    /// (B, 1+P, W); a leaf where autograd records the whole path.
    tokens: Tensor,
    choice: Option<Tensor>,
    /// Leaves that share the memory of the parameters, in the order of [`Bridge::params`].
    params: Vec<Tensor>,
    path: Path,
}

/// How the visual tokens became the condition.
enum Path {
    /// The condition is text alone.
    Text,
    /// Fused passes around the rows after the norm (B*M, W), a leaf, and the projected rows (B*M,
    /// C).
    Fused { hidden: Tensor, rows: Tensor },
    /// Autograd recorded all of it, up to the condition.
    Recorded { condition: Tensor },
}

/// Gradients of one backward pass.
pub struct BridgeGrads {
    /// (B, 1+P, W), in the dtype of the tokens.
    pub tokens: Tensor,
    /// One per entry of [`Bridge::params`], in that order.
    pub params: Vec<Tensor>,
}

impl Norm {
    /// How many parameters exist.
    fn count(&self) -> usize {
        usize::from(self.weight.is_some()) + usize::from(self.bias.is_some())
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        layer_norm(input, self.weight.as_ref(), self.bias.as_ref(), self.eps)
    }
}

/// torch's `nn.LayerNorm` over the last axis, recorded by autograd; half precisions are summed in
/// float32.
fn layer_norm(input: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let kind = input.f_kind()?;
    let wide = if matches!(kind, Kind::Half | Kind::BFloat16) { Kind::Float } else { kind };
    let width = input.size().last().copied().unwrap_or_default();
    let mut output =
        input.f_to_kind(wide)?.f_layer_norm([width], None::<Tensor>, None::<Tensor>, eps, false)?;
    // Apart from the norm: inside it, the sums over the rows depend on the number of libtorch's
    // threads.
    if let Some(weight) = weight {
        output = output.f_mul(&weight.f_to_kind(wide)?)?;
    }
    if let Some(bias) = bias {
        output = output.f_add(&bias.f_to_kind(wide)?)?;
    }
    Ok(output.f_to_kind(kind)?)
}

impl Bridge {
    /// The same parameters, shared.
    pub fn shallow_clone(&self) -> Self {
        let Ok(bridge) = self.map::<Infallible>(&mut |param| Ok(param.shallow_clone()));
        bridge
    }

    /// The same bridge over what `make` makes of each parameter, in the order of
    /// [`Bridge::params`].
    fn map<E>(
        &self,
        make: &mut dyn FnMut(&Tensor) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Self, E> {
        let norm = match &self.head.norm {
            None => None,
            Some(Norm { weight, bias, eps }) => Some(Norm {
                weight: weight.as_ref().map(&mut *make).transpose()?,
                bias: bias.as_ref().map(&mut *make).transpose()?,
                eps: *eps,
            }),
        };
        let proj = match &self.head.proj {
            None => None,
            Some(Proj { weight, transposed }) => {
                Some(Proj { weight: make(weight)?, transposed: *transposed })
            }
        };
        let projector = self.projector.map(make)?;
        let (head, kernel) = (Head { norm, proj }, self.kernel.clone());
        Ok(Bridge { head, projector, recap: self.recap, join: self.join, kernel })
    }

    /// Checks that the parameters fit each other.
    ///
    /// Errors: `Weights` for a misshapen parameter, `Kind` and `Device` when the parameters are not
    /// all of one floating dtype on one device, `Config` for a window or an epsilon out of range.
    pub fn new(head: Head, projector: Projector, recap: Recap, join: TextJoin) -> Result<Self> {
        let bridge = Bridge { head, projector, recap, join, kernel: None };
        if !bridge.projector.maps().is_empty() {
            check::parameters(&bridge, None)?;
        }
        Ok(bridge)
    }

    /// The parameters that exist, always in this order: `norm.weight`, `norm.bias`, `proj`,
    /// `projector.*`.
    pub fn params(&self) -> Vec<(&'static str, &Tensor)> {
        let mut params = self.head.params();
        params.extend(self.projector.params());
        params
    }

    /// The condition (B, N', S, C) in the parameters' dtype, where N' is the number N of draws
    /// under [`Recap::Random`] and 1 otherwise.
    ///
    /// * `tokens`: (B, 1+P, W), token 0 is the class (or pooled) token; any floating dtype.
    /// * `text`: (1 or B, L, C). With [`TextJoin::None`] it is not looked at, unless the recap is
    ///   text alone.
    /// * `choice`: (B, N, k) int64, patches counted from 0, under [`Recap::Random`] only. -1 is an
    ///   empty slot: it adds no visual token, so its position holds the text alone, or zeros where
    ///   no text is added.
    ///
    /// Errors: `Shape`, `Kind` and `Device` for inputs that do not fit, `Config` for a missing or
    /// an unwanted choice, `Data` for a patch that does not exist. The last is checked in CPU
    /// memory only: a host read would stall any other device.
    pub fn forward(&self, tokens: &Tensor, text: &Tensor, choice: Option<&Tensor>) -> Result<(Tensor, Tape)> {
        let sizes = check::parameters(self, Some(tokens))?;
        let plan = Plan::new(self, &sizes, tokens, text, choice)?;
        let kind = tokens.f_kind()?;
        let text = match plan.text {
            0 => text.shallow_clone(),
            _ => text.f_detach()?.f_to_kind(sizes.kind)?,
        };
        let choice = choice.map(|choice| choice.f_detach()?.f_contiguous()).transpose()?;
        let mut tape =
            Tape { plan, kind, tokens: tokens.f_detach()?, choice, params: Vec::new(), path: Path::Text };
        let condition = match self.recap {
            Recap::Text => assemble::text_alone(&tape.plan, &text)?,
            _ => with_grad(|| self.record(&mut tape, &text, sizes.kind))?,
        };
        Ok((condition, tape))
    }

    /// The visual path, recorded on leaves; gives the condition outside the graph.
    fn record(&self, tape: &mut Tape, text: &Tensor, kind: Kind) -> Result<Tensor> {
        let Tape { plan, tokens, params, .. } = tape;
        let leaves = self.map::<DivaError>(&mut |param| {
            let param = leaf(param)?;
            params.push(param.shallow_clone());
            Ok(param)
        })?;
        let (norm, choice) = (leaves.head.norm.as_ref(), tape.choice.as_ref());
        if fused::takes(tokens, kind) && self.kernel.is_none() {
            *tokens = tokens.f_to_kind(kind)?;
            let hidden = leaf(&fused::rows(plan, tokens, choice, norm)?)?;
            let rows = leaves.project(plan, &hidden)?;
            let condition = fused::assemble(plan, &rows.f_detach()?, text, choice)?;
            tape.path = Path::Fused { hidden, rows };
            return Ok(condition);
        }
        *tokens = leaf(tokens)?;
        let condition = match &self.kernel {
            Some(kernel) => kernel.condition(tokens, text, choice, params)?,
            None => {
                let rows = leaves.project(plan, &recap::rows(plan, tokens, choice, norm, kind)?)?;
                assemble::forward(plan, &rows, text, choice)?
            }
        };
        let detached = condition.f_detach()?;
        tape.path = Path::Recorded { condition };
        Ok(detached)
    }

    /// The gradients behind `grad`, the gradient (B, N', S, C) of the condition.
    ///
    /// Duplicate choices and several draws add up. An empty slot passes no gradient on.
    pub fn backward(&self, tape: &Tape, grad: &Tensor) -> Result<BridgeGrads> {
        let sizes = check::parameters(self, Some(&tape.tokens))?;
        let plan = &tape.plan;
        check::gradient(plan, grad, self, &sizes)?;
        if !matches!(tape.path, Path::Text) && tape.params.len() != self.params().len() {
            return Err(DivaError::config(OP, "the tape was recorded by another bridge"));
        }
        let grad = grad.f_detach()?.f_to_kind(sizes.kind)?;
        let (tokens, params) = match &tape.path {
            Path::Text => {
                let zeros = self.params().into_iter().map(|(_, param)| Ok(param.f_zeros_like()?));
                (tape.tokens.f_zeros_like()?, zeros.collect::<Result<_>>()?)
            }
            Path::Fused { hidden, rows } => {
                let choice = tape.choice.as_ref();
                let grad = fused::split(plan, &grad.f_contiguous()?, choice)?;
                let normed = self.head.norm.as_ref().map_or(0, Norm::count);
                let mut leaves = vec![hidden];
                leaves.extend(tape.params.iter().skip(normed));
                let mut projected = pull(rows, &grad, &leaves)?;
                let hidden = projected.remove(0);
                let back = fused::scatter(plan, &tape.tokens, choice, self.head.norm.as_ref(), &hidden)?;
                (back.tokens, [back.weight, back.bias].into_iter().flatten().chain(projected).collect())
            }
            Path::Recorded { condition } => {
                let mut leaves = vec![&tape.tokens];
                leaves.extend(&tape.params);
                let mut gradients = pull(condition, &grad, &leaves)?;
                (gradients.remove(0), gradients)
            }
        };
        Ok(BridgeGrads { tokens: tokens.f_to_kind(tape.kind)?, params })
    }

    /// Rows after the norm (rows, W) -> (rows, C), several for each where a class token becomes
    /// several tokens
    fn project(&self, plan: &Plan, hidden: &Tensor) -> Result<Tensor> {
        let rows = self.projector.forward(&self.head.project(hidden)?)?;
        Ok(rows.f_reshape([-1, plan.channels])?)
    }
}

impl Head {
    /// The parameters that exist: `norm.weight`, `norm.bias`, `proj`.
    pub fn params(&self) -> Vec<(&'static str, &Tensor)> {
        let mut params = Vec::with_capacity(3);
        if let Some(norm) = &self.norm {
            params.extend(norm.weight.as_ref().map(|weight| ("norm.weight", weight)));
            params.extend(norm.bias.as_ref().map(|bias| ("norm.bias", bias)));
        }
        params.extend(self.proj.as_ref().map(|proj| ("proj", &proj.weight)));
        params
    }

    /// (rows, W) -> (rows, D)
    fn project(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(match &self.proj {
            None => hidden.shallow_clone(),
            Some(Proj { weight, transposed: false }) => hidden.f_matmul(weight)?,
            Some(Proj { weight, transposed: true }) => hidden.f_matmul(&weight.f_transpose(0, 1)?)?,
        })
    }
}

/// CLIP's own image embedding (B, D): norm and projection of token 0, as ordinary operations that
/// autograd records. Used by the penalty that keeps the embedding near the original's.
///
/// `tokens`: (B, 1+P, W). Errors: `Shape`, `Weights`, `Kind` or `Device` when tokens and head do
/// not fit.
pub fn embed(head: &Head, tokens: &Tensor) -> Result<Tensor> {
    let kind = check::head(head, tokens)?;
    let pooled = tokens.f_select(1, 0)?.f_to_kind(kind)?;
    let pooled = match &head.norm {
        None => pooled,
        Some(norm) => norm.forward(&pooled)?,
    };
    head.project(&pooled)
}

#[cfg(test)]
mod tests;
