//! The weights of a network that is never trained.

use tch::{Kind, Tensor};

use crate::error::{DivaError, Result};
use crate::nn::Store;

/// The weights detached, so that no gradient is ever computed for one whatever the module around it says. They share
/// their storage with the caller's, and have one dtype: float32, bfloat16 or float64.
/// `apart`: which of them may have another.
pub fn frozen(
    op: &'static str,
    weights: Vec<(String, Tensor)>,
    apart: impl Fn(&str, Kind) -> bool,
) -> Result<Store> {
    let mut first: Option<(String, Kind)> = None;
    let mut detached = Vec::with_capacity(weights.len());
    for (key, tensor) in weights {
        let kind = tensor.f_kind()?;
        if !apart(&key, kind) {
            let (other, expected) = first.get_or_insert_with(|| (key.clone(), kind));
            if kind != *expected {
                let what =
                    format!("is {kind:?}, but `{other}` is {expected:?}: cast the module to one dtype");
                return Err(DivaError::Weights { op, key, what });
            }
        }
        if !matches!(kind, Kind::Float | Kind::BFloat16 | Kind::Double) {
            let what = format!("is {kind:?}: cast the module to float32, bfloat16 or float64");
            return Err(DivaError::Weights { op, key, what });
        }
        detached.push((key, tensor.f_detach()?));
    }
    Ok(Store::new(detached))
}

/// Whether a tensor holds floating-point numbers.
pub fn is_floating(tensor: &Tensor) -> Result<bool> {
    Ok(matches!(tensor.f_kind()?, Kind::Half | Kind::BFloat16 | Kind::Float | Kind::Double))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn entry(key: &str, kind: Kind) -> (String, Tensor) {
        (key.to_string(), Tensor::zeros([2], (kind, Device::Cpu)))
    }

    #[test]
    fn weights_are_shared_and_detached() -> Result<()> {
        let (key, weight) = entry("a", Kind::Double);
        let weight = weight.f_set_requires_grad(true)?;
        let taken =
            frozen("test", vec![(key, weight.shallow_clone())], |_, _| false)?.root().get("a", &[2])?;
        assert!(!taken.requires_grad());
        assert_eq!(taken.data_ptr(), weight.data_ptr());
        Ok(())
    }

    #[test]
    fn some_weights_may_stand_apart() {
        let weights = || vec![entry("a", Kind::Float), entry("b", Kind::BFloat16)];
        assert!(frozen("test", weights(), |key, _| key == "a").is_ok());
        assert!(frozen("test", weights(), |_, kind| kind == Kind::Float).is_ok());
        assert!(frozen("test", weights(), |_, kind| kind == Kind::Double).is_err());
        assert!(frozen("test", vec![entry("a", Kind::Int64)], |_, _| true).is_err());
    }

    #[test]
    fn one_dtype_and_a_computing_one() {
        for (kinds, words) in [
            ([Kind::Float, Kind::BFloat16], ["`b` is BFloat16", "`a` is Float"]),
            ([Kind::Int64, Kind::Int64], ["`a` is Int64", "float32"]),
        ] {
            let weights = vec![entry("a", kinds[0]), entry("b", kinds[1])];
            let error =
                frozen("test", weights, |_, _| false).err().map(|err| err.to_string()).unwrap_or_default();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }
}
