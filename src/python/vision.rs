//! `_native.VisionTransformer`.

use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use tch::Tensor;

use super::enter::{enter, lock, raise};
use super::fields::{tensors, Fields};
use super::tensor::{Given, PyTensor};
use crate::error::{DivaError, Result};
use crate::nn::Activation;
use crate::step::{Carry, VisionTower};
use crate::vision::{Compute, Config, HeadLayer, Layout, Pool, Positions, Recording, Resize, Vit};

const OP: &str = "VisionTransformer";

/// A CLIP vision tower on the caller's own weights. `config` and `weights` as `diva_rs.native.vision` makes them.
#[pyclass(frozen, name = "VisionTransformer", module = "diva_rs._native")]
pub struct PyVisionTransformer {
    core: Arc<Mutex<Vit>>,
    checkpoint: bool,
}

/// The same network, for a step of its own.
struct Shared {
    core: Arc<Mutex<Vit>>,
    checkpoint: bool,
}

impl VisionTower for Shared {
    fn tokens(&self, images: &Tensor) -> Result<Tensor> {
        lock(&self.core).tokens(images)
    }

    fn record(&self, images: &Tensor) -> Result<Option<(Tensor, Carry)>> {
        if !self.checkpoint {
            return Ok(None);
        }
        let (tokens, recording) = lock(&self.core).record(images)?;
        let core = self.core.clone();
        Ok(Some((tokens, Box::new(move |gradient| lock(&core).backward(recording, gradient)))))
    }
}

impl PyVisionTransformer {
    pub(super) fn core(&self) -> Box<dyn VisionTower> {
        Box::new(Shared { core: self.core.clone(), checkpoint: self.checkpoint })
    }
}

/// What `VisionTransformer.backward` needs of one pass of `record`; it can be used once.
#[pyclass(frozen, name = "Recording", module = "diva_rs._native")]
struct PyRecording(Mutex<Option<Recording>>);

#[pymethods]
impl PyVisionTransformer {
    #[new]
    fn new(py: Python<'_>, config: &Bound<'_, PyDict>, weights: &Bound<'_, PyDict>) -> PyResult<Self> {
        let ((config, checkpoint), weights) = (Fields::whole(OP, config, read)?, tensors(weights)?);
        enter(py, move || {
            Ok(PyVisionTransformer { core: Arc::new(Mutex::new(Vit::load(&config, weights)?)), checkpoint })
        })
    }

    /// Tokens (B, 1 + P, W) of images (B, 3, H, W), in the caller's grad mode.
    fn tokens(&self, py: Python<'_>, images: Given) -> PyResult<PyTensor> {
        let images = images.named("images")?;
        enter(py, move || lock(&self.core).tokens(&images)).map(PyTensor)
    }

    /// The same tokens outside any graph, and what `backward` needs: the inputs of the blocks alone.
    fn record(&self, py: Python<'_>, images: Given) -> PyResult<(PyTensor, PyRecording)> {
        let images = images.named("images")?;
        let (tokens, recording) = enter(py, move || lock(&self.core).record(&images))?;
        Ok((PyTensor(tokens), PyRecording(Mutex::new(Some(recording)))))
    }

    /// Adds to every weight's `.grad`, given the gradient of the tokens. Each block runs forward once more.
    fn backward(&self, py: Python<'_>, recording: &PyRecording, gradient: Given) -> PyResult<()> {
        let gradient = gradient.named("gradient")?;
        enter(py, move || {
            let recording = lock(&recording.0).take().ok_or_else(|| DivaError::Data {
                op: "VisionTransformer.backward",
                what: "the recording was used already: call record again".to_string(),
            })?;
            lock(&self.core).backward(recording, &gradient)
        })
    }

    /// Whether a step is asked to recompute blocks instead of keeping their activations.
    #[getter]
    fn checkpoint(&self) -> bool {
        self.checkpoint
    }
}

fn read(fields: &mut Fields) -> PyResult<(Config, bool)> {
    let head: Vec<(String, String)> = fields.list("head")?;
    let config = Config {
        layout: fields.parse("layout", Layout::parse)?,
        root: fields.get("root")?,
        image: fields.get("image")?,
        patch: fields.get("patch")?,
        width: fields.get("width")?,
        layers: fields.get("layers")?,
        heads: fields.get("heads")?,
        hidden: fields.get("hidden")?,
        activation: fields.parse("activation", Activation::parse)?,
        eps: fields.get("eps")?,
        class_token: fields.get("class_token")?,
        registers: fields.get("registers")?,
        positions: fields.parse("positions", Positions::parse)?,
        resize: fields.parse("resize", Resize::parse)?,
        norm_pre: fields.get("norm_pre")?,
        layer_scale: fields.get("layer_scale")?,
        norm: fields.get("norm")?,
        stem_bias: fields.get("stem_bias")?,
        qkv_bias: fields.get("qkv_bias")?,
        bias: fields.get("bias")?,
        pool: fields.parse("pool", Pool::parse)?,
        head: head
            .into_iter()
            .map(|(layer, key)| Ok((HeadLayer::parse(&layer)?, key)))
            .collect::<Result<_>>()
            .map_err(raise)?,
        compute: fields.maybe("compute", Compute::parse)?,
    };
    Ok((config, fields.get("checkpoint")?))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyVisionTransformer>()?;
    module.add_class::<PyRecording>()
}
