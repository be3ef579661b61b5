//! Tensors of ours for other libraries.

use dlpark::ffi::{DLDevice, DLManagedTensor, DLManagedTensorVersioned};
use dlpark::metadata::Dynamic;
use dlpark::python::{ExportAbi, ExportRequest};
use dlpark::{DlpackFlags, Managed, ManagedTensorBase, OpaqueContext};
use pyo3::exceptions::{PyBufferError, PyMemoryError};
use pyo3::prelude::*;

use super::{HOST, PINNED, dtype_of};
use crate::device::ByteSize;
use crate::python::error::{Error, Result};
use crate::python::exit::detached;
use crate::weights::Tensor;

/// Memory for a copy, aligned for any element and for wide loads.
struct Aligned {
    memory: Vec<u128>,
}

impl Aligned {
    /// A row-major copy of a tensor's elements; `None` if there is no memory for it.
    fn copy_of(tensor: &Tensor) -> Option<Self> {
        let length = tensor.nbytes().div_ceil(size_of::<u128>());
        let mut memory = Vec::new();
        memory.try_reserve_exact(length).ok()?;
        memory.resize(length, 0_u128);
        // SAFETY: what was just made has at least as many bytes as the tensor's elements, and any
        // bytes are numbers.
        #[expect(unsafe_code, reason = "numbers are made of bytes")]
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast::<u8>(), tensor.nbytes())
        };
        tensor.copy_to(bytes);
        Some(Self { memory })
    }
}

/// Exports a tensor for what its consumer asks for: the file's own memory, read-only, or a copy.
///
/// A tensor that does not lie as its elements must is always copied, if the consumer allows it.
pub(in crate::python) fn export(
    py: Python<'_>,
    tensor: &Tensor,
    request: &ExportRequest<'_>,
) -> Result<Py<PyAny>> {
    let copy = match (request.copy(), tensor.is_aligned()) {
        (Some(copy), true) => copy,
        (Some(false), false) => {
            let message = "this tensor is not aligned in its file: it can only be copied";
            return Err(PyBufferError::new_err(message).into());
        }
        (_, aligned) => !aligned,
    };
    let is_here =
        |device: &DLDevice| *device == HOST || (*device == PINNED && tensor.is_pinned() && !copy);
    if let Some(device) = request.device().filter(|device| !is_here(device)) {
        let DLDevice { device_type, device_id } = device;
        let message = format!(
            "weights are in host memory, (1, 0) in DLPack, not on ({}, {device_id}): take the \
             tensor first, and move it then",
            device_type.0
        );
        return Err(PyBufferError::new_err(message).into());
    }
    match request.abi() {
        // It cannot say that it is read-only; numpy takes every such tensor to be.
        ExportAbi::Legacy => {
            to_python(py, managed::<DLManagedTensor>(py, tensor, copy, DlpackFlags::empty())?)
        }
        ExportAbi::Versioned => {
            let flags = flags_of(tensor, copy);
            to_python(py, managed::<DLManagedTensorVersioned>(py, tensor, copy, flags)?)
        }
    }
}

/// A tensor in the newest protocol, where it lies if that can be: for a consumer that asks for nothing.
pub(super) fn shared(py: Python<'_>, tensor: &Tensor) -> Result<Managed<DLManagedTensorVersioned>> {
    let copy = !tensor.is_aligned();
    managed(py, tensor, copy, flags_of(tensor, copy))
}

fn flags_of(tensor: &Tensor, copy: bool) -> DlpackFlags {
    match (copy, tensor.is_writable()) {
        (true, _) => DlpackFlags::IS_COPIED,
        (false, true) => DlpackFlags::empty(),
        (false, false) => DlpackFlags::READ_ONLY,
    }
}

fn to_python<'py, T>(py: Python<'py>, managed: T) -> Result<Py<PyAny>>
where
    T: IntoPyObject<'py, Output = Bound<'py, PyAny>, Error = PyErr>,
{
    managed.into_pyobject(py).map(Bound::unbind).map_err(Error::from)
}

fn managed<M: ManagedTensorBase>(
    py: Python<'_>,
    tensor: &Tensor,
    copy: bool,
    flags: DlpackFlags,
) -> Result<Managed<M>> {
    if copy {
        // A large copy takes a while.
        let copied = detached(py, || Aligned::copy_of(tensor)).ok_or_else(|| {
            let bytes = ByteSize(tensor.nbytes() as u64);
            PyMemoryError::new_err(format!("there is no memory for a copy of {bytes}"))
        })?;
        let copied = Box::new(copied);
        let data = copied.memory.as_ptr().cast();
        finish(tensor, None, HOST, copied, data, flags)
    } else {
        let device = if tensor.is_pinned() { PINNED } else { HOST };
        finish(tensor, tensor.strides(), device, Box::new(tensor.clone()), tensor.start(), flags)
    }
}

/// `data` points into what `keeper` keeps alive.
fn finish<M: ManagedTensorBase>(
    tensor: &Tensor,
    strides: Option<&[i64]>,
    device: DLDevice,
    keeper: impl OpaqueContext,
    data: *const u8,
    flags: DlpackFlags,
) -> Result<Managed<M>> {
    let dtype = dtype_of(tensor.element_type());
    let mut shape: Vec<i64> = Vec::with_capacity(tensor.shape().len());
    for &size in tensor.shape() {
        shape.push(i64::try_from(size).map_err(|error| refused(&error))?);
    }
    if let Some(last) = shape.last_mut() {
        // torch counts the pairs of four-bit numbers, safetensors the numbers.
        if *last % i64::from(dtype.lanes) != 0 && tensor.nbytes() > 0 {
            return Err(refused(&"its rows are no whole bytes"));
        }
        *last /= i64::from(dtype.lanes);
    }
    let prepared = match strides {
        None => Dynamic::compact(shape).initialize_as::<M>(keeper),
        Some(strides) => Dynamic::new(shape, strides.to_vec()).initialize_as::<M>(keeper),
    };
    let mut initialized = prepared.map_err(|error| refused(&error))?;
    initialized.set_data(data.cast_mut().cast()).set_device(device).set_dtype(dtype);
    // SAFETY: data, shape, strides and dtype describe the tensor's elements, which lie in memory that
    // it keeps, or a copy of them; the context keeps either where it is. Only a copy is flagged as one,
    // and what is flagged as read-only is not to be written by anybody.
    #[expect(unsafe_code, reason = "a raw pointer becomes a tensor")]
    Ok(unsafe {
        if !flags.is_empty() {
            initialized.set_flags_unchecked(flags);
        }
        initialized.finish()
    })
}

fn refused(why: &dyn std::fmt::Display) -> Error {
    PyBufferError::new_err(format!("this tensor cannot be exported: {why}")).into()
}
