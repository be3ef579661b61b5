//! Many tensors at once, through the consumer's table of C functions where it has one: no capsule, no
//! method call and no Python frame for each.

use std::collections::HashSet;

use dlpark::python::consumer::exchange::ExchangeApi;
use pyo3::exceptions::{PyBufferError, PyException};
use pyo3::prelude::*;

use super::export::Exportable;
use crate::python::error::{Error, Result};
use crate::python::exit::{Inside, detached};

/// So many take about 0.1 ms.
const TURN: usize = 256;

/// The tensors of the library whose `from_dlpack` this is, in the same order. `wrap` makes the object
/// that has the methods of the protocol.
pub(in crate::python) fn exchange<'py, T: Exportable>(
    from_dlpack: &Bound<'py, PyAny>,
    names: &[&str],
    tensors: &[T],
    wrap: impl Fn(T) -> Result<Bound<'py, PyAny>>,
) -> Result<Vec<Bound<'py, PyAny>>> {
    let py = from_dlpack.py();
    let _inside = Inside::enter(py);
    let mut made: Vec<Bound<'py, PyAny>> = Vec::with_capacity(tensors.len());
    let mut table = None;
    // The table's function keeps what it cannot take: the first tensor of each type goes by capsule.
    let mut known = HashSet::new();
    for (number, (tensor, name)) in tensors.iter().zip(names).enumerate() {
        if number % TURN == TURN - 1 {
            // Others may have the interpreter meanwhile.
            detached(py, || ());
        }
        let element = tensor.element_type();
        let taken = match &table {
            Some(table) if known.contains(&element) => tensor.shared(py).and_then(|managed| {
                Ok(ExchangeApi::managed_tensor_to_py_object_no_sync(table, managed, py)?)
            }),
            _ => wrap(tensor.clone()).and_then(|wrapped| Ok(from_dlpack.call1((wrapped,))?)),
        };
        let next = taken.map_err(|error| named(py, name, error))?;
        if made.is_empty() {
            // The table belongs to the type of the library's tensors.
            table = ExchangeApi::from_object(next.as_borrowed())?;
        }
        known.insert(element);
        made.push(next);
    }
    Ok(made)
}

/// The error with the tensor's name, and without where in its own code the library is.
fn named(py: Python<'_>, name: &str, error: Error) -> Error {
    let error = PyErr::from(error);
    if !error.is_instance_of::<PyException>(py)
        || error.is_instance_of::<pyo3::exceptions::PyMemoryError>(py)
    {
        return error.into();
    }
    let told = error.value(py).to_string();
    let told = told.lines().next().unwrap_or_default();
    let named = PyBufferError::new_err(format!("{name:?} cannot be exported: {told}"));
    named.set_cause(py, Some(error));
    named.into()
}
