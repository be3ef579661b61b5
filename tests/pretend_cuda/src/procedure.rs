//! The functions by name, for those who do not look their symbols up themselves.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr;

use crate::code::Code;
use crate::foreign::{In, Out};

macro_rules! procedures {
    ($($name:ident)+) => {
        mod symbols {
            unsafe extern "C" {
                $(pub fn $name();)+
            }
        }

        fn find(symbol: &str) -> Option<*const c_void> {
            match symbol {
                $(stringify!($name) => Some(symbols::$name as *const c_void),)+
                _ => None,
            }
        }
    };
}

procedures! {
    cuInit cuDriverGetVersion cuGetErrorName cuGetErrorString cuGetProcAddress_v2
    cuDeviceGetCount cuDeviceGet cuDeviceGetName cuDeviceGetUuid cuDeviceGetUuid_v2
    cuDeviceTotalMem_v2 cuDeviceGetAttribute
    cuDevicePrimaryCtxRetain cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxGetState
    cuCtxGetCurrent cuCtxSetCurrent cuCtxPushCurrent_v2 cuCtxPopCurrent_v2 cuCtxGetDevice
    cuCtxSynchronize cuCtxGetStreamPriorityRange
    cuMemAddressReserve cuMemAddressFree cuMemCreate cuMemRelease
    cuMemRetainAllocationHandle cuMemMap cuMemUnmap
    cuMemSetAccess cuMemGetAccess cuMemGetAllocationGranularity
    cuMemGetInfo_v2 cuMemAlloc_v2 cuMemFree_v2 cuPointerGetAttribute
    cuMemHostAlloc cuMemFreeHost cuMemHostRegister_v2 cuMemHostUnregister
    cuMemHostGetDevicePointer_v2
    cuMemcpyHtoD_v2 cuMemcpyDtoH_v2 cuMemcpyHtoDAsync_v2 cuMemcpyDtoHAsync_v2
    cuMemcpyDtoDAsync_v2 cuMemsetD8Async
    cuStreamCreate cuStreamCreateWithPriority cuStreamDestroy_v2 cuStreamQuery
    cuStreamSynchronize cuStreamWaitEvent cuStreamIsCapturing cuStreamGetCtx
    cuThreadExchangeStreamCaptureMode
    cuEventCreate cuEventRecord cuEventQuery cuEventSynchronize cuEventElapsedTime
    cuEventDestroy_v2
    cuLaunchHostFunc
}

/// The function with this name, which callers give without the version at its end. The version of
/// CUDA asked for makes no difference.
#[unsafe(no_mangle)]
extern "C" fn cuGetProcAddress_v2(
    symbol: In<c_char>,
    function: Out<*const c_void>,
    _version: c_int,
    _flags: u64,
    status: Out<c_uint>,
) -> Code {
    let look = || {
        let symbol = symbol.text()?;
        let found = find(&format!("{symbol}_v2")).or_else(|| find(&symbol));
        if !status.is_null() {
            status.set(found.is_none().into())?;
        }
        function.set(found.unwrap_or(ptr::null()))
    };
    look().into()
}
