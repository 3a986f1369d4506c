//! The blocks that every network here is made of. Each struct holds its weights under the
//! checkpoint's own keys: the tree of structs is the tree of keys.
//!
//! Weights may be kept in another dtype than the activations (float32 master weights under bf16
//! compute): a block casts them to its input's dtype, inside the graph, so that gradients arrive in
//! the weights' own dtype.

mod activation;
mod attention;
mod compute;
mod geglu;
mod layers;
mod mixed;
mod norm_silu;
mod products;
#[cfg(target_arch = "x86_64")]
mod stored;
mod weights;

pub use activation::{narrow_silu, Activation};
pub use attention::{attention, merge_heads, quick_attention, split_heads};
pub use compute::Compute;
pub use geglu::geglu;
pub use layers::{Conv2d, GroupNorm, LayerNorm, Linear};
pub use products::{compute_of, Wide};
pub use weights::{Path, Store};
