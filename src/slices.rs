//! Raw views of a tensor's memory, for the fused CPU passes: the only file that takes a pointer to
//! numbers from libtorch. Everything that could make a view wrong is refused before the pointer is
//! taken.

use std::marker::PhantomData;
use std::mem::{align_of, size_of};
use std::slice;

use crate::torch::kind::Element;
use crate::torch::{Device, Kind, Tensor};

use crate::error::{DivaError, Result};

/// True when [`view`] will accept `tensor` for some element type: strided CPU memory in row-major
/// order. libtorch's `meta` device reports another device than CPU, so that it takes the path
/// without raw memory.
pub fn is_viewable(tensor: &Tensor) -> bool {
    tensor.defined()
        && tensor.device() == Device::Cpu
        // Only strided layouts support this call; sparse and nested ones raise an error,
        // where asking for contiguity would panic.
        && tensor.f_is_set_to(tensor).unwrap_or(false)
        // A lazily negated tensor holds the opposite of its values.
        && !tensor.f_is_neg().unwrap_or(true)
        && tensor.is_contiguous()
}

/// The elements of `tensor` in row-major order, without a copy.
///
/// The storage may be shared with other tensors: while the slice lives, nothing may write through
/// them. Callers keep to that by running no libtorch operation in place on an input of the pass.
///
/// Errors: `Kind` when the dtype is not `T`'s, `Device` when the memory is not contiguous CPU
/// memory.
#[allow(unsafe_code)]
pub fn view<T: Element>(tensor: &Tensor) -> Result<&[T]> {
    let Some((data, len)) = locate::<T>(tensor)? else { return Ok(&[]) };
    // SAFETY: `locate` returned the start of `len` elements of type `T`, aligned and not null,
    // within one allocation that `tensor` holds a reference to, and `tensor` is borrowed for as
    // long as the slice lives. Any bits are a valid `T`: `locate` refuses bool.
    Ok(unsafe { slice::from_raw_parts(data, len) })
}

/// A new tensor (sizes) with these values. libtorch makes the source without its dispatcher, and the copy through it:
/// where Python simulates a device, `Tensor::f_from_slice` would write into memory that does not exist.
///
/// Errors: `Device` when `sizes` hold another number of values.
#[allow(unsafe_code)]
pub fn copied<T: Element>(values: &[T], sizes: &[i64]) -> Result<Tensor> {
    if i64::try_from(values.len()).ok() != sizes.iter().try_fold(1i64, |all, &size| all.checked_mul(size)) {
        return Err(refused("another number of values"));
    }
    // SAFETY: `values` holds the elements of `sizes` in row-major order, and outlives `lent`, which is only read.
    let lent = unsafe { Tensor::f_from_blob(values.as_ptr().cast(), sizes, &[], T::KIND, Device::Cpu)? };
    Ok(lent.f_to_device_(Device::Cpu, T::KIND, false, true)?)
}

/// A new tensor in CPU memory that is written through a slice. It was made here and nothing else
/// can reach it until [`Output::into_tensor`], so that no other handle reads or writes what the
/// slice covers.
pub struct Output<T> {
    tensor: Tensor,
    element: PhantomData<T>,
}

impl<T: Element> Output<T> {
    /// The elements have arbitrary values at first: the pass writes each of them.
    pub fn new(size: &[i64]) -> Result<Self> {
        Ok(Output { tensor: Tensor::f_empty(size, (T::KIND, Device::Cpu))?, element: PhantomData })
    }

    /// The elements in row-major order.
    #[allow(unsafe_code)]
    pub fn values(&mut self) -> Result<&mut [T]> {
        let Some((data, len)) = locate::<T>(&self.tensor)? else { return Ok(&mut []) };
        // SAFETY: as in `view`; besides, contiguity rules out two indices on one address, `self`
        // has the only handle on the storage, and its mutable borrow rules out a second slice.
        Ok(unsafe { slice::from_raw_parts_mut(data, len) })
    }

    pub fn into_tensor(self) -> Tensor {
        self.tensor
    }
}

/// Start and length of the elements, or None for a tensor without elements (whose pointer may be
/// null).
fn locate<T: Element>(tensor: &Tensor) -> Result<Option<(*mut T, usize)>> {
    if !tensor.defined() {
        return Err(refused("an undefined tensor"));
    }
    let kind = tensor.f_kind()?;
    // A byte that is neither 0 nor 1 can be reinterpreted as a torch bool, but never as a Rust one.
    if kind != T::KIND || kind == Kind::Bool || size_of::<T>() != kind.elt_size_in_bytes() {
        return Err(DivaError::kind("slices", "tensor", kind, format!("{:?}", T::KIND)));
    }
    if tensor.device() != Device::Cpu {
        return Err(refused("a tensor that is not in CPU memory"));
    }
    if !is_viewable(tensor) {
        return Err(refused("a tensor that is not contiguous"));
    }
    // The sizes of a tensor may promise more than its storage holds, after
    // `untyped_storage().resize_()`: libtorch compares the two only when it makes another view.
    let detached = tensor.f_detach()?;
    if detached.f_as_strided(tensor.size(), tensor.stride(), None::<i64>).is_err() {
        return Err(refused("a tensor that is larger than its storage"));
    }
    let len = tensor.numel();
    if len == 0 {
        return Ok(None);
    }
    let data = tensor.data_ptr().cast::<T>();
    if data.is_null() || data.align_offset(align_of::<T>()) != 0 {
        return Err(refused("a tensor that owns no memory, or whose memory is misaligned"));
    }
    Ok(Some((data, len)))
}

fn refused(what: &str) -> DivaError {
    DivaError::device("slices", format!("{what} cannot be read as a slice"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_the_same_memory() -> Result<()> {
        let mut output = Output::<f64>::new(&[2, 2])?;
        output.values()?.copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
        output.values()?[3] = 9.0;
        let tensor = output.into_tensor();
        assert_eq!(view::<f64>(&tensor)?, [1.0, 2.0, 3.0, 9.0]);
        assert_eq!(tensor.f_double_value(&[1, 1])?, 9.0);
        // A contiguous part of a larger tensor starts at its own offset.
        assert_eq!(view::<f64>(&tensor.f_select(0, 1)?)?, [3.0, 9.0]);
        Ok(())
    }

    #[test]
    fn a_copy_has_the_values_and_outlives_them() -> Result<()> {
        let values = vec![1i64, 2, 3, 4, 5, 6];
        let tensor = copied(&values, &[2, 3])?;
        drop(values);
        assert_eq!((tensor.size(), view::<i64>(&tensor)?), (vec![2, 3], &[1, 2, 3, 4, 5, 6][..]));
        assert_eq!(copied::<f32>(&[], &[0, 2])?.size(), [0, 2]);
        assert!(copied(&[1.0f32], &[2]).is_err());
        Ok(())
    }

    #[test]
    fn a_tensor_without_elements_is_an_empty_slice() -> Result<()> {
        let mut output = Output::<i64>::new(&[0, 3])?;
        assert!(output.values()?.is_empty());
        assert!(view::<i64>(&output.into_tensor())?.is_empty());
        Ok(())
    }

    #[test]
    fn refuses_what_is_not_plain_memory_of_that_type() -> Result<()> {
        let tensor = Tensor::f_zeros([2, 3], (Kind::Float, Device::Cpu))?;
        assert!(matches!(view::<f64>(&tensor), Err(DivaError::Kind { got: Kind::Float, .. })));
        assert!(matches!(view::<f32>(&tensor.f_transpose(0, 1)?), Err(DivaError::Device { .. })));
        assert!(matches!(view::<f32>(&tensor.f_to_sparse_sparse_dim(2)?), Err(DivaError::Device { .. })));
        assert!(matches!(view::<f32>(&tensor.f_to_sparse_csr(None)?), Err(DivaError::Device { .. })));
        assert!(matches!(view::<f32>(&tensor.f_internal_neg_view()?), Err(DivaError::Device { .. })));
        assert!(matches!(view::<f32>(&Tensor::new()), Err(DivaError::Device { .. })));
        let flags = tensor.f_to_kind(Kind::Bool)?;
        assert!(matches!(view::<bool>(&flags), Err(DivaError::Kind { got: Kind::Bool, .. })));
        Ok(())
    }
}
