//! The PyO3 door: the only room that knows Python. One file per exposed class; every call goes through `enter`.

use pyo3::prelude::*;

mod callback;
mod condition;
mod draws;
mod enter;
mod inputs;
mod judge;
mod list;
mod network;
mod number;
mod optim;
mod schedule;
mod step;
mod targets;
mod tensor;
mod term;

/// The native module `diva_rs._native`. `import torch` must come first: it loads the libtorch that this links to.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    crate::threads::forked(); // from here on, a process that is forked runs without libtorch's threads
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("__torch__", env!("DIVA_TORCH"))?;
    // Python reads this sentence in the file where the module cannot be loaded.
    module.setattr("__doc__", concat!("The native core, built against torch ", env!("DIVA_TORCH"), "."))?;
    draws::register(module)?;
    schedule::register(module)?;
    condition::register(module)?;
    inputs::register(module)?;
    optim::register(module)?;
    step::register(module)?;
    judge::register(module)?;
    term::register(module)?;
    network::register(module)
}
