//! Tensors that cross the door. Nested ones and kinds that tch has no name for are refused on the way in: the core
//! could not even ask for their size or kind without a panic.

use std::ops::Deref;

use pyo3::prelude::*;
use pyo3_tch::PyTensor as Plain;
use tch::Tensor;

use super::enter::raise;
use crate::error::DivaError;

pub struct PyTensor(pub Tensor);

impl Deref for PyTensor {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.0
    }
}

impl<'py> FromPyObject<'py> for PyTensor {
    fn extract_bound(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let tensor = object.extract::<Plain>()?.0;
        if object.getattr("is_nested")?.extract()? {
            return Err(refused("a nested tensor".to_string()));
        }
        if tensor.f_kind().is_err() {
            return Err(refused(format!("a tensor of {}", object.getattr("dtype")?)));
        }
        Ok(PyTensor(tensor))
    }
}

impl<'py> IntoPyObject<'py> for PyTensor {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Self::Output> {
        Plain(self.0).into_pyobject(py)
    }
}

fn refused(what: String) -> PyErr {
    raise(DivaError::Data {
        op: "tensor",
        what: format!("{what} cannot be computed with here: give a dense one of floating point or int64"),
    })
}
