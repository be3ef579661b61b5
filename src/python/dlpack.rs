//! Tensors across the border, as DLPack: the one file that knows `dlpark`.

use dlpark::ffi::{
    DLDataType, DLDataTypeCode, DLDevice, DLManagedTensor, DLManagedTensorVersioned,
};
use dlpark::metadata::Dynamic;
use dlpark::python::{ExportAbi, ExportRequest};
use dlpark::{DlpackFlags, Managed, ManagedTensorBase, OpaqueContext};
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;
use safetensors::Dtype;

use super::error::{Error, Result};
use crate::weights::{ElementType, Tensor};

/// The device of host memory, as `__dlpack_device__` has it.
pub(super) const HOST: (u32, i32) = (1, 0);

/// Memory for a copy, aligned for any element and for wide loads.
struct Aligned {
    memory: Vec<u128>,
}

impl Aligned {
    fn copy_of(data: &[u8]) -> Self {
        let mut memory = vec![0_u128; data.len().div_ceil(size_of::<u128>())];
        for (to, from) in memory.iter_mut().zip(data.chunks(size_of::<u128>())) {
            let mut bytes = [0; size_of::<u128>()];
            bytes[..from.len()].copy_from_slice(from);
            *to = u128::from_ne_bytes(bytes);
        }
        Self { memory }
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
    if let Some(device) = request.device().filter(|device| *device != DLDevice::CPU) {
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
            to_python(py, managed::<DLManagedTensor>(tensor, copy, DlpackFlags::empty())?)
        }
        ExportAbi::Versioned => {
            let flags = if copy { DlpackFlags::IS_COPIED } else { DlpackFlags::READ_ONLY };
            to_python(py, managed::<DLManagedTensorVersioned>(tensor, copy, flags)?)
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
    tensor: &Tensor,
    copy: bool,
    flags: DlpackFlags,
) -> Result<Managed<M>> {
    if copy {
        let copied = Box::new(Aligned::copy_of(tensor.data()));
        let data = copied.memory.as_ptr().cast();
        finish(tensor, copied, data, flags)
    } else {
        finish(tensor, Box::new(tensor.clone()), tensor.data().as_ptr(), flags)
    }
}

/// `data` points into what `keeper` keeps alive.
fn finish<M: ManagedTensorBase>(
    tensor: &Tensor,
    keeper: impl OpaqueContext,
    data: *const u8,
    flags: DlpackFlags,
) -> Result<Managed<M>> {
    let dtype = dtype_of(tensor.element_type())?;
    let mut shape: Vec<i64> = Vec::with_capacity(tensor.shape().len());
    for &size in tensor.shape() {
        shape.push(i64::try_from(size).map_err(|error| refused(&error))?);
    }
    if let Some(last) = shape.last_mut() {
        // torch counts the pairs of four-bit numbers, safetensors the numbers.
        *last /= i64::from(dtype.lanes);
    }
    let prepared = Dynamic::compact(shape).initialize_as::<M>(keeper);
    let mut initialized = prepared.map_err(|error| refused(&error))?;
    initialized.set_data(data.cast_mut().cast()).set_device(DLDevice::CPU).set_dtype(dtype);
    // SAFETY: data, shape, strides and dtype describe the tensor's bytes, which the file's header was
    // checked to cover, or a copy of them; the context keeps either where it is. Only a copy is
    // flagged as one, and what is flagged as read-only lies in pages that cannot be written.
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

fn dtype_of(element: ElementType) -> Result<DLDataType> {
    Ok(match element.dtype() {
        Dtype::BOOL => DLDataType::BOOL,
        // One byte of torch's float4_e2m1fn_x2 is a pair.
        Dtype::F4 => DLDataType { code: DLDataTypeCode::FLOAT4_E2M1FN, bits: 4, lanes: 2 },
        Dtype::F6_E2M3 => DLDataType::F6E2M3FN,
        Dtype::F6_E3M2 => DLDataType::F6E3M2FN,
        Dtype::U8 => DLDataType::U8,
        Dtype::I8 => DLDataType::I8,
        Dtype::F8_E5M2 => DLDataType::F8E5M2,
        Dtype::F8_E4M3 => DLDataType::F8E4M3FN,
        Dtype::F8_E8M0 => DLDataType::F8E8M0FNU,
        Dtype::F8_E4M3FNUZ => DLDataType::F8E4M3FNUZ,
        Dtype::F8_E5M2FNUZ => DLDataType::F8E5M2FNUZ,
        Dtype::I16 => DLDataType::I16,
        Dtype::U16 => DLDataType::U16,
        Dtype::F16 => DLDataType::F16,
        Dtype::BF16 => DLDataType::BF16,
        Dtype::I32 => DLDataType::I32,
        Dtype::U32 => DLDataType::U32,
        Dtype::F32 => DLDataType::F32,
        Dtype::C64 => DLDataType::C64,
        Dtype::F64 => DLDataType::F64,
        Dtype::I64 => DLDataType::I64,
        Dtype::U64 => DLDataType::U64,
        // safetensors may learn new ones.
        other => return Err(refused(&format!("DLPack has no {other:?}"))),
    })
}
