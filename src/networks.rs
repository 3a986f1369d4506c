//! The native networks by kind: a configuration, read by serde, and weights become a network.
//!
//! A new network is its own module and one line of [`KINDS`].

use std::sync::{Arc, Mutex, PoisonError};

use crate::torch::Tensor;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::denoiser::dit::DiTTransformer2D;
use crate::denoiser::mmdit::MMDiT;
use crate::denoiser::unet_2d_condition::UNet2DCondition;
use crate::denoiser::vae::AutoencoderEncoder;
use crate::denoiser::Denoiser;
use crate::error::{DivaError, Result};
use crate::inputs::Encoder;
use crate::vision::Vit;

const OP: &str = "Network";

/// A network by its part in the step. It may be shared between steps.
#[derive(Clone)]
pub enum Network {
    Tower(Arc<Mutex<Vit>>),
    Denoiser(Arc<Mutex<dyn Denoiser>>),
    Encoder(Arc<Mutex<AutoencoderEncoder>>),
}

/// Tensors by name: weights by the checkpoint's keys, or inputs that are the same in every step.
pub type Tensors = Vec<(String, Tensor)>;

/// Builds the network whose configuration was read, from its weights and its fixed inputs.
pub type Build = Box<dyn FnOnce(Tensors, Tensors) -> Result<Network> + Send>;

type Read = fn(Value) -> Result<Build>;

pub const KINDS: &[(&str, Read)] = &[
    ("vision_transformer", |config| {
        build(config, |config, weights, fixed| {
            no_fixed(&fixed)?;
            Ok(Network::Tower(Arc::new(Mutex::new(Vit::load(&config, weights)?))))
        })
    }),
    ("unet_2d_condition", |config| {
        build(config, |config, weights, fixed| denoiser(UNet2DCondition::new(config, weights, fixed)?))
    }),
    ("dit", |config| {
        build(config, |config, weights, fixed| {
            no_fixed(&fixed)?;
            denoiser(DiTTransformer2D::new(config, weights)?)
        })
    }),
    ("mmdit", |config| build(config, |config, weights, fixed| denoiser(MMDiT::new(config, weights, fixed)?))),
    ("autoencoder_kl_encoder", |config| {
        build(config, |config, weights, fixed| {
            no_fixed(&fixed)?;
            Ok(Network::Encoder(Arc::new(Mutex::new(AutoencoderEncoder::new(config, weights)?))))
        })
    }),
];

/// Reads the configuration of a network of a kind in [`KINDS`]. An unknown or missing field and a value of the wrong type
/// are errors that name the field.
pub fn read(kind: &str, config: Value) -> Result<Build> {
    match KINDS.iter().find(|(known, _)| *known == kind) {
        Some((_, read)) => read(config),
        None => {
            let known: Vec<&str> = KINDS.iter().map(|(known, _)| *known).collect();
            Err(DivaError::config(OP, format!("unknown kind {kind:?}: use one of {known:?}")))
        }
    }
}

fn build<C: DeserializeOwned + Send + 'static>(
    config: Value,
    new: fn(C, Tensors, Tensors) -> Result<Network>,
) -> Result<Build> {
    let config: C = serde_path_to_error::deserialize(config).map_err(|err| {
        let field = match err.path().to_string() {
            path if path == "." => String::new(),
            path => format!(".{path}"),
        };
        DivaError::config(OP, format!("config{field}: {}", err.inner()))
    })?;
    Ok(Box::new(move |weights, fixed| new(config, weights, fixed)))
}

fn denoiser(network: impl Denoiser + 'static) -> Result<Network> {
    Ok(Network::Denoiser(Arc::new(Mutex::new(network))))
}

fn no_fixed(fixed: &Tensors) -> Result<()> {
    match fixed.first() {
        None => Ok(()),
        Some((name, _)) => Err(DivaError::config(
            OP,
            format!("fixed has an unknown tensor {name:?}: this network takes none"),
        )),
    }
}

impl Encoder for Arc<Mutex<AutoencoderEncoder>> {
    fn encode(&self, images: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        self.lock().unwrap_or_else(PoisonError::into_inner).encode(images, noise, i64::MAX)
    }
}
