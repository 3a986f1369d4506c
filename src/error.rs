//! What can go wrong in the core. Every variant says which operation, what was found and what was expected;
//! the Python door maps each onto one exception of `diva_rs.errors`.

use std::error::Error;

use crate::torch::{Kind, TchError, Tensor};

pub type Result<T> = std::result::Result<T, DivaError>;

/// Called between the parts of a long computation; its error ends the computation.
pub type Poll<'a> = &'a dyn Fn() -> Result<()>;

#[derive(Debug, thiserror::Error)]
pub enum DivaError {
    /// A tensor of the wrong rank or size.
    #[error("{op}: `{name}` has shape {got:?}, expected {expected}")]
    Shape { op: &'static str, name: String, got: Vec<i64>, expected: String },

    /// A tensor of a dtype that the operation does not take.
    #[error("{op}: `{name}` is {got:?}, expected {expected}")]
    Kind { op: &'static str, name: String, got: Kind, expected: String },

    /// A setting that is out of range or does not fit another one.
    #[error("{op}: {what}")]
    Config { op: &'static str, what: String },

    /// A weight or an optimizer state that is missing, unexpected or misshapen.
    #[error("{op}: `{key}` {what}")]
    Weights { op: &'static str, key: String, what: String },

    /// Input values that cannot be used.
    #[error("{op}: {what}")]
    Data { op: &'static str, what: String },

    /// The device is out of memory, or is not the device of the inputs.
    #[error("{op}: {what}")]
    Device { op: &'static str, what: String },

    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(String),

    /// An error of the caller's own callback, handed back unchanged by the door.
    #[error("callback failed: {0}")]
    Callback(Box<dyn Error + Send + Sync>),

    /// A panic that was stopped at the door: always a defect of this crate.
    #[error("internal error (please report it): {0}")]
    Panic(String),
}

impl From<TchError> for DivaError {
    fn from(err: TchError) -> Self {
        let text = err.to_string();
        // The first line is the message, the rest is libtorch's C++ backtrace.
        let line = text.lines().next().unwrap_or_default().to_string();
        if says_out_of_memory(&line) {
            return DivaError::Device { op: "libtorch", what: line };
        }
        DivaError::Torch(line)
    }
}

/// The words of libtorch's allocators on CUDA and its kin, on the CPU (Unix, Windows), and of cuBLAS and cuDNN.
fn says_out_of_memory(text: &str) -> bool {
    ["out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED"]
        .iter()
        .any(|words| text.contains(words))
}

impl DivaError {
    /// Whether the same work in smaller parts might fit.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            DivaError::Device { what, .. } => says_out_of_memory(what),
            DivaError::Callback(err) => says_out_of_memory(&err.to_string()),
            _ => false,
        }
    }

    /// A shape error about `tensor`.
    pub fn shape(op: &'static str, name: &str, tensor: &Tensor, expected: impl Into<String>) -> Self {
        DivaError::Shape { op, name: name.to_string(), got: tensor.size(), expected: expected.into() }
    }

    pub fn config(op: &'static str, what: impl Into<String>) -> Self {
        DivaError::Config { op, what: what.into() }
    }

    pub fn data(op: &'static str, what: impl Into<String>) -> Self {
        DivaError::Data { op, what: what.into() }
    }

    pub fn device(op: &'static str, what: impl Into<String>) -> Self {
        DivaError::Device { op, what: what.into() }
    }

    pub fn weights(op: &'static str, key: impl Into<String>, what: impl Into<String>) -> Self {
        DivaError::Weights { op, key: key.into(), what: what.into() }
    }

    pub fn kind(op: &'static str, name: impl Into<String>, got: Kind, expected: impl Into<String>) -> Self {
        DivaError::Kind { op, name: name.into(), got, expected: expected.into() }
    }
}

/// The dtype of `tensor`, which must hold floating-point numbers.
pub fn floating(op: &'static str, name: &str, tensor: &Tensor) -> Result<Kind> {
    match tensor.f_kind()? {
        kind @ (Kind::Half | Kind::BFloat16 | Kind::Float | Kind::Double) => Ok(kind),
        got => Err(DivaError::kind(op, name, got, "a floating-point dtype")),
    }
}
