//! `_native.Optimizer` and `_native.lr_factor`.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::torch::Tensor;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::enter::{enter, enter_step, lock, raise};
use super::list::List;
use super::number::number;
use super::tensor::{optional, Given, PyTensor};
use crate::error::{DivaError, Result};
use crate::optim::{twice, LrSchedule, Method, Optimizer as Core, ParamGroup};
use crate::train::Update;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Optimizer>()?;
    module.add_function(wrap_pyfunction!(lr_factor, module)?)
}

/// SGD or AdamW over named groups of parameters, equal to torch.optim's number by number.
///
/// ``method`` is "sgd" (uses ``momentum``) or "adamw" (uses ``betas``, ``eps``). ``groups`` is a list of ``(name, learning
/// rate, weight decay, {parameter name: tensor})``. The tensors are the caller's own,
/// float32 or float64 leaves of any shape and device: they are changed in place.
///
/// Raises ConfigError for a value out of range, an empty group, a name or a tensor that occurs twice; ShapeError
/// for parameters of another dtype.
///
/// >>> import torch
/// >>> from diva_rs import _native
/// >>> weight = torch.nn.Parameter(torch.ones(2))
/// >>> weight.grad = torch.tensor([1.0, -2.0])
/// >>> optimizer = _native.Optimizer("sgd", [("clip", 0.5, 0.0, {"weight": weight})], momentum=0.9)
/// >>> optimizer.step([1.0])
/// >>> weight.tolist()
/// [0.5, 2.0]
#[pyclass(frozen, module = "diva_rs._native")]
pub struct Optimizer {
    pub core: Mutex<Core>,
}

#[pymethods]
impl Optimizer {
    #[new]
    #[pyo3(signature = (method, groups, momentum=0.9, betas=(0.9, 0.999), eps=1e-8))]
    fn new(
        py: Python<'_>,
        method: &str,
        #[pyo3(from_py_with = number)] groups: List<GivenGroup<'_>>,
        #[pyo3(from_py_with = number)] momentum: f64,
        #[pyo3(from_py_with = number)] betas: (f64, f64),
        #[pyo3(from_py_with = number)] eps: f64,
    ) -> PyResult<Self> {
        let method = match method {
            "sgd" => Method::Sgd { momentum },
            "adamw" => Method::AdamW { betas, eps },
            other => {
                let what = format!("unknown method {other:?}: use one of {}", Method::NAMES.join(", "));
                return Err(raise(DivaError::config("Optimizer", what)));
            }
        };
        let groups = read_groups(groups.0)?;
        let core = enter(py, move || Core::new(method, groups))?;
        Ok(Optimizer { core: Mutex::new(core) })
    }

    /// Trains other groups from here on; a parameter that was in a group before, by its name, keeps its state.
    ///
    /// >>> import torch
    /// >>> from diva_rs import _native
    /// >>> head, body = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    /// >>> optimizer = _native.Optimizer("sgd", [("head", 1.0, 0.0, {"head": head})])
    /// >>> optimizer.regroup([("all", 0.1, 0.0, {"head": head, "body": body})])
    /// >>> list(optimizer.state())
    /// ['head.momentum_buffer', 'body.momentum_buffer']
    fn regroup(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = number)] groups: List<GivenGroup<'_>>,
    ) -> PyResult<()> {
        let groups = read_groups(groups.0)?;
        enter(py, move || lock(&self.core).regroup(groups))
    }

    /// One update in place with the learning rate ``lr * factor``, one of ``factors`` (>= 0) for each group.
    ///
    /// A parameter whose ``.grad`` is None is left out, as in torch.optim. Raises ConfigError when ``factors`` has
    /// another length, ShapeError when a parameter has changed its dtype or shape since construction.
    ///
    /// >>> import torch
    /// >>> from diva_rs import _native
    /// >>> head = torch.nn.Parameter(torch.zeros(1))
    /// >>> head.grad = torch.ones(1)
    /// >>> optimizer = _native.Optimizer("sgd", [("projector", 1.0, 0.0, {"head": head})])
    /// >>> optimizer.step([0.25])
    /// >>> head.item()
    /// -0.25
    fn step(&self, py: Python<'_>, #[pyo3(from_py_with = number)] factors: List<f64>) -> PyResult<()> {
        enter(py, || lock(&self.core).step(&factors.0))
    }

    /// The norm of all gradients as one vector (0-dim tensor on their device), which are then scaled in place to at
    /// most ``max`` (None: only measured). Equals ``torch.nn.utils.clip_grad_norm_``, all groups together,
    /// and never waits for the device. Raises ConfigError for a negative or non-finite ``max``.
    #[pyo3(signature = (max))]
    fn clip_grad_norm(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = number)] max: Option<f64>,
    ) -> PyResult<PyTensor> {
        enter(py, || lock(&self.core).clip_grad_norm(max)).map(PyTensor)
    }

    /// `clip_grad_norm`, then `step`, in one call; returns the norm before clipping.
    ///
    /// Where that norm or ``loss`` (a 0-dim tensor) is not finite, no weight and no moment moves and the gradient becomes
    /// zero, without waiting for the device. The count of AdamW's bias correction rises. Raises ShapeError for
    /// another loss.
    ///
    /// >>> import torch
    /// >>> from diva_rs import _native
    /// >>> weight = torch.nn.Parameter(torch.zeros(2))
    /// >>> weight.grad = torch.tensor([3.0, 4.0])
    /// >>> optimizer = _native.Optimizer("sgd", [("clip", 1.0, 0.0, {"weight": weight})])
    /// >>> optimizer.update(None, [0.5]).item()
    /// 5.0
    /// >>> weight.tolist()
    /// [-1.5, -2.0]
    /// >>> optimizer.update(None, [0.5], torch.tensor(float("nan"))).item()
    /// 5.0
    /// >>> weight.tolist()
    /// [-1.5, -2.0]
    #[pyo3(signature = (max_norm, factors, loss=None))]
    fn update(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = number)] max_norm: Option<f64>,
        #[pyo3(from_py_with = number)] factors: List<f64>,
        loss: Option<Given>,
    ) -> PyResult<PyTensor> {
        let update = Update { max_norm, factors: factors.0, loss: optional(loss, "loss")? };
        enter_step(py, move || update.apply(&mut lock(&self.core), None)).map(PyTensor)
    }

    /// Multiplies every gradient by ``factor`` in place.
    fn scale_grads(&self, py: Python<'_>, #[pyo3(from_py_with = number)] factor: f64) -> PyResult<()> {
        enter(py, || lock(&self.core).scale_grads(factor))
    }

    /// The live state as ``{"parameter.buffer": tensor}``; clone what is to outlive the next step.
    ///
    /// Buffers are named as in torch.optim: ``momentum_buffer``, or ``step``, ``exp_avg`` and ``exp_avg_sq``.
    fn state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let state = enter(py, || lock(&self.core).state())?;
        let dict = PyDict::new(py);
        for (key, tensor) in state {
            dict.set_item(key, PyTensor(tensor))?;
        }
        Ok(dict)
    }

    /// Copies a state back in. Raises WeightsError, and changes nothing, when a key is missing or unexpected or has
    /// another shape or dtype.
    fn load_state(&self, py: Python<'_>, state: &Bound<'_, PyDict>) -> PyResult<()> {
        let mut entries = Vec::with_capacity(state.len());
        for (key, value) in state.iter() {
            let key: String = key.extract()?;
            let tensor = read_tensor(&value).map_err(|kind| {
                let what = format!("is of type {kind}, expected a torch.Tensor");
                raise(DivaError::weights("Optimizer.load_state", key.clone(), what))
            })?;
            entries.push((key, tensor));
        }
        enter(py, move || lock(&self.core).load_state(entries))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        enter(py, || Ok(lock(&self.core).describe()))
    }
}

/// The factor on the learning rate for the update number ``step``, counted from 0.
///
/// ``schedule`` is "constant" or "cosine", each after ``warmup`` steps of linear warm-up; ``steps`` is the length of
/// the whole run ("constant" does not look at it). Equals transformers' ``get_constant_schedule_with_warmup`` and
/// ``get_cosine_schedule_with_warmup``. Raises ConfigError for an unknown schedule or a negative number.
///
/// >>> from diva_rs import _native
/// >>> [_native.lr_factor("cosine", step, 2, 10) for step in (0, 1, 2, 6, 10)]
/// [0.0, 0.5, 1.0, 0.5, 0.0]
#[pyfunction]
fn lr_factor(
    py: Python<'_>,
    schedule: &str,
    #[pyo3(from_py_with = number)] step: i64,
    #[pyo3(from_py_with = number)] warmup: i64,
    #[pyo3(from_py_with = number)] steps: i64,
) -> PyResult<f64> {
    let schedule = schedule.to_string();
    enter(py, move || {
        if step < 0 {
            return Err(DivaError::config("lr schedule", format!("step is {step}: it must not be negative")));
        }
        let schedule: Result<LrSchedule> = LrSchedule::parse(&schedule, warmup, steps);
        Ok(schedule?.factor(step))
    })
}

/// Name, learning rate, weight decay, parameters by name.
type GivenGroup<'py> = (String, f64, f64, Bound<'py, PyDict>);

/// The groups as the core takes them. A tensor under two names is found here by its Python identity: on the meta
/// device there is no address that the core could compare.
fn read_groups(groups: Vec<GivenGroup<'_>>) -> PyResult<Vec<ParamGroup>> {
    let mut seen: HashMap<usize, String> = HashMap::new();
    let mut read = Vec::with_capacity(groups.len());
    for (name, lr, weight_decay, dict) in groups {
        let mut params = Vec::with_capacity(dict.len());
        for (key, value) in dict.iter() {
            let key: String = key.extract()?;
            let tensor = read_tensor(&value).map_err(|kind| {
                let what = format!("`{key}` is of type {kind}, expected a torch.Tensor");
                raise(DivaError::config("Optimizer", what))
            })?;
            if let Some(other) = seen.insert(value.as_ptr() as usize, key.clone()) {
                return Err(raise(twice(&other, &key)));
            }
            params.push((key, tensor));
        }
        read.push(ParamGroup { name, lr, weight_decay, params });
    }
    Ok(read)
}

/// The tensor, or the name of the type that is not one.
fn read_tensor(value: &Bound<'_, PyAny>) -> std::result::Result<Tensor, String> {
    let given = value.extract::<Given>().and_then(|given| given.named("value"));
    given.map_err(|_| value.get_type().to_string())
}
