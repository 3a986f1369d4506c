//! A configuration handed over as a dict of plain values: every field must be there, and no other.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use tch::Tensor;

use super::enter::raise;
use super::list::List;
use super::tensor::Given;
use crate::error::{DivaError, Result};

pub struct Fields<'a, 'py> {
    op: &'static str,
    config: &'a Bound<'py, PyDict>,
    known: Vec<&'static str>,
}

impl<'a, 'py> Fields<'a, 'py> {
    /// What `read` makes of the fields, all of which it must ask for. `op` names the class in errors.
    pub fn whole<T>(
        op: &'static str,
        config: &'a Bound<'py, PyDict>,
        read: impl FnOnce(&mut Self) -> PyResult<T>,
    ) -> PyResult<T> {
        let mut fields = Fields { op, config, known: Vec::new() };
        let value = read(&mut fields)?;
        fields.finish()?;
        Ok(value)
    }

    pub fn get<T: FromPyObject<'py>>(&mut self, name: &'static str) -> PyResult<T> {
        self.known.push(name);
        let value = self.config.get_item(name)?;
        let value = value.ok_or_else(|| self.refuse(format!("config has no {name:?}")))?;
        value.extract().map_err(|err| {
            self.refuse(format!("config[{name:?}] is {value}, which is of the wrong type: {err}"))
        })
    }

    pub fn list<T: FromPyObject<'py>>(&mut self, name: &'static str) -> PyResult<Vec<T>> {
        Ok(self.get::<List<T>>(name)?.0)
    }

    /// A name, read by `parse`.
    pub fn parse<T>(&mut self, name: &'static str, parse: impl Fn(&str) -> Result<T>) -> PyResult<T> {
        parse(&self.get::<String>(name)?).map_err(raise)
    }

    /// The same for a field that may be None.
    pub fn maybe<T>(&mut self, name: &'static str, parse: impl Fn(&str) -> Result<T>) -> PyResult<Option<T>> {
        self.get::<Option<String>>(name)?.as_deref().map(parse).transpose().map_err(raise)
    }

    /// Error when the dict holds a field that nobody asked for.
    fn finish(self) -> PyResult<()> {
        for key in self.config.keys() {
            let key: String = key.extract()?;
            if !self.known.contains(&key.as_str()) {
                return Err(
                    self.refuse(format!("config has an unknown field {key:?}; known are {:?}", self.known))
                );
            }
        }
        Ok(())
    }

    fn refuse(&self, what: String) -> PyErr {
        raise(DivaError::config(self.op, what))
    }
}

/// The entries of a dict of tensors.
pub fn tensors(dict: &Bound<'_, PyDict>) -> PyResult<Vec<(String, Tensor)>> {
    dict.iter()
        .map(|(key, tensor)| {
            let key: String = key.extract()?;
            let tensor = tensor.extract::<Given>()?.named(&key)?;
            Ok((key, tensor))
        })
        .collect()
}
