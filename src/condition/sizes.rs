//! The sizes that the parameters fix, and the checks of a single tensor.

use crate::torch::{Device, Kind, Tensor};

use super::OP;
use crate::error::{DivaError, Result};

/// What the parameters fix: the widths of the tokens (W) and of the condition (C), the dtype and
/// the device.
pub(super) struct Sizes {
    pub width: i64,
    pub channels: i64,
    pub kind: Kind,
    pub device: Device,
}

pub(super) fn rank(tensor: &Tensor, name: &str, rank: usize, layout: &str) -> Result<()> {
    if tensor.dim() == rank {
        return Ok(());
    }
    Err(DivaError::shape(OP, name, tensor, format!("{rank} axes {layout}")))
}

pub(super) fn same_device(tensor: &Tensor, name: &str, device: Device) -> Result<()> {
    let found = tensor.device();
    if found == device {
        return Ok(());
    }
    let (found, device) = (place(found), place(device));
    let what =
        format!("`{name}` is on {found} but the bridge's parameters are on {device}: move one of them");
    Err(DivaError::device(OP, what))
}

/// A device as PyTorch writes it. tch has no name for `meta`, which it reports as its neighbour.
pub(super) fn place(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".to_string(),
        Device::Cuda(index) => format!("cuda:{index}"),
        Device::Mps => "meta or mps".to_string(),
        Device::Vulkan => "vulkan".to_string(),
    }
}
