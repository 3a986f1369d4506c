//! The table of noise levels and its copies: signal and noise amplitude per timestep, once per
//! device and dtype.

use std::sync::Mutex;

use crate::torch::{Device, Kind, Tensor};

use crate::error::{self, DivaError, Result};
use crate::slices;

/// Amplitudes by timestep, `(T,)` each, on one device and in one dtype: `x_t = signal[t] x_0 +
/// noise[t] e`.
#[derive(Debug)]
pub struct Levels {
    pub signal: Tensor,
    pub noise: Tensor,
    /// The timestep input of a flow-matching model, float32; other models take the index.
    pub steps: Option<Tensor>,
}

impl Levels {
    fn shallow_clone(&self) -> Self {
        Self {
            signal: self.signal.shallow_clone(),
            noise: self.noise.shallow_clone(),
            steps: self.steps.as_ref().map(Tensor::shallow_clone),
        }
    }
}

/// The table on the CPU, and the levels made from it so far.
#[derive(Debug)]
pub struct Tables {
    /// `alphas_cumprod`, or `sigmas` where `steps` is set.
    table: Tensor,
    steps: Option<Tensor>,
    made: Vec<(Device, Kind, Levels)>,
}

impl Tables {
    pub fn new(table: Tensor, steps: Option<Tensor>) -> Mutex<Self> {
        Mutex::new(Self { table, steps, made: Vec::new() })
    }

    pub fn table(&self) -> &Tensor {
        &self.table
    }

    /// The levels in the dtype and on the device of `like`; copied to a device only once.
    pub fn levels(&mut self, like: &Tensor) -> Result<Levels> {
        let (device, kind) = (like.device(), like.f_kind()?);
        let known = self.made.iter().find(|(d, k, _)| *d == device && *k == kind);
        if let Some((_, _, levels)) = known {
            return Ok(levels.shallow_clone());
        }
        let levels = self.make(like)?;
        // tch reports every device that it does not know (`meta` among them) as one and the same.
        if matches!(device, Device::Cpu | Device::Cuda(_)) {
            self.made.push((device, kind, levels.shallow_clone()));
        }
        Ok(levels)
    }

    /// First the cast, then the root, as diffusers' `add_noise` (scheduling_ddpm.py) and
    /// `scale_noise` do.
    fn make(&self, like: &Tensor) -> Result<Levels> {
        let table = self.table.f_to_other(like, true, false)?;
        let rest = table.f_rsub_scalar(1.0)?; // 1 - table
        let Some(steps) = &self.steps else {
            let signal = table.f_pow_tensor_scalar(0.5)?;
            return Ok(Levels { signal, noise: rest.f_pow_tensor_scalar(0.5)?, steps: None });
        };
        let steps = steps.f_to_other(&like.f_to_kind(Kind::Float)?, true, false)?;
        Ok(Levels { signal: rest, noise: table, steps: Some(steps) })
    }
}

/// A private CPU copy of a table of levels and its values: `(T,)`, float32 or float64, each in [0,
/// 1].
pub fn host_table(op: &'static str, name: &str, table: &Tensor) -> Result<(Tensor, Vec<f64>)> {
    let kind = floating(op, name, table)?;
    if !matches!(kind, Kind::Float | Kind::Double) {
        let expected =
            "float32 or float64: a table in half precision has lost the small noise levels".to_string();
        return Err(DivaError::kind(op, name.to_string(), kind, expected));
    }
    if table.dim() != 1 || table.numel() == 0 {
        return Err(DivaError::shape(op, name, table, "(T,), one entry per timestep"));
    }
    let _guard = crate::torch::no_grad_guard();
    let table = table.f_to_device(Device::Cpu)?.f_contiguous()?.f_detach_copy()?;
    let wide = table.f_to_kind(Kind::Double)?;
    let values = slices::view::<f64>(&wide)?.to_vec();
    if let Some(t) = values.iter().position(|value| !(0.0..=1.0).contains(value)) {
        let value = values.get(t).copied().unwrap_or(f64::NAN);
        return Err(DivaError::config(op, format!("{name}[{t}] is {value}, expected a number in [0, 1]")));
    }
    Ok((table, values))
}

/// A tensor without elements that carries a device and a dtype: how tensors are made on the device
/// of another, which tch cannot name where it does not know it.
pub fn probe(like: &Tensor, kind: Kind) -> Result<Tensor> {
    Ok(like.f_as_strided([0], [1], None)?.f_to_kind(kind)?)
}

/// The dtype of a dense tensor; tch has no name for some, such as torch.uint16.
pub fn kind(op: &'static str, name: &str, tensor: &Tensor) -> Result<Kind> {
    strided(op, name, tensor)?;
    tensor.f_kind().map_err(|_| DivaError::data(op, format!("`{name}` has a dtype that is not supported")))
}

/// The dtype of a dense floating-point tensor.
pub fn floating(op: &'static str, name: &str, tensor: &Tensor) -> Result<Kind> {
    kind(op, name, tensor)?;
    error::floating(op, name, tensor)
}

/// Refuses sparse and nested layouts before a question about strides makes libtorch throw where tch
/// would panic.
fn strided(op: &'static str, name: &str, tensor: &Tensor) -> Result<()> {
    let dense = tensor.defined() && (tensor.device() != Device::Cpu || tensor.f_is_set_to(tensor).is_ok());
    match dense {
        true => Ok(()),
        false => Err(DivaError::data(op, format!("`{name}` is not a dense tensor: call .to_dense() first"))),
    }
}
