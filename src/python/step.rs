//! `_native.Step`: a training step. Tower, denoiser and VAE are native networks, or Python callables in their place.

use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::callback::{python, Callback, CallbackDenoiser};
use super::condition::PyBridge;
use super::enter::{enter_step, lock, raise};
use super::inputs::{PyBatch, PyReader};
use super::list::List;
use super::network::PyNetwork;
use super::number::number;
use super::optim::Optimizer;
use super::schedule::PySchedule;
use super::targets::{targets, GivenTargets};
use super::tensor::{optional, Given, PyTensor};
use super::term::CallbackTerm;
use crate::denoiser::Denoiser;
use crate::error::{DivaError, Result};
use crate::feedback::{
    Anchor, Contrast, Denoise, Distance, Feedback, Losses, MemoryLimit, Negatives, SampleData, Teacher, Term,
    Weighted,
};
use crate::step::{Original, Step as Core, VisionTower};
use crate::torch::Tensor;
use crate::train::{train, Part, Update};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Step>()
}

/// A native tower where the object is one, otherwise a callable `images -> tokens`.
fn tower(py: Python<'_>, object: PyObject) -> PyResult<Box<dyn VisionTower>> {
    match object.bind(py).downcast::<PyNetwork>() {
        Ok(native) => native.get().tower(),
        Err(_) => Ok(Box::new(Callback(object))),
    }
}

/// A native denoiser where the object is one, otherwise a callable (see [`CallbackDenoiser`]).
pub(super) fn denoiser(object: &Bound<'_, PyAny>) -> PyResult<Arc<Mutex<dyn Denoiser>>> {
    match object.downcast::<PyNetwork>() {
        Ok(native) => native.get().denoiser(),
        Err(_) => Ok(Arc::new(Mutex::new(CallbackDenoiser::new(object)?))),
    }
}

fn named<'py>(py: Python<'py>, losses: &Losses) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, loss) in losses.iter() {
        dict.set_item(name, PyTensor(loss.shallow_clone()))?;
    }
    Ok(dict)
}

/// Runs the handlers of signals that arrived.
pub(super) fn signals() -> Result<()> {
    python(|py| py.check_signals())
}

/// The step of `diva_rs.Trainer` and `diva_rs.FeedbackLoss`. See `src/step.rs`.
#[pyclass(frozen, module = "diva_rs._native")]
struct Step(Mutex<Core>);

#[pymethods]
impl Step {
    /// `denoising`, `contrast` and `anchor` are weights: with 0 a term takes no part, and without the first two `denoiser`
    /// and `schedule` may be None. `contrast_options`: temperature, negatives of each image, images of a group, seed of the
    /// choice of negatives. `original`: (tower, bridge) of the untouched model, which the anchor and other terms read.
    /// `terms`: (name, weight, function of a `View` -> 0-dim loss).
    #[new]
    #[pyo3(signature = (tower, denoiser, bridge, schedule, *, denoising=1.0, loss="mse", draw_weights=List(vec![1.0]), min_snr=None, contrast=0.0, contrast_options=(0.1, None, None, 0), anchor=0.0, anchor_kind="cosine", terms=List(vec![]), original=None, micro_batch=None, denoiser_batch=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        tower: PyObject,
        denoiser: Option<Bound<'_, PyAny>>,
        bridge: PyRef<'_, PyBridge>,
        schedule: Option<PyRef<'_, PySchedule>>,
        #[pyo3(from_py_with = number)] denoising: f64,
        loss: &str,
        #[pyo3(from_py_with = number)] draw_weights: List<f64>,
        #[pyo3(from_py_with = number)] min_snr: Option<f64>,
        #[pyo3(from_py_with = number)] contrast: f64,
        #[pyo3(from_py_with = number)] contrast_options: (f64, Option<usize>, Option<usize>, u64),
        #[pyo3(from_py_with = number)] anchor: f64,
        anchor_kind: &str,
        #[pyo3(from_py_with = number)] terms: List<(String, f64, PyObject)>,
        original: Option<(PyObject, PyRef<'_, PyBridge>)>,
        #[pyo3(from_py_with = number)] micro_batch: Option<usize>,
        #[pyo3(from_py_with = number)] denoiser_batch: Option<usize>,
    ) -> PyResult<Self> {
        let draw_weights = draw_weights.0;
        if draw_weights.is_empty() || draw_weights.iter().any(|weight| !weight.is_finite()) {
            return refused(format!("draw_weights {draw_weights:?}: need at least one, all finite"));
        }
        let (temperature, count, group, seed) = contrast_options;
        for (name, value) in [
            ("anchor", anchor),
            ("contrast", contrast),
            ("denoising", denoising),
            ("temperature", temperature),
        ] {
            if !value.is_finite() || value < 0.0 {
                return refused(format!("{name} {value}: must be finite and not negative"));
            }
        }
        if micro_batch == Some(0) {
            return refused("micro_batch 0: must be at least 1".to_string());
        }
        let draws = draw_weights.len() as i64;
        let distance = Distance::parse(loss).map_err(raise)?;
        let teacher = match (denoiser, schedule) {
            (Some(denoiser), Some(schedule)) => Some(Teacher {
                denoiser: self::denoiser(&denoiser)?,
                schedule: schedule.0.clone(),
                batch: denoiser_batch,
                limit: MemoryLimit::default(),
            }),
            (None, None) if denoising == 0.0 && contrast == 0.0 => None,
            _ => return refused("the losses of predictions need a denoiser and its schedule".to_string()),
        };
        let mut terms_of_all: Vec<Weighted> = Vec::new();
        let mut add = |weight, term: Box<dyn Term>| terms_of_all.push(Weighted { weight, term });
        if let Some(teacher) = &teacher {
            let min_snr = min_snr.map(|gamma| (gamma, teacher.schedule.clone()));
            let each = draw_weights.clone();
            add(denoising, Box::new(Denoise { distance, draw_weights: each, min_snr }));
            add(contrast, Box::new(Contrast { temperature, draw_weights }));
        }
        add(anchor, Box::new(Anchor::parse(anchor_kind).map_err(raise)?));
        for (name, weight, function) in terms.0 {
            if !weight.is_finite() {
                return refused(format!("term {name:?} has the weight {weight}: it must be finite"));
            }
            add(weight, Box::new(CallbackTerm { name, function }));
        }
        let original = original.map(|(tower, bridge)| -> PyResult<_> {
            let tower = self::tower(py, tower)?;
            Ok(Arc::new(Mutex::new(Original { tower, head: bridge.core().head })))
        });
        let original = original.transpose()?;
        let negatives = Negatives { seed, group, count };
        let feedback = Feedback { bridge: bridge.core(), teacher, terms: terms_of_all, negatives, draws };
        let tower = self::tower(py, tower)?;
        Ok(Step(Mutex::new(Core { tower, feedback, original, micro_batch, wide: false })))
    }

    /// From a `Batch` to gradients, and with `update` on to updated weights: the losses by name (0-dim, on the device),
    /// and the norm of the gradient or None.
    ///
    /// The gradients that are there count for 1 - `share`, this batch's for `share`. `update` is (largest norm of the
    /// gradient or None, factor on each group's learning rate, mean loss of the batches before or None): nothing moves where loss
    /// or gradient is not finite. Signals are handled between the parts of the step, and end it where
    /// their handler raises; `hold` is called before the weights move, so that a handler can wait from then on.
    /// `train_tower`: whether the tower has parameters that require a gradient.
    #[pyo3(signature = (reader, batch, optimizer, share=1.0, train_tower=true, update=None, hold=None))]
    #[allow(clippy::too_many_arguments)] // seven, and the interpreter
    fn train<'py>(
        &self,
        py: Python<'py>,
        reader: &PyReader,
        batch: &PyBatch,
        optimizer: &Optimizer,
        #[pyo3(from_py_with = number)] share: f64,
        train_tower: bool,
        #[pyo3(from_py_with = number)] update: Option<(Option<f64>, List<f64>, Option<Given>)>,
        hold: Option<PyObject>,
    ) -> PyResult<(Bound<'py, PyDict>, Option<PyTensor>)> {
        let update = update.map(|(max_norm, factors, loss)| -> PyResult<Update> {
            Ok(Update { max_norm, factors: factors.0, loss: optional(loss, "loss")? })
        });
        let part = Part { share, train_tower, update: update.transpose()? };
        let hold = || hold.as_ref().map_or(Ok(()), |hold| python(|py| hold.call0(py).map(|_| ())));
        let (losses, norm) = enter_step(py, move || {
            let (reader, step, mut optimizer) = (lock(&reader.0), lock(&self.0), lock(&optimizer.core));
            train(&reader, &step, &mut optimizer, &lock(&batch.0), &part, &signals, &hold)
        })?;
        Ok((named(py, &losses)?, norm.map(PyTensor)))
    }

    /// Gives terms other weights, by name.
    #[pyo3(signature = (weights))]
    fn weigh(&self, #[pyo3(from_py_with = number)] weights: List<(String, f64)>) -> PyResult<()> {
        let mut core = lock(&self.0);
        for (name, weight) in weights.0 {
            if !weight.is_finite() || (!core.feedback.weigh(&name, weight) && weight != 0.0) {
                return refused(format!("the term {name:?} cannot have the weight {weight}"));
            }
        }
        Ok(())
    }

    /// Multiplies the bf16 matrices of native networks on a CPU in float32 from now on, or in bf16 again.
    fn widen(&self, wide: bool) {
        lock(&self.0).wide = wide;
    }

    /// The most images that fit into the denoiser's memory at a time; None while all have fitted.
    #[getter]
    fn denoiser_limit(&self) -> Option<usize> {
        lock(&self.0).feedback.teacher.as_ref()?.limit.limit()
    }

    /// `denoiser_limit`, once after each change of it; otherwise None.
    fn changed_limit(&self) -> Option<usize> {
        lock(&self.0).feedback.teacher.as_ref()?.limit.change()
    }

    /// (losses by name, gradient at the tokens, gradients of the bridge's parameters in the order of
    /// `Bridge.param_names`, gradients of the denoiser's trained parameters), None for parameters without one. `batch`:
    /// whose keys and epoch the terms see.
    #[pyo3(signature = (tokens, images, targets, batch=None))]
    #[allow(clippy::type_complexity)]
    fn at_tokens<'py>(
        &self,
        py: Python<'py>,
        tokens: Given,
        images: Given,
        targets: Option<GivenTargets>,
        batch: Option<&PyBatch>,
    ) -> PyResult<(Bound<'py, PyDict>, PyTensor, Vec<Option<PyTensor>>, Vec<Option<PyTensor>>)> {
        let (tokens, images) = (tokens.named("tokens")?, images.named("images")?);
        let keyed = batch.map(|batch| lock(&batch.0).keyed());
        let data = SampleData { targets: targets.map(self::targets).transpose()?, keyed };
        let found = enter_step(py, move || lock(&self.0).at_tokens(&tokens, &images, &data))?;
        let gradients =
            |found: Vec<Option<Tensor>>| found.into_iter().map(|gradient| gradient.map(PyTensor)).collect();
        let (bridge, denoiser) = (gradients(found.bridge), gradients(found.denoiser));
        Ok((named(py, &found.losses)?, PyTensor(found.tokens), bridge, denoiser))
    }
}

fn refused<T>(what: String) -> PyResult<T> {
    Err(raise(DivaError::config("Step", what)))
}
