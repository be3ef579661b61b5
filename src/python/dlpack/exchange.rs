//! Many tensors at once, through the consumer's table of C functions where it has one: no capsule, no
//! method call and no Python frame for each.

use dlpark::python::consumer::exchange::ExchangeApi;
use pyo3::prelude::*;

use super::export::shared;
use crate::python::error::Result;
use crate::python::exit::{Inside, detached};
use crate::weights::Tensor;

/// So many take about 0.1 ms.
const TURN: usize = 256;

/// The tensors of the library whose `from_dlpack` this is, in the same order. `wrap` makes the object
/// that has the methods of the protocol.
pub(in crate::python) fn exchange<'py>(
    from_dlpack: &Bound<'py, PyAny>,
    tensors: &[Tensor],
    wrap: impl Fn(Tensor) -> Result<Bound<'py, PyAny>>,
) -> Result<Vec<Bound<'py, PyAny>>> {
    let py = from_dlpack.py();
    let _inside = Inside::enter(py);
    let mut made: Vec<Bound<'py, PyAny>> = Vec::with_capacity(tensors.len());
    let mut table = None;
    for (number, tensor) in tensors.iter().enumerate() {
        if number % TURN == TURN - 1 {
            // Others may have the interpreter meanwhile.
            detached(py, || ());
        }
        let next = match &table {
            Some(table) => {
                ExchangeApi::managed_tensor_to_py_object_no_sync(table, shared(py, tensor)?, py)?
            }
            None => from_dlpack.call1((wrap(tensor.clone())?,))?,
        };
        if made.is_empty() {
            // The table belongs to the type of the library's tensors.
            table = ExchangeApi::from_object(next.as_borrowed())?;
        }
        made.push(next);
    }
    Ok(made)
}
