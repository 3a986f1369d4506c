//! The student: a vision transformer over the weights of a CLIP of any library, under that library's own keys.
//!
//! * [`config`]: what the weights do not say (heads, activation, where it pools)
//! * [`layouts`]: how each library names the same weights
//! * `embed`, `blocks`, `map_head`: pixels to tokens, the transformer, attention pooling
//! * [`vit`]: all of it together, as a [`crate::step::VisionTower`]
//! * [`recompute`]: the same gradient with the memory of one block

mod blocks;
mod config;
mod embed;
mod layouts;
mod load;
mod map_head;
mod recompute;
mod vit;

pub use config::{Config, HeadLayer, Pool, Positions, Resize};
pub use layouts::Layout;
pub use recompute::Recording;
pub use vit::Vit;
