//! `_native.View`: what a term of the loss that is a Python callable sees, and that term.

use crate::torch::Tensor;
use numpy::PyArray1;
use pyo3::prelude::*;

use super::callback::python;
use super::enter::{enter_step, raise};
use super::tensor::{Given, PyTensor};
use crate::error::{floating, Result};
use crate::feedback::{Scope, Term, View};

/// What a term of the loss sees: the whole batch of a step. Each tensor is computed when it is first read.
///
/// ``tokens`` (B, 1+P, W); ``pooled`` and ``original`` (B, D), the embeddings of the student and of the untouched model;
/// ``predictions`` and ``targets`` (B, N, ...); ``timesteps`` (B, N). On the host: ``keys`` (B,),
/// uint64, of the samples (see `sample_keys`), and ``epoch``, the pass over the data.
#[pyclass(frozen, name = "View", module = "diva_rs._native")]
struct PyView(View);

#[pymethods]
impl PyView {
    #[getter]
    fn tokens(&self, py: Python<'_>) -> PyResult<PyTensor> {
        self.read(py, View::tokens)
    }

    #[getter]
    fn pooled(&self, py: Python<'_>) -> PyResult<PyTensor> {
        self.read(py, View::pooled)
    }

    #[getter]
    fn original(&self, py: Python<'_>) -> PyResult<PyTensor> {
        self.read(py, View::original)
    }

    #[getter]
    fn predictions(&self, py: Python<'_>) -> PyResult<PyTensor> {
        self.read(py, View::predictions)
    }

    #[getter]
    fn targets(&self, py: Python<'_>) -> PyResult<PyTensor> {
        self.read(py, View::targets)
    }

    #[getter]
    fn timesteps(&self, py: Python<'_>) -> PyResult<PyTensor> {
        self.read(py, View::timesteps)
    }

    #[getter]
    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<u64>>> {
        Ok(PyArray1::from_vec(py, self.0.keyed().map_err(raise)?.keys))
    }

    #[getter]
    fn epoch(&self) -> PyResult<u64> {
        Ok(self.0.keyed().map_err(raise)?.epoch)
    }
}

impl PyView {
    fn read(&self, py: Python<'_>, tensor: fn(&View) -> Result<Tensor>) -> PyResult<PyTensor> {
        enter_step(py, || tensor(&self.0)).map(PyTensor)
    }
}

/// A Python callable as a term: it sees the whole batch.
pub struct CallbackTerm {
    pub name: String,
    pub function: PyObject,
}

impl Term for CallbackTerm {
    fn name(&self) -> &str {
        &self.name
    }

    fn scope(&self) -> Scope {
        Scope::Batch
    }

    fn loss(&self, view: &View) -> Result<Tensor> {
        let loss = python(|py| {
            let loss = self.function.call1(py, (PyView(view.clone()),))?;
            loss.extract::<Given>(py)?.named(&format!("the loss of term {:?}", self.name))
        })?;
        floating("terms", &self.name, &loss)?;
        Ok(loss)
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyView>()
}
