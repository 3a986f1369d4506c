//! A list or a tuple that crosses the door.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

/// The items of a list or a tuple. PyO3 reads a `Vec` from any sequence and first reserves as much as its `__len__`
/// claims, which aborts the process where that is a lie.
pub struct List<T>(pub Vec<T>);

impl<'py, T: FromPyObject<'py>> FromPyObject<'py> for List<T> {
    fn extract_bound(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let items = match (object.downcast::<PyList>(), object.downcast::<PyTuple>()) {
            (Ok(list), _) => list.to_tuple(),
            (_, Ok(tuple)) => tuple.clone(),
            _ => {
                let what = format!("expected a list or a tuple, not {}", object.get_type().qualname()?);
                return Err(PyTypeError::new_err(what));
            }
        };
        items.iter().map(|item| item.extract()).collect::<PyResult<_>>().map(List)
    }
}
