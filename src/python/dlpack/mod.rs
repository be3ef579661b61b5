//! Tensors across the border, as DLPack: the one room that knows `dlpark`.

mod exchange;
mod export;
mod import;

use dlpark::ffi::{DLDataType, DLDataTypeCode, DLDevice, DLDeviceType};

pub(super) use exchange::exchange;
pub(super) use export::{Exportable, export, export_placed};
pub(super) use import::import;

use crate::arena::RangeView;
use crate::weights::{ElementType, Tensor};

/// The device of host memory, as `__dlpack_device__` has it.
const HOST: DLDevice = DLDevice::CPU;
/// Host memory that is locked for a GPU's copies.
const PINNED: DLDevice = DLDevice { device_type: DLDeviceType::CUDAHOST, device_id: 0 };

/// Where a tensor is, as `__dlpack_device__` has it.
pub(super) fn device_of(tensor: &Tensor) -> (u32, i32) {
    let DLDevice { device_type, device_id } = if tensor.is_pinned() { PINNED } else { HOST };
    (device_type.0, device_id)
}

/// The same of a tensor in an arena.
pub(super) fn device_of_range(view: &RangeView) -> (u32, i32) {
    let DLDevice { device_type, device_id } = export::device_of_placed(view);
    (device_type.0, device_id)
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
