//! `_native.Step`: a training step. Tower, denoiser and VAE are native networks, or Python callables in their place.

use std::sync::Mutex;

use pyo3::prelude::*;
use tch::Tensor;

use super::condition::PyBridge;
use super::enter::{enter_step, lock, raise};
use super::inputs::{held, signals, PyReader, RawBatch};
use super::list::List;
use super::network::PyNetwork;
use super::number::number;
use super::optim::Optimizer;
use super::schedule::PySchedule;
use super::tensor::{optional, Given, PyTensor};
use crate::denoiser::{Denoiser, Query, Slots};
use crate::error::{DivaError, Result};
use crate::feedback::{Loss, Objective, Room, Targets};
use crate::step::{Original, Step as Core, VisionTower};
use crate::train::{train, Part, Update};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Step>()
}

/// A Python callable in the place of a native network. It takes the GIL for its own length only.
pub(super) struct Callback(pub PyObject);

impl Callback {
    pub(super) fn call(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        Python::with_gil(|py| {
            let inputs = inputs.iter().map(|tensor| PyTensor(tensor.shallow_clone()).into_pyobject(py));
            let inputs = inputs.collect::<PyResult<Vec<_>>>()?;
            let output = self.0.bind(py).call1(pyo3::types::PyTuple::new(py, inputs)?)?;
            output.extract::<Given>()?.named("what the module returned")
        })
        .map_err(|err: PyErr| DivaError::Callback(Box::new(err)))
    }
}

impl VisionTower for Callback {
    fn tokens(&self, images: &Tensor) -> Result<Tensor> {
        self.call(&[images])
    }
}

/// A Python callable in the place of a native denoiser.
struct CallbackDenoiser {
    callback: Callback,
    slots: Slots,
}

impl Denoiser for CallbackDenoiser {
    fn slots(&self) -> Slots {
        self.slots
    }

    fn predict(&self, query: &Query) -> Result<Tensor> {
        query.without_text("Denoiser")?;
        let mut inputs = vec![query.noisy, query.timesteps];
        inputs.extend(query.condition.tensors());
        self.callback.call(&inputs)
    }
}

/// A native tower where the object is one, otherwise a callable `images -> tokens`.
fn tower(py: Python<'_>, object: PyObject) -> PyResult<Box<dyn VisionTower>> {
    match object.bind(py).downcast::<PyNetwork>() {
        Ok(native) => native.get().tower(),
        Err(_) => Ok(Box::new(Callback(object))),
    }
}

/// A native denoiser where the object is one, otherwise a callable. It is called with `noisy`, `timesteps` and one tensor
/// for each of the slots that its attribute `slots` names ("tokens", "pooled"); without that attribute, the tokens.
fn denoiser(py: Python<'_>, object: PyObject) -> PyResult<Box<dyn Denoiser>> {
    let bound = object.bind(py);
    if let Ok(native) = bound.downcast::<PyNetwork>() {
        return native.get().denoiser();
    }
    let slots = match bound.getattr_opt("slots")? {
        None => Slots::TOKENS,
        Some(names) => {
            let List::<String>(names) = names.extract()?;
            Slots::named(names.iter().map(String::as_str)).map_err(raise)?
        }
    };
    Ok(Box::new(CallbackDenoiser { callback: Callback(object), slots }))
}

/// The step of `diva_rs.Trainer` and `diva_rs.FeedbackLoss`. See `src/step.rs`.
#[pyclass(frozen, module = "diva_rs._native")]
struct Step(Mutex<Core>);

/// latents (B, ...), noise (B, N, ...), timesteps (B, N), choice (B, N, k) or None, text (1 | B, L, C).
pub(super) type PyTargets = (PyTensor, PyTensor, PyTensor, Option<PyTensor>, PyTensor);

type GivenTargets = (Given, Given, Given, Option<Given>, Given);

fn targets(parts: GivenTargets) -> PyResult<Targets> {
    let (latents, noise, timesteps, choice, text) = parts;
    Ok(Targets {
        latents: latents.named("latents")?,
        noise: noise.named("noise")?,
        timesteps: timesteps.named("timesteps")?,
        choice: optional(choice, "choice")?,
        text: text.named("text")?,
    })
}

pub(super) fn untargets(targets: Targets) -> PyTargets {
    let Targets { latents, noise, timesteps, choice, text } = targets;
    (PyTensor(latents), PyTensor(noise), PyTensor(timesteps), choice.map(PyTensor), PyTensor(text))
}

fn objective(
    loss: &str,
    draw_weights: Vec<f64>,
    min_snr: Option<f64>,
    anchor: f64,
    denoiser_batch: Option<usize>,
) -> Result<Objective> {
    let loss = match loss {
        "mse" => Loss::Mse,
        "l1" => Loss::L1,
        other => {
            return Err(DivaError::config("Step", format!("unknown loss {other:?}: use \"mse\" or \"l1\"")))
        }
    };
    if draw_weights.is_empty() || draw_weights.iter().any(|weight| !weight.is_finite()) {
        return Err(DivaError::config(
            "Step",
            format!("draw_weights {draw_weights:?}: need at least one, all finite"),
        ));
    }
    if !anchor.is_finite() || anchor < 0.0 {
        return Err(DivaError::config("Step", format!("anchor {anchor}: must be finite and not negative")));
    }
    Ok(Objective { loss, draw_weights, min_snr, anchor, denoiser_batch, room: Room::default() })
}

#[pymethods]
impl Step {
    /// `original`: (tower, bridge) of the untouched model, needed by the anchor penalty.
    #[new]
    #[pyo3(signature = (tower, denoiser, bridge, schedule, *, loss="mse", draw_weights=List(vec![1.0]), min_snr=None, anchor=0.0, original=None, micro_batch=None, denoiser_batch=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        tower: PyObject,
        denoiser: PyObject,
        bridge: PyRef<'_, PyBridge>,
        schedule: PyRef<'_, PySchedule>,
        loss: &str,
        #[pyo3(from_py_with = number)] draw_weights: List<f64>,
        #[pyo3(from_py_with = number)] min_snr: Option<f64>,
        #[pyo3(from_py_with = number)] anchor: f64,
        original: Option<(PyObject, PyRef<'_, PyBridge>)>,
        #[pyo3(from_py_with = number)] micro_batch: Option<usize>,
        #[pyo3(from_py_with = number)] denoiser_batch: Option<usize>,
    ) -> PyResult<Self> {
        let objective = objective(loss, draw_weights.0, min_snr, anchor, denoiser_batch).map_err(raise)?;
        if micro_batch == Some(0) {
            return Err(raise(DivaError::config("Step", "micro_batch 0: must be at least 1")));
        }
        let original = original
            .map(|(tower, bridge)| -> PyResult<Original> {
                Ok(Original { tower: self::tower(py, tower)?, head: bridge.core().head })
            })
            .transpose()?;
        Ok(Step(Mutex::new(Core {
            tower: self::tower(py, tower)?,
            denoiser: self::denoiser(py, denoiser)?,
            bridge: bridge.core(),
            schedule: schedule.0.clone(),
            objective,
            original,
            micro_batch,
        })))
    }

    /// From a `diva_rs.inputs.RawBatch` to gradients, and with `update` on to updated weights: (loss, denoising, anchor,
    /// norm of the gradient or None), 0-dim, on the device.
    ///
    /// The gradients that are there count for 1 - `share`, this batch's for `share`. `update` is (largest norm of the
    /// gradient or None, factor on the learning rate, mean loss of the batches before or None): nothing moves where loss
    /// or gradient is not finite. Signals are handled between the parts of the step, and end it where
    /// their handler raises; `hold` is called before the weights move, so that a handler can wait from then on.
    #[pyo3(signature = (reader, batch, optimizer, share=1.0, train_tower=true, update=None, hold=None))]
    #[allow(clippy::too_many_arguments)] // seven, and the interpreter
    fn train(
        &self,
        py: Python<'_>,
        reader: &PyReader,
        batch: RawBatch<'_>,
        optimizer: &Optimizer,
        #[pyo3(from_py_with = number)] share: f64,
        train_tower: bool,
        #[pyo3(from_py_with = number)] update: Option<(Option<f64>, f64, Option<Given>)>,
        hold: Option<PyObject>,
    ) -> PyResult<(PyTensor, PyTensor, PyTensor, Option<PyTensor>)> {
        let batch = batch.core(py)?;
        let update = update.map(|(max_norm, factor, loss)| -> PyResult<Update> {
            Ok(Update { max_norm, factor, loss: optional(loss, "loss")? })
        });
        let update = update.transpose()?;
        let part = Part { share, train_tower, update };
        let (losses, norm) = enter_step(py, move || {
            let (reader, step, mut optimizer) = (lock(&reader.0), lock(&self.0), lock(&optimizer.core));
            train(&reader, &step, &mut optimizer, &batch, &part, &signals, &|| held(&hold))
        })?;
        Ok((PyTensor(losses.loss), PyTensor(losses.denoising), PyTensor(losses.anchor), norm.map(PyTensor)))
    }

    /// The most images that the denoiser's memory has room for at a time; None while it has sufficed.
    #[getter]
    fn denoiser_limit(&self) -> Option<usize> {
        lock(&self.0).objective.room.limit()
    }

    /// (loss, gradient at the tokens, gradients of the bridge's parameters in the order of `Bridge.param_names`).
    fn at_tokens(
        &self,
        py: Python<'_>,
        tokens: Given,
        images: Given,
        targets: GivenTargets,
    ) -> PyResult<(PyTensor, PyTensor, Vec<PyTensor>)> {
        let (tokens, images, targets) =
            (tokens.named("tokens")?, images.named("images")?, self::targets(targets)?);
        let heard = enter_step(py, move || lock(&self.0).at_tokens(&tokens, &images, &targets))?;
        Ok((PyTensor(heard.loss), PyTensor(heard.tokens), heard.params.into_iter().map(PyTensor).collect()))
    }
}
