//! Tensors of ours for other libraries.

use dlpark::ffi::{DLDevice, DLDeviceType, DLManagedTensor, DLManagedTensorVersioned};
use dlpark::metadata::Dynamic;
use dlpark::python::{ExportAbi, ExportRequest};
use dlpark::{DlpackFlags, Managed, ManagedTensorBase, OpaqueContext};
use pyo3::exceptions::{PyBufferError, PyMemoryError};
use pyo3::prelude::*;

use super::{HOST, PINNED, dtype_of};
use crate::arena::RangeView;
use crate::device::{ByteSize, DeviceType};
use crate::python::error::{Error, Result};
use crate::python::exit::detached;
use crate::weights::{ElementType, Tensor};

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

/// A tensor of ours.
pub(in crate::python) trait Exportable: Clone {
    /// The type of its elements.
    fn element_type(&self) -> ElementType;

    /// It in the newest protocol, where it lies if that can be: for a consumer that asks for nothing.
    fn shared(&self, py: Python<'_>) -> Result<Managed<DLManagedTensorVersioned>>;
}

impl Exportable for Tensor {
    fn element_type(&self) -> ElementType {
        Self::element_type(self)
    }

    fn shared(&self, py: Python<'_>) -> Result<Managed<DLManagedTensorVersioned>> {
        let copy = !self.is_aligned();
        managed(py, self, copy, flags_of(self, copy))
    }
}

impl Exportable for RangeView {
    fn element_type(&self) -> ElementType {
        Self::element_type(self)
    }

    fn shared(&self, _py: Python<'_>) -> Result<Managed<DLManagedTensorVersioned>> {
        on_device(self, Box::new(self.clone()), DlpackFlags::READ_ONLY)
    }
}

/// Exports a tensor on a device where it lies there, read-only. `keeper` is what keeps it.
pub(in crate::python) fn export_placed(
    py: Python<'_>,
    view: &RangeView,
    keeper: impl OpaqueContext,
    request: &ExportRequest<'_>,
) -> Result<Py<PyAny>> {
    if request.copy() == Some(true) {
        let message = "this tensor is exported where it is: take it, and copy it then";
        return Err(PyBufferError::new_err(message).into());
    }
    let here = device_of_placed(view);
    if let Some(DLDevice { device_type, device_id }) =
        request.device().filter(|device| *device != here)
    {
        let message = format!(
            "this tensor is on {}, ({}, {}) in DLPack, not on ({}, {device_id})",
            view.device(),
            here.device_type.0,
            here.device_id,
            device_type.0
        );
        return Err(PyBufferError::new_err(message).into());
    }
    match request.abi() {
        ExportAbi::Legacy => {
            to_python(py, on_device::<DLManagedTensor>(view, keeper, DlpackFlags::empty())?)
        }
        ExportAbi::Versioned => to_python(
            py,
            on_device::<DLManagedTensorVersioned>(view, keeper, DlpackFlags::READ_ONLY)?,
        ),
    }
}

/// Where a tensor of an arena is: a virtual device's memory is the host's.
pub(super) fn device_of_placed(view: &RangeView) -> DLDevice {
    match view.device().kind() {
        DeviceType::Cuda => DLDevice {
            device_type: DLDeviceType::CUDA,
            device_id: view.device().index().cast_signed(),
        },
        _ => HOST,
    }
}

fn on_device<M: ManagedTensorBase>(
    view: &RangeView,
    keeper: impl OpaqueContext,
    flags: DlpackFlags,
) -> Result<Managed<M>> {
    let described =
        Described { element: view.element_type(), shape: view.shape(), nbytes: view.nbytes() };
    let data = std::ptr::with_exposed_provenance(view.address());
    finish(&described, None, device_of_placed(view), keeper, data, flags)
}

/// What a tensor's elements are.
struct Described<'a> {
    element: ElementType,
    shape: &'a [usize],
    nbytes: usize,
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
    let described = Described {
        element: tensor.element_type(),
        shape: tensor.shape(),
        nbytes: tensor.nbytes(),
    };
    if copy {
        // A large copy takes a while.
        let copied = detached(py, || Aligned::copy_of(tensor)).ok_or_else(|| {
            let bytes = ByteSize(tensor.nbytes() as u64);
            PyMemoryError::new_err(format!("there is no memory for a copy of {bytes}"))
        })?;
        let copied = Box::new(copied);
        let data = copied.memory.as_ptr().cast();
        finish(&described, None, HOST, copied, data, flags)
    } else {
        let device = if tensor.is_pinned() { PINNED } else { HOST };
        let keeper = Box::new(tensor.clone());
        finish(&described, tensor.strides(), device, keeper, tensor.start(), flags)
    }
}

/// `data` points into what `keeper` keeps alive.
fn finish<M: ManagedTensorBase>(
    tensor: &Described<'_>,
    strides: Option<&[i64]>,
    device: DLDevice,
    keeper: impl OpaqueContext,
    data: *const u8,
    flags: DlpackFlags,
) -> Result<Managed<M>> {
    let dtype = dtype_of(tensor.element);
    let mut shape: Vec<i64> = Vec::with_capacity(tensor.shape.len());
    for &size in tensor.shape {
        shape.push(i64::try_from(size).map_err(|error| refused(&error))?);
    }
    if let Some(last) = shape.last_mut() {
        // torch counts the pairs of four-bit numbers, safetensors the numbers.
        if *last % i64::from(dtype.lanes) != 0 && tensor.nbytes > 0 {
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
