//! Tensors across the border, as DLPack: the one file that knows `dlpark`.

use std::borrow::Cow;
use std::mem::ManuallyDrop;

use dlpark::ffi::{
    DLDataType, DLDataTypeCode, DLDevice, DLDeviceType, DLManagedTensor, DLManagedTensorVersioned,
};
use dlpark::metadata::Dynamic;
use dlpark::python::{ExportAbi, ExportRequest, ImportRequest, ImportedDlpack};
use dlpark::{DlpackFlags, Managed, ManagedTensorBase, OpaqueContext};
use pyo3::exceptions::{PyBufferError, PyMemoryError, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::error::{Error, Result};
use super::exit::{Inside, detached};
use crate::device::ByteSize;
use crate::weights::{ElementType, Given, Memory, Tensor, WeightsError};

/// The device of host memory, as `__dlpack_device__` has it.
const HOST: DLDevice = DLDevice::CPU;
/// Host memory that is locked for a GPU's copies.
const PINNED: DLDevice = DLDevice { device_type: DLDeviceType::CUDAHOST, device_id: 0 };

/// Where a tensor is, as `__dlpack_device__` has it.
pub(super) fn device_of(tensor: &Tensor) -> (u32, i32) {
    let DLDevice { device_type, device_id } = if tensor.is_pinned() { PINNED } else { HOST };
    (device_type.0, device_id)
}

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
pub(super) fn export(
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
            let flags = if copy { DlpackFlags::IS_COPIED } else { DlpackFlags::READ_ONLY };
            to_python(py, managed::<DLManagedTensorVersioned>(py, tensor, copy, flags)?)
        }
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
        if *last % i64::from(dtype.lanes) != 0 {
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

/// The types that DLPack and we know.
const TYPES: [(ElementType, DLDataType); 24] = [
    (ElementType::Bool, DLDataType::BOOL),
    (ElementType::UInt8, DLDataType::U8),
    (ElementType::Int8, DLDataType::I8),
    (ElementType::UInt16, DLDataType::U16),
    (ElementType::Int16, DLDataType::I16),
    (ElementType::UInt32, DLDataType::U32),
    (ElementType::Int32, DLDataType::I32),
    (ElementType::UInt64, DLDataType::U64),
    (ElementType::Int64, DLDataType::I64),
    (ElementType::Float16, DLDataType::F16),
    (ElementType::BFloat16, DLDataType::BF16),
    (ElementType::Float32, DLDataType::F32),
    (ElementType::Float64, DLDataType::F64),
    (ElementType::Complex32, DLDataType::scalar(DLDataTypeCode::COMPLEX, 32)),
    (ElementType::Complex64, DLDataType::scalar(DLDataTypeCode::COMPLEX, 64)),
    (ElementType::Complex128, DLDataType::scalar(DLDataTypeCode::COMPLEX, 128)),
    (ElementType::Float8E4M3Fn, DLDataType::F8E4M3FN),
    (ElementType::Float8E4M3Fnuz, DLDataType::F8E4M3FNUZ),
    (ElementType::Float8E5M2, DLDataType::F8E5M2),
    (ElementType::Float8E5M2Fnuz, DLDataType::F8E5M2FNUZ),
    (ElementType::Float8E8M0Fnu, DLDataType::F8E8M0FNU),
    (ElementType::Float6E2M3Fn, DLDataType::F6E2M3FN),
    (ElementType::Float6E3M2Fn, DLDataType::F6E3M2FN),
    // One byte of torch's float4_e2m1fn_x2 is a pair.
    (ElementType::Float4E2M1Fn, DLDataType::new(DLDataTypeCode::FLOAT4_E2M1FN, 4, 2)),
];

fn dtype_of(element: ElementType) -> DLDataType {
    let known = TYPES.iter().find(|(known, _)| *known == element);
    known.map_or(DLDataType::U8, |(_, dtype)| *dtype)
}

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
pub(super) fn import(name: &str, object: &Bound<'_, PyAny>) -> Result<Given> {
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
