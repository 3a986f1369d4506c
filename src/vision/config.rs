//! What a tower's weights do not say.

use serde::Deserialize;

use super::layouts::Layout;
use crate::error::{DivaError, Result};
use crate::nn::{Activation, Compute};

const OP: &str = "VisionTransformer";

/// What token 0 of the output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pool {
    /// The class token.
    Class,
    /// The mean of the patches.
    Avg,
    /// Multi-head attention pooling with a learned query (SigLIP).
    Map,
}

/// Which tokens the position embedding has rows for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    All,
    Patches,
    None,
}

/// How the position embedding follows images of another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// Not at all: another size is an error.
    None,
    /// transformers' `interpolate_pos_encoding`.
    Bicubic,
    /// timm's `resample_abs_pos_embed`, in float32.
    BicubicAntialias,
}

/// A layer that a library applies after pooling, which cannot wait until tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadLayer {
    Norm,
    Linear,
    LinearBias,
    /// Without a bias in its second layer.
    Mlp,
    MlpBias,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub layout: Layout,
    /// Where the tower sits in the tree of keys, such as `visual.trunk`; empty: at its top.
    pub root: String,
    pub image: (i64, i64), // (H, W) in pixels
    pub patch: (i64, i64),
    pub width: i64,
    pub layers: i64,
    pub heads: i64,
    /// Width inside the feed-forward layers.
    pub hidden: i64,
    pub activation: Activation,
    /// Of every LayerNorm.
    pub eps: f64,
    pub class_token: bool,
    pub registers: i64,
    pub positions: Positions,
    pub resize: Resize,
    /// LayerNorm before the blocks.
    pub norm_pre: bool,
    pub layer_scale: bool,
    /// LayerNorm of every token after the blocks, before pooling.
    pub norm: bool,
    /// Biases: of the patch convolution, of queries, keys and values, of the other linear layers.
    pub stem_bias: bool,
    pub qkv_bias: bool,
    pub bias: bool,
    pub pool: Pool,
    /// Layers applied to every token after pooling, with their keys.
    pub head: Vec<(HeadLayer, String)>,
    /// `None`: as the weights.
    pub compute: Option<Compute>,
    /// Whether a step computes each block again in the backward pass instead of keeping its activations.
    pub checkpoint: bool,
}

impl Config {
    /// Patches along (height, width) of an image: what remains at the edges is not looked at.
    pub fn grid(&self, image: (i64, i64)) -> (i64, i64) {
        (image.0 / self.patch.0, image.1 / self.patch.1)
    }

    /// Tokens in front of the patches.
    pub fn prefix(&self) -> i64 {
        i64::from(self.class_token) + self.registers
    }

    pub fn check(&self) -> Result<()> {
        let fail = |what: String| Err(DivaError::config(OP, what));
        for (name, value) in [
            ("image height", self.image.0),
            ("image width", self.image.1),
            ("patch height", self.patch.0),
            ("patch width", self.patch.1),
            ("width", self.width),
            ("layers", self.layers),
            ("heads", self.heads),
            ("hidden", self.hidden),
        ] {
            if value < 1 {
                return fail(format!("{name} {value}: must be at least 1"));
            }
        }
        if self.width % self.heads != 0 {
            return fail(format!("width {} is not a multiple of heads {}", self.width, self.heads));
        }
        if self.image.0 < self.patch.0 || self.image.1 < self.patch.1 {
            return fail(format!("an image of {:?} has no patch of {:?}", self.image, self.patch));
        }
        if !((0..=1 << 20).contains(&self.registers) && self.eps.is_finite() && self.eps > 0.0) {
            return fail(format!("registers {} or eps {} is out of range", self.registers, self.eps));
        }
        if self.pool == Pool::Class && !self.class_token {
            return fail("pool \"class\" needs class_token".to_string());
        }
        self.check_layout()
    }

    /// Whether the library has a place for every part that is configured.
    fn check_layout(&self) -> Result<()> {
        let names = self.layout.names();
        let parts = [
            ("class_token", self.class_token, names.class.is_some()),
            ("registers", self.registers > 0, names.registers.is_some()),
            ("norm_pre", self.norm_pre, names.norm_pre.is_some()),
            ("layer_scale", self.layer_scale, names.block.scales.is_some()),
            ("pool \"map\"", self.pool == Pool::Map, names.pool.is_some()),
        ];
        match parts.iter().find(|(_, wanted, known)| *wanted && !*known) {
            None => Ok(()),
            Some((part, ..)) => {
                Err(DivaError::config(OP, format!("the layout {:?} has no {part}", self.layout)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            layout: Layout::OpenClip,
            root: String::new(),
            image: (32, 30),
            patch: (8, 8),
            width: 8,
            layers: 1,
            heads: 2,
            hidden: 16,
            activation: Activation::QuickGelu,
            eps: 1e-5,
            class_token: true,
            registers: 0,
            positions: Positions::All,
            resize: Resize::None,
            norm_pre: true,
            layer_scale: false,
            norm: false,
            stem_bias: false,
            qkv_bias: true,
            bias: true,
            pool: Pool::Class,
            head: Vec::new(),
            compute: None,
            checkpoint: false,
        }
    }

    #[test]
    fn the_grid_leaves_out_what_is_no_whole_patch() {
        assert_eq!(config().grid((32, 30)), (4, 3));
        assert!(config().check().is_ok());
    }

    fn refused<T>(result: Result<T>, text: &str) -> bool {
        result.is_err_and(|err| err.to_string().contains(text))
    }

    #[test]
    fn a_layout_refuses_parts_that_it_has_no_names_for() {
        let siglip = Config { layout: Layout::TransformersSiglip, ..config() };
        assert!(refused(siglip.check(), "no class_token"));
        let pooled = Config { pool: Pool::Map, ..config() };
        assert!(refused(pooled.check(), "no pool"));
    }
}
