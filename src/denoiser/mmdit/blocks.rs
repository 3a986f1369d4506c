//! The blocks: two streams that attend jointly, or one stream; scaled, shifted and gated by what the network is conditioned
//! on beside the text (adaLN-Zero, arXiv 2212.09748 section 3.2).

use crate::torch::{Kind, Tensor};

use super::attention::{attend, Projections, ADDED, OWN};
use super::config::{Config, OP};
use super::rotary::Rotary;
use crate::denoiser::layers::{linear, narrowed};
use crate::error::{DivaError, Result};
use crate::nn::{Activation, LayerNorm, Linear, Path};

/// What goes from block to block.
pub struct State {
    pub image: Tensor,        // (B, P, W); behind the text once both are one stream
    pub text: Option<Tensor>, // (B, S, W)
}

/// What every block reads beside its input.
pub struct Given {
    /// SiLU of the embedding (B, W) of timestep, guidance and pooled condition.
    pub embedded: Tensor,
    pub rotary: Option<Rotary>,
    /// Of matrix products.
    pub products: Kind,
}

pub enum Block {
    Joint(Box<Joint>),
    Single(Box<Single>),
}

impl Block {
    pub fn forward(&self, state: &State, given: &Given) -> Result<State> {
        match self {
            Block::Joint(joint) => joint.forward(state, given),
            Block::Single(single) => single.forward(state, given),
        }
    }
}

/// A linear layer of the embedding, which gives shifts, scales and gates.
pub struct Modulation(Linear);

impl Modulation {
    pub fn load(path: &Path, width: i64, parts: i64) -> Result<Self> {
        Ok(Modulation(linear(path, width, parts * width)?))
    }

    /// In the dtype of `embedded`. The product is in that of the weight, which is as large as all others of a block.
    pub fn forward(&self, embedded: &Tensor) -> Result<Parts> {
        let all = self.0.forward(&narrowed(embedded, &self.0.weight)?)?;
        Ok(Parts { all: all.f_to_kind(embedded.f_kind()?)?.f_unsqueeze(1)?, width: embedded.size2()?.1 })
    }
}

/// Shifts, scales and gates (B, 1, parts W).
pub struct Parts {
    all: Tensor,
    width: i64,
}

impl Parts {
    fn at(&self, index: i64) -> Result<Tensor> {
        Ok(self.all.f_narrow(2, index * self.width, self.width)?)
    }

    /// normed (1 + scale) + shift, by the numbers of both parts.
    pub fn modulate(&self, normed: &Tensor, shift: i64, scale: i64) -> Result<Tensor> {
        Ok(normed.f_mul(&self.at(scale)?.f_add_scalar(1.0)?)?.f_add(&self.at(shift)?)?)
    }

    /// x + gate * branch in the dtype of `x`.
    fn add(&self, x: &Tensor, gate: i64, branch: &Tensor) -> Result<Tensor> {
        Ok(self.at(gate)?.f_mul(branch)?.f_add(x)?)
    }
}

/// What a stream does with attention's output.
struct Output {
    layer: Linear,
    norm: LayerNorm,
    feed_in: Linear,
    feed_out: Linear,
}

impl Output {
    fn load(layer: &Path, feed: &Path, config: &Config) -> Result<Self> {
        let (width, net) = (config.width(), feed / "net");
        Ok(Output {
            layer: linear(layer, width, width)?,
            norm: LayerNorm::plain(width, config.norm_eps),
            feed_in: linear(&(&net / 0 / "proj"), width, config.hidden)?,
            feed_out: linear(&(&net / 2), config.hidden, width)?,
        })
    }

    /// x + gate * layer(mixed).
    fn attended(&self, x: &Tensor, mixed: &Tensor, parts: &Parts) -> Result<Tensor> {
        parts.add(x, 2, &self.layer.forward(mixed)?)
    }

    /// x + gate * feed-forward(x).
    fn fed(&self, x: &Tensor, parts: &Parts, products: Kind) -> Result<Tensor> {
        let ready = parts.modulate(&self.norm.forward(x)?, 3, 4)?.f_to_kind(products)?;
        let hidden = Activation::GeluTanh.forward(&self.feed_in.forward(&ready)?)?;
        parts.add(x, 5, &self.feed_out.forward(&hidden)?)
    }
}

/// diffusers' `FluxTransformerBlock` and `JointTransformerBlock`.
pub struct Joint {
    norm: LayerNorm,
    of_image: Modulation,
    image: Projections,
    image_out: Output,
    of_text: Modulation,
    text: Projections,
    /// `None`: the text ends here.
    text_out: Option<Output>,
    /// Attention of the image to itself alone.
    dual: Option<(Projections, Linear)>,
}

impl Joint {
    /// `last`: the text ends here. `dual`: the image also attends to itself alone.
    pub fn load(path: &Path, config: &Config, last: bool, dual: bool) -> Result<Self> {
        let (width, attn, own) = (config.width(), path / "attn", path / "attn2");
        let modulation = |name: &str, parts| Modulation::load(&(path / name / "linear"), width, parts);
        let text_out = || Output::load(&(&attn / "to_add_out"), &(path / "ff_context"), config);
        let dual_out = || linear(&(&own / "to_out" / 0), width, width);
        Ok(Joint {
            norm: LayerNorm::plain(width, config.norm_eps),
            of_image: modulation("norm1", if dual { 9 } else { 6 })?,
            image: Projections::load(&attn, OWN, config)?,
            image_out: Output::load(&(&attn / "to_out" / 0), &(path / "ff"), config)?,
            of_text: modulation("norm1_context", if last { 2 } else { 6 })?,
            text: Projections::load(&attn, ADDED, config)?,
            text_out: if last { None } else { Some(text_out()?) },
            dual: if dual { Some((Projections::load(&own, OWN, config)?, dual_out()?)) } else { None },
        })
    }

    fn forward(&self, state: &State, given: &Given) -> Result<State> {
        let text = state.text.as_ref();
        let text = text.ok_or_else(|| DivaError::config(OP, "a block of two streams after one of one"))?;
        let (length, products) = (text.size3()?.1, given.products);
        let (of_image, of_text) =
            (self.of_image.forward(&given.embedded)?, self.of_text.forward(&given.embedded)?);
        let normed = self.norm.forward(&state.image)?;
        let ready = of_image.modulate(&normed, 0, 1)?.f_to_kind(products)?;
        let [query, key, value] = self.image.forward(&ready)?;
        let (shift, scale) = if self.text_out.is_some() { (0, 1) } else { (1, 0) };
        let ready = of_text.modulate(&self.norm.forward(text)?, shift, scale)?.f_to_kind(products)?;
        let [text_query, text_key, text_value] = self.text.forward(&ready)?;
        let both = |text: Tensor, image: Tensor| Tensor::f_cat(&[text, image], 1);
        let joint = [both(text_query, query)?, both(text_key, key)?, both(text_value, value)?];
        let mixed = attend(joint, given.rotary.as_ref())?;

        let patches = mixed.f_narrow(1, length, mixed.size3()?.1 - length)?;
        let mut image = self.image_out.attended(&state.image, &patches, &of_image)?;
        if let Some((projections, out)) = &self.dual {
            let ready = of_image.modulate(&normed, 6, 7)?.f_to_kind(products)?;
            let mixed = attend(projections.forward(&ready)?, None)?;
            image = of_image.add(&image, 8, &out.forward(&mixed)?)?;
        }
        let image = self.image_out.fed(&image, &of_image, products)?;
        let text = match &self.text_out {
            None => None,
            Some(out) => {
                let text = out.attended(text, &mixed.f_narrow(1, 0, length)?, &of_text)?;
                Some(out.fed(&text, &of_text, products)?)
            }
        };
        Ok(State { image, text })
    }
}

/// diffusers' `FluxSingleTransformerBlock`: text and image are one stream, attention and feed-forward are side by side.
pub struct Single {
    norm: LayerNorm,
    modulation: Modulation,
    projections: Projections,
    feed_in: Linear,
    out: Linear,
}

impl Single {
    pub fn load(path: &Path, config: &Config) -> Result<Self> {
        let (width, hidden) = (config.width(), config.hidden);
        Ok(Single {
            norm: LayerNorm::plain(width, config.norm_eps),
            modulation: Modulation::load(&(path / "norm" / "linear"), width, 3)?,
            projections: Projections::load(&(path / "attn"), OWN, config)?,
            feed_in: linear(&(path / "proj_mlp"), width, hidden)?,
            out: linear(&(path / "proj_out"), width + hidden, width)?,
        })
    }

    fn forward(&self, state: &State, given: &Given) -> Result<State> {
        let x = match &state.text {
            None => state.image.shallow_clone(),
            Some(text) => Tensor::f_cat(&[text, &state.image], 1)?,
        };
        let parts = self.modulation.forward(&given.embedded)?;
        let ready = parts.modulate(&self.norm.forward(&x)?, 0, 1)?.f_to_kind(given.products)?;
        let hidden = Activation::GeluTanh.forward(&self.feed_in.forward(&ready)?)?;
        let mixed = attend(self.projections.forward(&ready)?, given.rotary.as_ref())?;
        let image = parts.add(&x, 2, &self.out.forward(&Tensor::f_cat(&[mixed, hidden], 2)?)?)?;
        Ok(State { image, text: None })
    }
}
