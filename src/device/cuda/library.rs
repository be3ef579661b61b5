//! The CUDA driver's library, loaded when a device is first used: its calls, and what they return.
//!
//! cudarc finds the library and has its types. Its own functions end the process's calm when a symbol is
//! missing, and read what is returned as a closed enumeration; so the calls are made here, by what the
//! driver is asked for by name, and codes are numbers.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::ptr::null;
use std::sync::OnceLock;

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdeviceptr, CUevent, CUmemAccessDesc, CUmemAllocationProp,
    CUmemGenericAllocationHandle, CUstream,
};

use crate::wait::Birth;

/// What a call returns; `CUDA_SUCCESS` is 0.
pub(super) type Code = u32;

pub(super) const OUT_OF_MEMORY: Code = 2;
pub(super) const NOT_READY: Code = 600;

/// Before this version there is no virtual memory management to speak of.
const OLDEST: c_int = 11_020;

macro_rules! calls {
    ($($name:ident = $symbol:ident($($argument:ident: $type:ty),*);)+) => {
        /// The calls that are used.
        pub(super) struct Library {
            $($name: unsafe extern "C" fn($($type),*) -> Code,)+
            birth: Birth,
        }

        impl Library {
            fn find() -> Result<Self, String> {
                // SAFETY: the library is there, as was asked before; it stays loaded.
                #[expect(unsafe_code, reason = "a call of cudarc")]
                let library = unsafe { sys::culib() };
                Ok(Self {
                    $($name: {
                        let name = stringify!($symbol);
                        // SAFETY: NVIDIA's reference gives the function this signature; the code
                        // that it returns is a C enumeration, which is 32 bits wide.
                        #[expect(unsafe_code, reason = "a function of a library")]
                        let found = unsafe {
                            library.get::<unsafe extern "C" fn($($type),*) -> Code>(name.as_bytes())
                        };
                        *found.map_err(|_| format!("its driver has no {name}: it is too old"))?
                    },)+
                    birth: Birth::default(),
                })
            }

            $(
                /// The call of this name.
                ///
                /// # Safety
                /// As NVIDIA's reference has it; pointers are to what it says.
                #[expect(unsafe_code, clippy::too_many_arguments, reason = "a function of a library")]
                #[allow(clippy::allow_attributes, unfulfilled_lint_expectations, reason = "few have many")]
                pub(super) unsafe fn $name(&self, $($argument: $type),*) -> Code {
                    // SAFETY: the caller's.
                    unsafe { (self.$name)($($argument),*) }
                }
            )+
        }
    };
}

calls! {
    init = cuInit(flags: c_uint);
    driver_version = cuDriverGetVersion(version: *mut c_int);
    error_name = cuGetErrorName(code: Code, name: *mut *const c_char);
    error_string = cuGetErrorString(code: Code, text: *mut *const c_char);
    device_count = cuDeviceGetCount(count: *mut c_int);
    device_name = cuDeviceGetName(name: *mut c_char, space: c_int, device: CUdevice);
    total_memory = cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
    context_state = cuDevicePrimaryCtxGetState(
        device: CUdevice, flags: *mut c_uint, active: *mut c_int
    );
    device = cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
    attribute = cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: CUdevice);
    retain = cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    push = cuCtxPushCurrent_v2(context: CUcontext);
    pop = cuCtxPopCurrent_v2(context: *mut CUcontext);
    exchange_capture_mode = cuThreadExchangeStreamCaptureMode(mode: *mut c_uint);
    memory_info = cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    allocate = cuMemAlloc_v2(start: *mut CUdeviceptr, bytes: usize);
    free = cuMemFree_v2(start: CUdeviceptr);
    granularity = cuMemGetAllocationGranularity(
        bytes: *mut usize, properties: *const CUmemAllocationProp, option: c_int
    );
    reserve = cuMemAddressReserve(
        start: *mut CUdeviceptr, bytes: usize, alignment: usize, wanted: CUdeviceptr, flags: c_ulonglong
    );
    free_addresses = cuMemAddressFree(start: CUdeviceptr, bytes: usize);
    create = cuMemCreate(
        handle: *mut CUmemGenericAllocationHandle, bytes: usize,
        properties: *const CUmemAllocationProp, flags: c_ulonglong
    );
    release = cuMemRelease(handle: CUmemGenericAllocationHandle);
    retain_handle = cuMemRetainAllocationHandle(
        handle: *mut CUmemGenericAllocationHandle, address: *mut c_void
    );
    map = cuMemMap(
        start: CUdeviceptr, bytes: usize, offset: usize, handle: CUmemGenericAllocationHandle,
        flags: c_ulonglong
    );
    unmap = cuMemUnmap(start: CUdeviceptr, bytes: usize);
    set_access = cuMemSetAccess(
        start: CUdeviceptr, bytes: usize, access: *const CUmemAccessDesc, count: usize
    );
    host_allocate = cuMemHostAlloc(start: *mut *mut c_void, bytes: usize, flags: c_uint);
    host_free = cuMemFreeHost(start: *mut c_void);
    host_register = cuMemHostRegister_v2(start: *mut c_void, bytes: usize, flags: c_uint);
    host_unregister = cuMemHostUnregister(start: *mut c_void);
    copy_to_device = cuMemcpyHtoDAsync_v2(
        to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream
    );
    stream_create = cuStreamCreate(stream: *mut CUstream, flags: c_uint);
    is_capturing = cuStreamIsCapturing(stream: CUstream, status: *mut c_uint);
    stream_wait = cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint);
    event_create = cuEventCreate(event: *mut CUevent, flags: c_uint);
    event_record = cuEventRecord(event: CUevent, stream: CUstream);
    event_query = cuEventQuery(event: CUevent);
    event_time = cuEventElapsedTime(milliseconds: *mut f32, start: CUevent, end: CUevent);
    event_destroy = cuEventDestroy_v2(event: CUevent);
}

impl Library {
    /// Whether this process has loaded it: a forked child cannot use its parent's.
    pub(super) fn is_here(&self) -> bool {
        self.birth.is_here()
    }

    /// What a code means, in the driver's words.
    pub(super) fn told(&self, code: Code) -> String {
        let (mut name, mut text) = (null(), null());
        // SAFETY: the driver writes where texts of its own are, which end in 0 and stay.
        #[expect(unsafe_code, reason = "functions and texts of a library")]
        let known = unsafe {
            let told = [
                (self.error_name(code, &raw mut name), &raw const name),
                (self.error_string(code, &raw mut text), &raw const text),
            ];
            told.map(|(code, text)| {
                let text: *const c_char = text.read();
                let known = code == 0 && !text.is_null();
                known.then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            })
        };
        match known {
            [Some(name), Some(text)] => format!("{name}, {text}"),
            _ => format!("code {code}"),
        }
    }
}

/// Whether there is a library to load; loads nothing of CUDA's state.
pub(super) fn is_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: looking for a library runs its constructors, which NVIDIA's stand.
    #[expect(unsafe_code, reason = "a call of cudarc")]
    *PRESENT.get_or_init(|| unsafe { sys::is_culib_present() })
}

/// The library, loaded and begun at the first call; or why there is none.
pub(super) fn library() -> Result<&'static Library, String> {
    static LOADED: OnceLock<Library> = OnceLock::new();
    // What fails may be there the next time.
    let library = match LOADED.get() {
        Some(library) => library,
        None => {
            let loaded = load()?;
            LOADED.get_or_init(|| loaded)
        }
    };
    if library.is_here() {
        Ok(library)
    } else {
        Err("CUDA was begun before this process was forked: use a device before or after, not both"
            .to_owned())
    }
}

fn load() -> Result<Library, String> {
    if !is_present() {
        return Err("there is no libcuda".to_owned());
    }
    let library = Library::find()?;
    let mut version = 0;
    // SAFETY: it writes to where it is told.
    #[expect(unsafe_code, reason = "functions of a library")]
    let (code, asked) = unsafe { (library.init(0), library.driver_version(&raw mut version)) };
    if code != 0 {
        return Err(format!("cuInit says {}", library.told(code)));
    }
    if asked != 0 || version < OLDEST {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Err(format!("its driver knows CUDA {major}.{minor}, and 11.2 is needed"));
    }
    Ok(library)
}
