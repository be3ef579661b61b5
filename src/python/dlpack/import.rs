//! Tensors of other libraries as ones to share.

use std::borrow::Cow;
use std::mem::ManuallyDrop;

use dlpark::ffi::DLDataType;
use dlpark::python::{ImportRequest, ImportedDlpack};
use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::{HOST, PINNED, TYPES};
use crate::python::error::{Error, Result};
use crate::python::exit::Inside;
use crate::weights::{Given, Memory, WeightsError};

/// A tensor of another library, whose memory it keeps. Let go of where Python runs, because that is
/// what its owner may need.
struct Foreign(ManuallyDrop<ImportedDlpack>);

// SAFETY: DLPack says that a managed tensor may be used and deleted from any thread; we only hold
// it, and delete it attached to the interpreter.
#[expect(unsafe_code, reason = "DLPack's rule, which the type does not say")]
unsafe impl Send for Foreign {}
// SAFETY: as above; nothing is done with it through a shared reference.
#[expect(unsafe_code, reason = "DLPack's rule, which the type does not say")]
unsafe impl Sync for Foreign {}

impl Drop for Foreign {
    fn drop(&mut self) {
        // Once the interpreter exits its memory goes with the process.
        let Some(_inside) = Inside::try_enter() else { return };
        // SAFETY: dropped once, here.
        #[expect(unsafe_code, reason = "dropped where we say")]
        Python::attach(|_| unsafe { ManuallyDrop::drop(&mut self.0) });
    }
}

/// A tensor of another library as one to share.
pub(in crate::python) fn import(name: &str, object: &Bound<'_, PyAny>) -> Result<Given> {
    let unshareable =
        |why: String| Error::from(WeightsError::Unshareable { name: name.to_owned(), why });
    let failed = |error: PyErr| {
        // Some libraries add where in their own code that was.
        let told = error.value(object.py()).to_string();
        unshareable(told.lines().next().unwrap_or_default().to_owned())
    };
    let pinned = match device(object).map_err(failed)? {
        (1, _) => false,
        (3, _) => true,
        (kind, number) => {
            return Err(unshareable(format!(
                "it is on the device ({kind}, {number}) in DLPack, and weights are in host memory: \
                 move it there first"
            )));
        }
    };
    let capsule = capsule(object).map_err(failed)?;
    let request = ImportRequest::new(capsule.as_borrowed()).map_err(failed)?;
    let imported = request.import(None, None).map_err(failed)?;
    let tensor = imported.validate().map_err(|error| unshareable(error.to_string()))?;
    let said = if pinned { PINNED.device_type } else { HOST.device_type };
    if tensor.device().device_type != said {
        return Err(unshareable("it is on another device than its library says".to_owned()));
    }
    let dtype = tensor.dtype();
    let known = TYPES.iter().find(|(_, known)| known.matches(dtype));
    let &(element, _) = known.ok_or_else(|| {
        let DLDataType { code, bits, lanes } = dtype;
        unshareable(format!("its type, ({}, {bits}, {lanes}) in DLPack, is not known", code.0))
    })?;
    let mut shape = Vec::with_capacity(tensor.ndim());
    for &size in tensor.shape() {
        shape.push(usize::try_from(size).map_err(|error| unshareable(error.to_string()))?);
    }
    let strides = match tensor.is_compact() {
        Ok(true) => None,
        Ok(false) => tensor.strides_or_compact().ok().map(Cow::into_owned),
        Err(error) => return Err(unshareable(error.to_string())),
    };
    let bits = usize::from(dtype.bits) * usize::from(dtype.lanes);
    if !bits.is_multiple_of(8) {
        return Err(unshareable(format!("its elements of {bits} bits are no whole bytes")));
    }
    let size = bits / 8;
    let (before, length) = span(size, &shape, strides.as_deref())
        .ok_or_else(|| unshareable("it does not lie in memory as its shape says".to_owned()))?;
    if let Some(last) = shape.last_mut() {
        // torch counts the pairs of four-bit numbers, we the numbers.
        *last *= usize::from(dtype.lanes);
    }
    if length > 0 && tensor.data_ptr().is_null() {
        return Err(unshareable("it has elements, but no memory".to_owned()));
    }
    let start = tensor.data_ptr().cast::<u8>();
    let offset = usize::try_from(tensor.byte_offset()).ok().filter(|offset| {
        // The last byte has an address too.
        start.addr().checked_add(*offset).is_some_and(|at| at.checked_add(length).is_some())
    });
    let offset = offset.ok_or_else(|| unshareable("it lies beyond all memory".to_owned()))?;
    let first = start.wrapping_add(offset).wrapping_sub(before);
    let owner = Box::new(Foreign(ManuallyDrop::new(imported)));
    let memory = Memory::foreign(first, length, pinned, owner);
    Ok(Given { name: name.to_owned(), element, shape, strides, memory, offset: before })
}

fn device(object: &Bound<'_, PyAny>) -> PyResult<(u32, i64)> {
    let _inside = Inside::enter(object.py());
    object.call_method0(intern!(object.py(), "__dlpack_device__"))?.extract()
}

/// What `__dlpack__` gives, in the newest protocol that the producer has. Not through the table of C
/// functions, in which torch exports lazily conjugated tensors as if they were not.
fn capsule<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = object.py();
    let _inside = Inside::enter(py);
    let options = PyDict::new(py);
    options.set_item(intern!(py, "max_version"), (1_u32, 3_u32))?;
    match object.call_method(intern!(py, "__dlpack__"), (), Some(&options)) {
        Err(error) if error.is_instance_of::<PyTypeError>(py) => {
            object.call_method0(intern!(py, "__dlpack__"))
        }
        outcome => outcome,
    }
}

/// How many bytes lie before the first of elements of so many bytes, and how many all of them span;
/// `None` for what cannot be.
fn span(size: usize, shape: &[usize], strides: Option<&[i64]>) -> Option<(usize, usize)> {
    let count = shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size))?;
    let Some(strides) = strides.filter(|_| count > 0) else {
        return Some((0, count.checked_mul(size)?));
    };
    let (mut least, mut most) = (0_i64, 0_i64);
    for (&size, &stride) in shape.iter().zip(strides) {
        let reach = i64::try_from(size).ok()?.checked_sub(1)?.checked_mul(stride)?;
        least = least.checked_add(reach.min(0))?;
        most = most.checked_add(reach.max(0))?;
    }
    let before = usize::try_from(least.checked_neg()?).ok()?.checked_mul(size)?;
    let behind = usize::try_from(most).ok()?.checked_add(1)?.checked_mul(size)?;
    Some((before, before.checked_add(behind)?))
}
