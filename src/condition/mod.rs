//! The bridge between the student and the teacher: chosen visual tokens and text become the condition
//! (DIVA, arXiv 2407.20171, section 3.3, "visual dense recap").
//!
//! ```text
//! tokens (B, 1+P, W) -> recap: class token + chosen patches -> LayerNorm -> CLIP projection -> projector -> + text
//! ```
//!
//! Only the chosen rows are normalised and projected, and the backward pass is written by hand: nothing of this
//! room is recorded by autograd. Tokens in contiguous CPU memory take fused passes (`fused`); every other device,
//! layout or dtype takes libtorch operations that neither read a value on the host nor depend on one.

mod assemble;
mod check;
mod fused;
mod norm;
mod plan;
mod projector;
mod recap;

use tch::{Kind, Tensor};

use crate::error::Result;

pub use assemble::TextJoin;
pub use projector::Projector;
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

/// From the tokens of the student to the condition of the teacher.
pub struct Bridge {
    pub head: Head,
    pub projector: Projector,
    pub recap: Recap,
    pub join: TextJoin,
}

/// What the backward pass needs. It refers to the tokens and parameters of the forward pass without a copy, so
/// neither may be changed in place between the two.
pub struct Tape {
    plan: Plan,
    /// The tower's dtype, in which the gradient of the tokens goes back.
    kind: Kind,
    tokens: Tensor,
    choice: Option<Tensor>,
    flow: Option<Flow>,
}

/// The intermediate values of the visual path: absent when the condition is text alone.
struct Flow {
    /// Rows after the norm (B*M, W).
    hidden: Tensor,
    /// The generic path's rows before the norm; the fused passes read the tokens again instead.
    gathered: Option<recap::Gathered>,
    projector: projector::Saved,
}

/// Gradients of one backward pass.
pub struct BridgeGrads {
    /// (B, 1+P, W), in the dtype of the tokens.
    pub tokens: Tensor,
    /// One per entry of [`Bridge::params`], in that order.
    pub params: Vec<Tensor>,
}

impl Head {
    /// The same parameters, shared.
    pub fn shallow_clone(&self) -> Self {
        let share = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::shallow_clone);
        Head {
            norm: self.norm.as_ref().map(|norm| Norm {
                weight: share(&norm.weight),
                bias: share(&norm.bias),
                eps: norm.eps,
            }),
            proj: self
                .proj
                .as_ref()
                .map(|proj| Proj { weight: proj.weight.shallow_clone(), transposed: proj.transposed }),
        }
    }
}

impl Bridge {
    /// The same parameters, shared.
    pub fn shallow_clone(&self) -> Self {
        let (head, projector) = (self.head.shallow_clone(), self.projector.shallow_clone());
        Bridge { head, projector, recap: self.recap, join: self.join }
    }

    /// Checks that the parameters fit each other.
    ///
    /// Errors: `Weights` for a misshapen parameter, `Kind` and `Device` when the parameters are not all of one
    /// floating dtype on one device, `Config` for a window or an epsilon out of range.
    pub fn new(head: Head, projector: Projector, recap: Recap, join: TextJoin) -> Result<Self> {
        let bridge = Bridge { head, projector, recap, join };
        check::parameters(&bridge)?;
        Ok(bridge)
    }

    /// The parameters that exist, always in this order: `norm.weight`, `norm.bias`, `proj`, `projector.*`.
    pub fn params(&self) -> Vec<(&'static str, &Tensor)> {
        let mut params = self.head.params();
        params.extend(self.projector.params());
        params
    }

    /// The condition (B, N', S, C) in the parameters' dtype, where N' is the number N of draws under
    /// [`Recap::Random`] and 1 otherwise.
    ///
    /// * `tokens`: (B, 1+P, W), token 0 is the class (or pooled) token; any floating dtype.
    /// * `text`: (1 or B, L, C). With [`TextJoin::None`] it is not looked at, unless the recap is text alone.
    /// * `choice`: (B, N, k) int64, patches counted from 0, under [`Recap::Random`] only. -1 is an empty slot: it
    ///   adds no visual token, so its position holds the text alone, or zeros where no text is added.
    ///
    /// Errors: `Shape`, `Kind` and `Device` for inputs that do not fit, `Config` for a missing or an unwanted
    /// choice, `Data` for a patch that does not exist. The last is checked in CPU memory only: a host read would
    /// stall any other device.
    pub fn forward(&self, tokens: &Tensor, text: &Tensor, choice: Option<&Tensor>) -> Result<(Tensor, Tape)> {
        let _guard = tch::no_grad_guard();
        let sizes = check::parameters(self)?;
        let plan = Plan::new(self, &sizes, tokens, text, choice)?;
        let kind = tokens.f_kind()?;
        let text = match plan.text {
            0 => text.shallow_clone(),
            _ => text.f_detach()?.f_to_kind(sizes.kind)?,
        };
        let mut tape = Tape {
            kind,
            tokens: tokens.f_detach()?,
            choice: choice.map(|choice| choice.f_detach()?.f_contiguous()).transpose()?,
            flow: None,
            plan,
        };
        if self.recap == Recap::Text {
            return Ok((assemble::text_alone(&tape.plan, &text)?, tape));
        }
        let choice = tape.choice.as_ref();
        let fused = fused::takes(&tape.tokens, sizes.kind);
        let (hidden, gathered) = if fused {
            tape.tokens = tape.tokens.f_to_kind(sizes.kind)?;
            (fused::rows(&tape.plan, &tape.tokens, choice, self.head.norm.as_ref())?, None)
        } else {
            let (hidden, gathered) =
                recap::forward(&tape.plan, &tape.tokens, choice, self.head.norm.as_ref(), sizes.kind)?;
            (hidden, Some(gathered))
        };
        let joint = self.head.project(&hidden)?;
        let (rows, saved) = self.projector.forward(joint)?;
        let condition = if fused {
            fused::assemble(&tape.plan, &rows, &text, choice)?
        } else {
            assemble::forward(&tape.plan, &rows, &text, choice)?
        };
        tape.flow = Some(Flow { hidden, gathered, projector: saved });
        Ok((condition, tape))
    }

    /// The gradients behind `grad`, the gradient (B, N', S, C) of the condition.
    ///
    /// Duplicate choices and several draws add up. An empty slot passes no gradient on.
    pub fn backward(&self, tape: &Tape, grad: &Tensor) -> Result<BridgeGrads> {
        let _guard = tch::no_grad_guard();
        let sizes = check::parameters(self)?;
        let plan = &tape.plan;
        check::gradient(plan, grad, self, &sizes)?;
        let Some(flow) = &tape.flow else {
            let params: std::result::Result<_, _> =
                self.params().into_iter().map(|(_, param)| param.f_zeros_like()).collect();
            return Ok(BridgeGrads { tokens: tape.tokens.f_zeros_like()?, params: params? });
        };
        let grad = grad.f_detach()?.f_to_kind(sizes.kind)?;
        let choice = tape.choice.as_ref();
        let rows = match &flow.gathered {
            None => fused::split(plan, &grad.f_contiguous()?, choice)?,
            Some(_) => assemble::backward(plan, &grad, choice)?,
        };
        let (joint, projector) = self.projector.backward(&flow.projector, &rows)?;
        let (hidden, proj) = self.head.unproject(&flow.hidden, joint)?;
        let back = match &flow.gathered {
            None => fused::scatter(plan, &tape.tokens, choice, self.head.norm.as_ref(), &hidden)?,
            Some(gathered) => recap::backward(plan, gathered, self.head.norm.as_ref(), &hidden)?,
        };
        let params = [back.weight, back.bias, proj].into_iter().flatten().chain(projector).collect();
        Ok(BridgeGrads { tokens: back.tokens.f_to_kind(tape.kind)?, params })
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

    /// The gradient of the rows (rows, W), and of the projection in its own layout.
    fn unproject(&self, hidden: &Tensor, grad: Tensor) -> Result<(Tensor, Option<Tensor>)> {
        Ok(match &self.proj {
            None => (grad, None),
            Some(Proj { weight, transposed: false }) => {
                (grad.f_matmul(&weight.f_transpose(0, 1)?)?, Some(hidden.f_transpose(0, 1)?.f_matmul(&grad)?))
            }
            Some(Proj { weight, transposed: true }) => {
                (grad.f_matmul(weight)?, Some(grad.f_transpose(0, 1)?.f_matmul(hidden)?))
            }
        })
    }
}

/// CLIP's own image embedding (B, D): norm and projection of token 0, as ordinary operations that autograd
/// records. Used by the penalty that keeps the embedding near the original's.
///
/// `tokens`: (B, 1+P, W). Errors: `Shape`, `Weights`, `Kind` or `Device` when tokens and head do not fit.
pub fn embed(head: &Head, tokens: &Tensor) -> Result<Tensor> {
    let kind = check::head(head, tokens)?;
    let pooled = tokens.f_select(1, 0)?.f_to_kind(kind)?;
    let pooled = match &head.norm {
        None => pooled,
        Some(norm) => {
            let width = pooled.size().last().copied().unwrap_or_default();
            pooled.f_layer_norm([width], norm.weight.as_ref(), norm.bias.as_ref(), norm.eps, false)?
        }
    };
    head.project(&pooled)
}

#[cfg(test)]
mod tests;
