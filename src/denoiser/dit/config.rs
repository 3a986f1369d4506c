//! What a DiTTransformer2DModel is built from, and the checks that make building it safe.

use serde::Deserialize;

use crate::error::{DivaError, Result};
use crate::nn::Activation;

pub const OP: &str = "DiTTransformer2D";

/// How the pooled condition enters where a class label's embedding did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Label {
    /// In place of the label's embedding.
    Replace,
    /// Added to the embedding of "no class" of each block.
    Join,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub in_channels: i64,
    /// As `in_channels`, or twice that: a learned variance, which is computed and dropped.
    pub out_channels: i64,
    pub patch_size: i64,
    /// Patches along a side at the size whose positions are stored.
    pub grid: i64,
    pub width: i64,
    pub num_layers: usize,
    pub heads: i64,
    /// Inner width of the feed-forward.
    pub hidden: i64,
    pub activation: Activation,
    /// Whether queries, keys and values have a bias.
    pub attention_bias: bool,
    /// Whether the norm before the feed-forward has weights.
    pub norm_elementwise_affine: bool,
    /// Of the norm before attention, before the feed-forward, and of the last one.
    pub norm_eps: (f64, f64, f64),
    pub time_channels: i64,
    pub flip_sin_to_cos: bool,
    pub freq_shift: f64,
    pub label: Label,
    pub num_classes: i64,
    /// Rows of a label table: one more than classes where there is a "no class".
    pub label_rows: i64,
    /// Whether a step computes each block again in the backward pass instead of keeping its activations.
    pub checkpoint: bool,
}

impl Config {
    /// Every way in which building or running the network could divide by zero or index out of range.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("in_channels", self.in_channels),
            ("patch_size", self.patch_size),
            ("grid", self.grid),
            ("width", self.width),
            ("num_layers", i64::try_from(self.num_layers).unwrap_or(i64::MAX)),
            ("heads", self.heads),
            ("time_channels", self.time_channels),
            ("hidden", self.hidden),
            ("label_rows", self.label_rows),
        ];
        if let Some((name, size)) = sizes.iter().find(|(_, size)| !(1..=1 << 20).contains(size)) {
            return refuse(format!("{name} is {size}, expected 1 to a million"));
        }
        if self.out_channels != self.in_channels && self.out_channels != 2 * self.in_channels {
            return refuse(format!(
                "{} channels in and {} out: neither as many nor twice as many",
                self.in_channels, self.out_channels
            ));
        }
        if self.width % self.heads != 0 || self.width % 4 != 0 {
            let (width, heads) = (self.width, self.heads);
            return refuse(format!("width {width} must be a multiple of 4 and of the {heads} heads"));
        }
        if self.label == Label::Join && !(0..self.label_rows).contains(&self.num_classes) {
            return refuse(format!(
                "label \"join\" needs an embedding of \"no class\", but the table of {} rows has none after {} classes",
                self.label_rows, self.num_classes
            ));
        }
        let (first, second, last) = self.norm_eps;
        if let Some(eps) = [first, second, last].into_iter().find(|eps| !eps.is_finite() || *eps < 0.0) {
            return refuse(format!("norm_eps {eps}: must be finite and not negative"));
        }
        Ok(())
    }
}

fn refuse<T>(what: String) -> Result<T> {
    Err(DivaError::config(OP, what))
}
