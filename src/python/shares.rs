//! Splitting a whole number unevenly.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMapping, PyString};

use super::argument;
use super::error::{Error, Result, invalid_type};
use crate::worker;

/// Splits `total` in proportion to `speeds` into whole numbers that add up to `total`.
#[pyfunction]
pub(super) fn shares<'py>(
    total: &Bound<'py, PyAny>,
    speeds: &Bound<'py, PyAny>,
) -> Result<Bound<'py, PyAny>> {
    let py = total.py();
    let total = argument::whole_number("total", total)?;
    let refused = || {
        let given = argument::type_name(speeds);
        invalid_type(&format!("speeds is a list of numbers, or a mapping to numbers, not {given}"))
    };
    if speeds.is_instance_of::<PyString>() {
        return Err(refused());
    }
    if let Ok(mapping) = speeds.cast::<PyMapping>() {
        let keys = mapping.keys()?;
        let values = mapping.values()?;
        let speeds = values.extract::<Vec<f64>>().map_err(|_| refused())?;
        let split = PyDict::new(py);
        for (key, share) in keys.iter().zip(worker::shares(total, &speeds)?) {
            split.set_item(key, share)?;
        }
        return Ok(split.into_any());
    }
    let items = speeds.try_iter().map_err(|_| refused())?;
    let speeds: PyResult<Vec<f64>> = items.map(|speed| speed?.extract::<f64>()).collect();
    let split = worker::shares(total, &speeds.map_err(|_| refused())?)?;
    split.into_pyobject(py).map_err(Error::from)
}
