//! `_native.DrawPlan`, `_native.negatives` and `_native.augment_seed`. Arguments are read by hand, so that a wrong one is a `ConfigError` or
//! `DataError` that names it, and not the conversion's own TypeError or OverflowError.

use numpy::{Element, PyArray1, PyArrayDyn, PyArrayMethods, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::enter::{enter, raise};
use crate::draws::{self, Timesteps, TokenRule, MAX_DIMS};
use crate::error::DivaError;

/// `diva_rs._native.DrawPlan`: what to draw for each sample. Immutable, so it needs no lock.
#[pyclass(frozen, module = "diva_rs._native")]
pub(super) struct DrawPlan {
    pub(super) core: draws::DrawPlan,
}

type Arrays<'py> = (Bound<'py, PyArrayDyn<i64>>, Bound<'py, PyArrayDyn<f32>>, Bound<'py, PyArrayDyn<i64>>);

#[pymethods]
impl DrawPlan {
    #[new]
    #[pyo3(signature = (seed, draws, latent_shape, patches, choose=None, replacement=None, density=None,
        timesteps=None, timestep_range=None, logit=None))]
    #[allow(clippy::too_many_arguments)] // the fields of the Python dataclass, one by one
    fn new(
        seed: &Bound<'_, PyAny>,
        draws: &Bound<'_, PyAny>,
        latent_shape: &Bound<'_, PyAny>,
        patches: &Bound<'_, PyAny>,
        choose: Option<&Bound<'_, PyAny>>,
        replacement: Option<&Bound<'_, PyAny>>,
        density: Option<&Bound<'_, PyAny>>,
        timesteps: Option<&Bound<'_, PyAny>>,
        timestep_range: Option<&Bound<'_, PyAny>>,
        logit: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let py = seed.py();
        let range = match timestep_range {
            Some(range) => pair("timestep_range", range)?,
            None => (0, 1000),
        };
        let logit = match logit {
            Some(logit) => pair("logit", logit)?,
            None => (0.0, 1.0),
        };
        let replacement = match replacement {
            Some(flag) => flag.extract().map_err(|_| wrong("replacement", flag, "True or False"))?,
            None => false,
        };
        let plan = draws::DrawPlan {
            seed: whole("seed", seed)?,
            draws: size("draws", draws)?,
            timesteps: parse_timesteps(timesteps, logit)?,
            range,
            latent: sizes("latent_shape", latent_shape)?,
            patches: size("patches", patches)?,
            tokens: parse_tokens(choose, replacement, density)?,
        };
        Ok(Self { core: enter(py, move || plan.validated())? })
    }

    /// draw(ids, epoch) -> (timesteps int64 (B, N), noise float32 (B, N, *latent), tokens int64 (B, N, k))
    fn draw<'py>(&self, ids: &Bound<'py, PyAny>, epoch: &Bound<'py, PyAny>) -> PyResult<Arrays<'py>> {
        let py = ids.py();
        let keys = match ids.extract::<PyReadonlyArray1<u64>>() {
            Ok(array) => array.as_array().to_vec(),
            Err(_) => {
                let what =
                    "`ids` must be a one-dimensional uint64 array; diva_rs.draws.sample_keys makes one";
                return Err(raise(DivaError::data("draws", what.to_string())));
            }
        };
        let epoch = whole("epoch", epoch)?;
        let drawn = enter(py, || self.core.draw(&keys, epoch))?;

        let (batch, count) = (keys.len(), self.core.draws);
        let noise_shape: Vec<usize> = [batch, count].iter().chain(&self.core.latent).copied().collect();
        Ok((
            hand_over(py, drawn.timesteps, vec![batch, count])?,
            hand_over(py, drawn.noise, noise_shape)?,
            hand_over(py, drawn.tokens, vec![batch, count, drawn.k])?,
        ))
    }
}

/// augment_seed(seed, id, epoch) -> a 63-bit seed for a sample's image augmentation in one epoch
#[pyfunction]
fn augment_seed(seed: &Bound<'_, PyAny>, id: &Bound<'_, PyAny>, epoch: &Bound<'_, PyAny>) -> PyResult<u64> {
    Ok(draws::augment_seed(whole("seed", seed)?, whole("id", id)?, whole("epoch", epoch)?))
}

/// negatives(seed, ids, epoch, draw, group=None, count=None) -> for each sample, the places of its negatives in the batch
#[pyfunction]
#[pyo3(signature = (seed, ids, epoch, draw, group=None, count=None))]
fn negatives(
    seed: &Bound<'_, PyAny>,
    ids: PyReadonlyArray1<'_, u64>,
    epoch: &Bound<'_, PyAny>,
    draw: u32,
    group: Option<usize>,
    count: Option<usize>,
) -> PyResult<Vec<Vec<i64>>> {
    let (seed, epoch) = (whole("seed", seed)?, whole("epoch", epoch)?);
    Ok(draws::negatives(seed, &ids.as_array().to_vec(), epoch, draw, group, count))
}

/// The vector as a NumPy array that owns it: moved, not copied.
fn hand_over<T: Element>(
    py: Python<'_>,
    values: Vec<T>,
    shape: Vec<usize>,
) -> PyResult<Bound<'_, PyArrayDyn<T>>> {
    PyArray1::from_vec(py, values).reshape(shape)
}

fn parse_timesteps(name: Option<&Bound<'_, PyAny>>, logit: (f64, f64)) -> PyResult<Timesteps> {
    let Some(name) = name else { return Ok(Timesteps::Uniform) };
    let text = name.downcast::<PyString>().ok().and_then(|text| text.to_str().ok());
    match text {
        Some("uniform") => Ok(Timesteps::Uniform),
        Some("stratified") => Ok(Timesteps::Stratified),
        Some("logit-normal") => Ok(Timesteps::LogitNormal { mean: logit.0, std: logit.1 }),
        _ => Err(wrong("timesteps", name, "\"uniform\", \"stratified\" or \"logit-normal\"")),
    }
}

fn parse_tokens(
    choose: Option<&Bound<'_, PyAny>>,
    replacement: bool,
    density: Option<&Bound<'_, PyAny>>,
) -> PyResult<TokenRule> {
    let clash = |what: &str| Err(raise(DivaError::config("draws", what)));
    match (choose, density) {
        (Some(_), Some(_)) => clash("`choose` and `density` are both given; give the one or the other"),
        (None, _) if replacement => clash("`replacement=True` needs `choose`, the number of patches to draw"),
        (Some(k), None) => Ok(TokenRule::Choose { k: size("choose", k)?, replacement }),
        (None, Some(density)) => Ok(TokenRule::Bernoulli { density: number("density", density)? }),
        (None, None) => Ok(TokenRule::None),
    }
}

/// A ConfigError about the argument `name`. Long values are cut: the message is for people.
fn wrong(name: &str, value: &Bound<'_, PyAny>, expected: &str) -> PyErr {
    let shown =
        value.repr().map_or_else(|_| "not printable".to_string(), |text| text.to_string_lossy().into_owned());
    let short: String = shown.chars().take(80).collect();
    let dots = if short.len() < shown.len() { "..." } else { "" };
    raise(DivaError::config("draws", format!("`{name}` is {short}{dots}, expected {expected}")))
}

fn whole(name: &str, value: &Bound<'_, PyAny>) -> PyResult<u64> {
    value.extract().map_err(|_| wrong(name, value, "a whole number from 0 to 2**64 - 1"))
}

fn size(name: &str, value: &Bound<'_, PyAny>) -> PyResult<usize> {
    value.extract().map_err(|_| wrong(name, value, "a whole number from 0 on"))
}

fn number(name: &str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    value.extract().map_err(|_| wrong(name, value, "a number"))
}

fn pair<'py, T: FromPyObject<'py>>(name: &str, value: &Bound<'py, PyAny>) -> PyResult<(T, T)> {
    let both = || -> PyResult<(T, T)> { Ok((value.get_item(0)?.extract()?, value.get_item(1)?.extract()?)) };
    match (value.len(), both()) {
        (Ok(2), Ok(values)) => Ok(values),
        _ => Err(wrong(name, value, "a pair of numbers")),
    }
}

fn sizes(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<usize>> {
    let expected = format!("a sequence of at most {MAX_DIMS} whole numbers from 1 on, such as (4, 64, 64)");
    let refuse = |_| wrong(name, value, &expected);
    let dims = value.len().map_err(refuse)?;
    if dims > MAX_DIMS {
        return Err(wrong(name, value, &expected));
    }
    (0..dims).map(|i| value.get_item(i)?.extract()).collect::<PyResult<_>>().map_err(refuse)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<DrawPlan>()?;
    module.add_function(wrap_pyfunction!(negatives, module)?)?;
    module.add_function(wrap_pyfunction!(augment_seed, module)?)
}
