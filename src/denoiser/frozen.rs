//! The weights of a denoiser, which is frozen as a rule.

use crate::torch::{Kind, Tensor};

use crate::error::{DivaError, Result};
use crate::nn::Store;

/// The weights detached: no gradient is computed for one, even where the module around it trains. They share their
/// storage with the caller's. Their dtypes as [`check`] takes them.
pub fn frozen(op: &'static str, weights: Vec<(String, Tensor)>, any_dtype: &[&str]) -> Result<Store> {
    check(op, &weights, any_dtype)?;
    let detached = weights.into_iter().map(|(key, tensor)| Ok((key, tensor.f_detach()?)));
    Ok(Store::new(detached.collect::<Result<Vec<_>>>()?))
}

/// The weights have one dtype: float32, bfloat16 or float64. Beside bfloat16 any may be float32: it was not rounded. The
/// dtype of those named in `any_dtype` may differ.
pub fn check(op: &'static str, weights: &[(String, Tensor)], any_dtype: &[&str]) -> Result<()> {
    let half = weights.iter().any(|(_, weight)| weight.f_kind().ok() == Some(Kind::BFloat16));
    let mut first: Option<(&str, Kind)> = None;
    for (key, tensor) in weights {
        let kind = tensor.f_kind()?;
        if !(any_dtype.contains(&key.as_str()) || half && kind == Kind::Float) {
            let (other, expected) = *first.get_or_insert((key, kind));
            if kind != expected {
                let what =
                    format!("is {kind:?}, but `{other}` is {expected:?}: cast the module to one dtype");
                return Err(DivaError::weights(op, key, what));
            }
        }
        if !matches!(kind, Kind::Float | Kind::BFloat16 | Kind::Double) {
            let what = format!("is {kind:?}: cast the module to float32, bfloat16 or float64");
            return Err(DivaError::weights(op, key, what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::Device;

    fn entry(key: &str, kind: Kind) -> (String, Tensor) {
        (key.to_string(), Tensor::zeros([2], (kind, Device::Cpu)))
    }

    #[test]
    fn weights_are_shared_and_detached() -> Result<()> {
        let (key, weight) = entry("a", Kind::Double);
        let weight = weight.f_set_requires_grad(true)?;
        let taken = frozen("test", vec![(key, weight.shallow_clone())], &[])?.root().get("a", &[2])?;
        assert!(!taken.requires_grad());
        assert_eq!(taken.data_ptr(), weight.data_ptr());
        Ok(())
    }

    #[test]
    fn some_weights_may_have_another_dtype() {
        let pair = |first, second| vec![entry("a", first), entry("b", second)];
        assert!(frozen("test", pair(Kind::Double, Kind::Float), &["b"]).is_ok());
        assert!(frozen("test", pair(Kind::BFloat16, Kind::Float), &[]).is_ok());
        assert!(frozen("test", pair(Kind::Float, Kind::Double), &[]).is_err());
        assert!(frozen("test", vec![entry("a", Kind::Int64)], &["a"]).is_err());
    }

    #[test]
    fn one_dtype_and_a_computing_one() {
        for (kinds, words) in [
            ([Kind::Float, Kind::Double], ["`b` is Double", "`a` is Float"]),
            ([Kind::Int64, Kind::Int64], ["`a` is Int64", "float32"]),
        ] {
            let weights = vec![entry("a", kinds[0]), entry("b", kinds[1])];
            let error = frozen("test", weights, &[]).err().map(|err| err.to_string()).unwrap_or_default();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }
}
