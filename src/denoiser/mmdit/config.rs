//! What a multimodal diffusion transformer is built from, and the checks that make building it safe.

use serde::Deserialize;

use crate::denoiser::Condition;
use crate::error::{floating, DivaError, Result};
use crate::nn::Compute;
use crate::torch::Tensor;

pub const OP: &str = "MMDiT";

/// How queries and keys are normalised, head by head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// torch.nn.RMSNorm.
    Rms,
    /// diffusers' RMSNorm, whose mean square is float32 in a network of any dtype.
    RmsFloat32,
    /// torch.nn.LayerNorm.
    Layer,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Of the latents.
    pub channels: i64,
    /// Latent pixels along a side of what becomes one token.
    pub patch_size: i64,
    pub heads: i64,
    pub head_width: i64,
    /// Inner width of the feed-forward.
    pub hidden: i64,
    /// Blocks of two streams.
    pub num_layers: usize,
    pub tokens_width: i64,
    pub pooled_width: i64,
    pub time_channels: i64,
    /// Of the norms of the streams.
    pub norm_eps: f64,
    /// With its eps.
    pub qk_norm: Option<(QkNorm, f64)>,
    /// The guidance scale that the network is given, where it has an embedding of it.
    #[serde(default)]
    pub guidance: Option<f64>,
    pub form: Form,
    /// The dtype of matrix products of a network whose parameters train; `None`: it is frozen.
    #[serde(default)]
    pub train: Option<Compute>,
    /// Whether a step computes each block again in the backward pass instead of keeping its activations.
    pub checkpoint: bool,
}

/// In what the networks differ.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    Flux(Flux),
    Sd3(Sd3),
}

/// diffusers' `FluxTransformer2DModel`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flux {
    /// Blocks of one stream, after those of two.
    pub num_single_layers: usize,
    /// Channels of a head that turn with the frame, the row and the column.
    pub axes: [i64; 3],
    pub theta: f64,
}

/// diffusers' `SD3Transformer2DModel`. The last block gives no text.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sd3 {
    /// Tokens along a side of the stored positions.
    pub grid: i64,
    /// The blocks whose image stream also attends to itself alone.
    pub dual_layers: Vec<usize>,
}

impl Config {
    pub fn width(&self) -> i64 {
        self.heads * self.head_width
    }

    /// Channels of a token: patch_size^2 C.
    pub fn packed(&self) -> i64 {
        self.patch_size * self.patch_size * self.channels
    }

    /// `tokens` where they are (B, S, C).
    pub fn tokens(&self, name: &str, tokens: &Tensor, batch: i64) -> Result<Tensor> {
        let width = self.tokens_width;
        match tokens.size()[..] {
            [found, length, last] if found == batch && length > 0 && last == width => {
                floating(OP, name, tokens)?;
                Ok(tokens.shallow_clone())
            }
            _ => Err(DivaError::shape(OP, name, tokens, format!("[{batch}, S, {width}] with S > 0"))),
        }
    }

    /// `pooled` where it is (B, V).
    pub fn pooled(&self, name: &str, pooled: &Tensor, batch: i64) -> Result<Tensor> {
        let width = self.pooled_width;
        if pooled.size() != [batch, width] {
            let expected = format!("[{batch}, {width}]: one vector per sample");
            return Err(DivaError::shape(OP, name, pooled, expected));
        }
        floating(OP, name, pooled)?;
        Ok(pooled.shallow_clone())
    }

    /// What fills a slot in place of the condition, by its name in diffusers.
    pub fn fixed(&self, tensors: Vec<(String, Tensor)>) -> Result<Condition> {
        let mut fixed = Condition::default();
        for (name, tensor) in tensors {
            let tensor = tensor.f_detach()?;
            match name.as_str() {
                "encoder_hidden_states" => fixed.tokens = Some(self.tokens(&name, &tensor, 1)?),
                "pooled_projections" => fixed.pooled = Some(self.pooled(&name, &tensor, 1)?),
                _ => {
                    let known = "known are encoder_hidden_states and pooled_projections";
                    return refuse(format!("fixed has an unknown tensor {name:?}; {known}"));
                }
            }
        }
        match fixed.tensors().count() {
            2 => refuse("fixed fills both slots: nothing is left for the condition".to_string()),
            _ => Ok(fixed),
        }
    }

    /// Every way in which building or running the network could divide by zero or index out of range.
    pub fn check(&self) -> Result<()> {
        let mut sizes = vec![
            ("channels", self.channels),
            ("patch_size", self.patch_size),
            ("heads", self.heads),
            ("head_width", self.head_width),
            ("hidden", self.hidden),
            ("tokens_width", self.tokens_width),
            ("pooled_width", self.pooled_width),
            ("time_channels", self.time_channels),
        ];
        let blocks = match &self.form {
            Form::Flux(flux) => {
                sizes.extend(flux.axes.map(|channels| ("axes", channels)));
                self.num_layers.saturating_add(flux.num_single_layers)
            }
            Form::Sd3(sd3) => {
                sizes.push(("grid", sd3.grid));
                self.num_layers
            }
        };
        sizes.push(("the number of blocks", i64::try_from(blocks).unwrap_or(i64::MAX)));
        if let Some((name, size)) = sizes.iter().find(|(_, size)| !(1..=1 << 20).contains(size)) {
            return refuse(format!("{name} is {size}, expected 1 to a million"));
        }
        if let Form::Flux(Flux { axes, theta, .. }) = &self.form {
            if axes.iter().any(|channels| channels % 2 != 0) || axes.iter().sum::<i64>() != self.head_width {
                let width = self.head_width;
                return refuse(format!(
                    "axes {axes:?}: must be even and add up to the {width} channels of a head"
                ));
            }
            if !theta.is_finite() || *theta <= 0.0 {
                return refuse(format!("theta {theta}: must be finite and positive"));
            }
        }
        let eps = [Some(self.norm_eps), self.qk_norm.map(|(_, eps)| eps)].into_iter().flatten();
        match eps.into_iter().find(|eps| !eps.is_finite() || *eps < 0.0) {
            Some(eps) => refuse(format!("eps {eps}: must be finite and not negative")),
            None => Ok(()),
        }
    }
}

fn refuse<T>(what: String) -> Result<T> {
    Err(DivaError::config(OP, what))
}
