//! Tensors that cross the door. Nested ones and kinds that tch has no name for are refused on the way in, by the name
//! of their argument: the core could not even ask for their size or kind without a panic.

use crate::torch::PyTensor as Plain;
use crate::torch::Tensor;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::enter::raise;
use crate::error::DivaError;

/// A tensor on its way out.
pub struct PyTensor(pub Tensor);

/// A tensor on its way in, or what is wrong with it.
pub struct Given(Result<Tensor, String>);

impl Given {
    /// The tensor of the argument `name`.
    pub fn named(self, name: &str) -> PyResult<Tensor> {
        self.0.map_err(|fault| {
            let what = format!("`{name}` {fault}: give a dense tensor of floating point or int64");
            raise(DivaError::data("tensor", what))
        })
    }
}

/// The tensor of an argument that may be left out.
pub fn optional(given: Option<Given>, name: &str) -> PyResult<Option<Tensor>> {
    given.map(|given| given.named(name)).transpose()
}

/// The entries of a dict of tensors.
pub fn tensors(dict: &Bound<'_, PyDict>) -> PyResult<Vec<(String, Tensor)>> {
    dict.iter()
        .map(|(key, tensor)| {
            let key: String = key.extract()?;
            let tensor = tensor.extract::<Given>()?.named(&key)?;
            Ok((key, tensor))
        })
        .collect()
}

impl<'py> FromPyObject<'py> for Given {
    fn extract_bound(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let tensor = object.extract::<Plain>()?.0;
        if object.getattr("is_nested")?.extract()? {
            return Ok(Given(Err("is a nested tensor".to_string())));
        }
        if tensor.f_kind().is_err() {
            let dtype = object.getattr("dtype")?;
            return Ok(Given(Err(format!("has a dtype that is not supported ({dtype})"))));
        }
        Ok(Given(Ok(tensor)))
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
