//! The one way in. Releases the GIL (autograd with the GIL held can deadlock), stops panics, maps errors onto the
//! exceptions of `diva_rs.errors`, and lets Ctrl-C through before and after.

use std::any::Any;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Mutex, MutexGuard};

use pyo3::prelude::*;

use crate::error::{DivaError, Result};

/// Runs `work` without the GIL and hands its result, its error or its panic back to Python.
pub fn enter<T, F>(py: Python<'_>, work: F) -> PyResult<T>
where
    T: Send,
    F: FnOnce() -> Result<T> + Send,
{
    py.check_signals()?;
    let outcome = py.allow_threads(|| catch_unwind(AssertUnwindSafe(work)));
    let outcome = outcome.unwrap_or_else(|panic| Err(DivaError::Panic(panic_text(&*panic))));
    // Where libtorch called Python (a dispatch mode, a tensor's subclass), the exception is still set. With a result it
    // belongs to an operation that another one replaced.
    let pending = PyErr::take(py);
    let value = outcome.map_err(|err| pending.unwrap_or_else(|| raise(err)))?;
    py.check_signals()?;
    Ok(value)
}

/// `enter` in the modes of a training step, whatever the caller's are: gradients on, inference mode and autocast off. The
/// modes belong to the thread, and it is this thread that runs the step.
pub fn enter_step<T, F>(py: Python<'_>, work: F) -> PyResult<T>
where
    T: Send,
    F: FnOnce() -> Result<T> + Send,
{
    let torch = py.import("torch")?;
    let mut autocast = Vec::new();
    for device in ["cpu", "cuda"] {
        if torch.call_method1("is_autocast_enabled", (device,))?.extract()? {
            autocast.push(device);
        }
    }
    let modes = [torch.call_method1("inference_mode", (false,))?, torch.getattr("enable_grad")?.call0()?];
    for mode in &modes {
        mode.call_method0("__enter__")?;
    }
    for &device in &autocast {
        torch.call_method1("set_autocast_enabled", (device, false))?;
    }
    let outcome = enter(py, work);
    for &device in &autocast {
        torch.call_method1("set_autocast_enabled", (device, true))?;
    }
    for mode in modes.iter().rev() {
        mode.call_method1("__exit__", (py.None(), py.None(), py.None()))?;
    }
    outcome
}

/// The core object behind a Python class. A lock poisoned by a panic is still usable: the panic was reported.
pub fn lock<T>(slot: &Mutex<T>) -> MutexGuard<'_, T> {
    slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown panic".to_string())
}

/// One exception per variant. A callback's own exception goes back unchanged, traceback included.
pub fn raise(err: DivaError) -> PyErr {
    let text = err.to_string();
    let name = match err {
        DivaError::Shape { .. } | DivaError::Kind { .. } => "ShapeError",
        DivaError::Config { .. } => "ConfigError",
        DivaError::Weights { .. } => "WeightsError",
        DivaError::Data { .. } => "DataError",
        DivaError::Device { .. } => "DeviceError",
        DivaError::Torch(_) | DivaError::Panic(_) => "DivaError",
        DivaError::Callback(inner) => match inner.downcast::<PyErr>() {
            Ok(err) => return *err,
            Err(_) => "DivaError",
        },
    };
    Python::with_gil(|py| exception(py, name, text).unwrap_or_else(|err| err))
}

/// An exception of `diva_rs.errors`.
fn exception(py: Python<'_>, name: &str, text: String) -> PyResult<PyErr> {
    let class = py.import("diva_rs.errors")?.getattr(name)?;
    Ok(PyErr::from_value(class.call1((text,))?))
}
