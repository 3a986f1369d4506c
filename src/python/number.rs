//! Numbers that cross the door.

use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::prelude::*;

/// What PyO3 makes of an argument that is a number or holds some (`from_py_with`). It asks the object's own `__float__`
/// or `__index__`, and a tensor on the meta device answers with torch's RuntimeError: here that is a TypeError.
pub fn number<'py, T: FromPyObject<'py>>(object: &Bound<'py, PyAny>) -> PyResult<T> {
    object.extract().map_err(|err| match err.is_instance_of::<PyRuntimeError>(object.py()) {
        true => PyTypeError::new_err(format!("expected a number: {}", err.value(object.py()))),
        false => err,
    })
}
