//! `_native.Bridge` and its tape.

use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::callback::Callback;
use super::enter::{enter, lock};
use super::number::number;
use super::tensor::{optional, tensors, Given, PyTensor};
use crate::condition::{Bridge, Head, Kernel, Norm, Proj, Projector, Recap, Tape, TextJoin};
use crate::error::Result;
use crate::torch::Tensor;

/// From the tokens of a vision tower to the condition of a denoiser, forward and backward.
#[pyclass(frozen, name = "Bridge", module = "diva_rs._native")]
pub struct PyBridge {
    core: Mutex<Bridge>,
    names: Vec<&'static str>,
}

impl PyBridge {
    /// A bridge over the same parameters, for another owner.
    pub fn core(&self) -> Bridge {
        lock(&self.core).shallow_clone()
    }
}

impl Kernel for Callback {
    fn condition(
        &self,
        tokens: &Tensor,
        text: &Tensor,
        choice: Option<&Tensor>,
        params: &[Tensor],
    ) -> Result<Tensor> {
        let inputs: Vec<&Tensor> = [tokens, text].into_iter().chain(choice).chain(params).collect();
        self.call(&inputs)
    }
}

/// What `Bridge.backward` needs of one forward pass.
#[pyclass(frozen, name = "Tape", module = "diva_rs._native")]
struct PyTape(Mutex<Tape>);

type NormArgs = (Option<Given>, Option<Given>, f64);

#[pymethods]
impl PyBridge {
    /// `kernel(tokens, text, [choice,] *params)` takes the place of the core's operations; `params` are those of
    /// `param_names`.
    #[new]
    #[pyo3(signature = (norm, proj, projector, recap, number=None, join="mean", kernel=None))]
    #[allow(clippy::too_many_arguments)] // seven, and the interpreter
    fn new(
        py: Python<'_>,
        #[pyo3(from_py_with = number)] norm: Option<NormArgs>,
        proj: Option<(Given, bool)>,
        projector: &Bound<'_, PyDict>,
        recap: &str,
        #[pyo3(from_py_with = number)] number: Option<i64>,
        join: &str,
        kernel: Option<PyObject>,
    ) -> PyResult<Self> {
        let named = tensors(projector)?;
        let norm = norm.map(|(weight, bias, eps)| -> PyResult<Norm> {
            Ok(Norm { weight: optional(weight, "norm.weight")?, bias: optional(bias, "norm.bias")?, eps })
        });
        let proj = proj.map(|(weight, transposed)| -> PyResult<Proj> {
            Ok(Proj { weight: weight.named("proj")?, transposed })
        });
        let (norm, proj) = (norm.transpose()?, proj.transpose()?);
        enter(py, move || {
            let recap = Recap::parse(recap, number)?;
            let join = TextJoin::parse(join)?;
            let mut core = Bridge::new(Head { norm, proj }, Projector::from_named(named)?, recap, join)?;
            core.kernel = kernel.map(|kernel| Arc::new(Callback(kernel)) as _);
            let names = core.params().into_iter().map(|(name, _)| name).collect();
            Ok(PyBridge { core: Mutex::new(core), names })
        })
    }

    /// The condition (B, N', S, C) and the tape of this pass.
    #[pyo3(signature = (tokens, text, choice=None))]
    fn forward(
        &self,
        py: Python<'_>,
        tokens: Given,
        text: Given,
        choice: Option<Given>,
    ) -> PyResult<(PyTensor, PyTape)> {
        let (tokens, text, choice) =
            (tokens.named("tokens")?, text.named("text")?, optional(choice, "choice")?);
        enter(py, move || {
            let (condition, tape) = lock(&self.core).forward(&tokens, &text, choice.as_ref())?;
            Ok((condition, tape))
        })
        .map(|(condition, tape)| (PyTensor(condition), PyTape(Mutex::new(tape))))
    }

    /// The gradient of the tokens, and of each parameter in the order of `param_names`.
    fn backward(&self, py: Python<'_>, tape: &PyTape, grad: Given) -> PyResult<(PyTensor, Vec<PyTensor>)> {
        let grad = grad.named("grad")?;
        let grads = enter(py, move || lock(&self.core).backward(&lock(&tape.0), &grad))?;
        Ok((PyTensor(grads.tokens), grads.params.into_iter().map(PyTensor).collect()))
    }

    /// Names of the parameters that exist: `norm.weight`, `norm.bias`, `proj`, `projector.*`.
    #[getter]
    fn param_names(&self) -> Vec<&'static str> {
        self.names.clone()
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyBridge>()?;
    module.add_class::<PyTape>()
}
