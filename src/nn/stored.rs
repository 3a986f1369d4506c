//! Tensors' numbers for kernels: bf16 or float32.

use crate::torch::{Kind, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::error::Result;
use crate::simd::Number;
use crate::slices::{view, Output};

pub trait Stored: Number {
    /// Whether a float32 result is rounded.
    const ROUNDS: bool;
    /// `x` row by row and outside any graph, as [`Stored::numbers`] reads it.
    fn plain(x: &Tensor) -> Result<Tensor>;
    fn numbers(x: &Tensor) -> Result<&[Self]>;
    /// A result that is not rounded.
    fn exact(result: &Tensor) -> Result<Option<&[f32]>>;
    /// A new tensor, each of whose numbers `write` writes.
    fn written(size: &[i64], write: impl FnOnce(&mut [Self]) -> Result<()>) -> Result<Tensor>;
}

/// bf16, under the name of the other half precision: tch can view no bf16.
impl Stored for u16 {
    const ROUNDS: bool = true;

    fn plain(x: &Tensor) -> Result<Tensor> {
        Ok(x.f_detach()?.f_contiguous()?.f_view_dtype(Kind::Half)?)
    }

    fn numbers(x: &Tensor) -> Result<&[u16]> {
        Ok(view::<f16>(x)?.reinterpret_cast())
    }

    fn exact(_result: &Tensor) -> Result<Option<&[f32]>> {
        Ok(None)
    }

    fn written(size: &[i64], write: impl FnOnce(&mut [u16]) -> Result<()>) -> Result<Tensor> {
        let mut output = Output::<f16>::new(size)?;
        write(output.values()?.reinterpret_cast_mut())?;
        Ok(output.into_tensor().f_view_dtype(Kind::BFloat16)?)
    }
}

impl Stored for f32 {
    const ROUNDS: bool = false;

    fn plain(x: &Tensor) -> Result<Tensor> {
        Ok(x.f_detach()?.f_contiguous()?)
    }

    fn numbers(x: &Tensor) -> Result<&[f32]> {
        view(x)
    }

    fn exact(result: &Tensor) -> Result<Option<&[f32]>> {
        view(result).map(Some)
    }

    fn written(size: &[i64], write: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<Tensor> {
        let mut output = Output::<f32>::new(size)?;
        write(output.values()?)?;
        Ok(output.into_tensor())
    }
}
