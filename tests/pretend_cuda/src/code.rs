//! The part of `CUresult` that is needed, with the names that `cuGetErrorName` gives.

use std::ffi::c_char;
use std::ptr;

use crate::foreign::Out;

/// A `CUresult`. A number rather than an enum, since tests may inject any.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u32);

/// What a call comes to.
pub type Answer<T = ()> = Result<T, Code>;

impl From<Answer> for Code {
    fn from(answer: Answer) -> Self {
        answer.err().unwrap_or(Self::SUCCESS)
    }
}

macro_rules! codes {
    ($($code:ident = $number:literal, $meaning:literal;)+) => {
        impl Code {
            $(#[doc = concat!("The code for: ", $meaning, ".")] pub const $code: Self = Self($number);)+
        }

        /// The codes with their names and meanings, which end with a zero byte.
        const TOLD: &[(Code, &str, &str)] = &[
            $((
                Code::$code,
                if $number == 0 { "CUDA_SUCCESS\0" } else { concat!("CUDA_ERROR_", stringify!($code), "\0") },
                concat!($meaning, "\0"),
            ),)+
        ];
    };
}

codes! {
    SUCCESS = 0, "no error";
    INVALID_VALUE = 1, "an argument is not what it should be";
    OUT_OF_MEMORY = 2, "not enough memory";
    NOT_INITIALIZED = 3, "cuInit was not called here";
    DEINITIALIZED = 4, "the driver is shutting down";
    DEVICE_UNAVAILABLE = 46, "the device cannot be had";
    NO_DEVICE = 100, "there is no device";
    INVALID_DEVICE = 101, "there is no such device";
    INVALID_CONTEXT = 201, "no context is current, or it is not one";
    MAP_FAILED = 205, "mapping failed";
    UNMAP_FAILED = 206, "unmapping failed";
    ALREADY_MAPPED = 208, "mapped already";
    NOT_MAPPED = 211, "not mapped";
    ECC_UNCORRECTABLE = 214, "memory lost what it held";
    OPERATING_SYSTEM = 304, "the operating system refused";
    INVALID_HANDLE = 400, "the handle is not valid here";
    ILLEGAL_STATE = 401, "not in this state";
    NOT_FOUND = 500, "not found";
    NOT_READY = 600, "not done yet";
    ILLEGAL_ADDRESS = 700, "work touched memory that it may not";
    LAUNCH_OUT_OF_RESOURCES = 701, "not enough resources to launch";
    LAUNCH_TIMEOUT = 702, "work took too long";
    PRIMARY_CONTEXT_ACTIVE = 708, "the primary context is active already";
    CONTEXT_IS_DESTROYED = 709, "the current context is no more";
    HOST_MEMORY_ALREADY_REGISTERED = 712, "this host memory is registered already";
    HOST_MEMORY_NOT_REGISTERED = 713, "this host memory is not registered";
    ILLEGAL_INSTRUCTION = 715, "work had an illegal instruction";
    LAUNCH_FAILED = 719, "work failed";
    NOT_PERMITTED = 800, "not permitted";
    NOT_SUPPORTED = 801, "not supported";
    SYSTEM_NOT_READY = 802, "the system is not ready";
    SYSTEM_DRIVER_MISMATCH = 803, "kernel module and library differ";
    STREAM_CAPTURE_UNSUPPORTED = 900, "not while a stream is captured";
    STREAM_CAPTURE_INVALIDATED = 901, "the capture failed earlier";
    STREAM_CAPTURE_ISOLATION = 905, "this would depend on work outside of the capture";
    STREAM_CAPTURE_IMPLICIT = 906, "the legacy stream would depend on a capture";
    CAPTURED_EVENT = 907, "the event was recorded in a capture";
    TIMEOUT = 909, "it took too long";
    UNKNOWN = 999, "anything else";
}

fn tell(
    code: Code,
    text: Out<*const c_char>,
    chosen: impl Fn(&(Code, &str, &str)) -> *const c_char,
) -> Code {
    let known = TOLD.iter().find(|told| told.0 == code);
    let written = text.set(known.map_or(ptr::null(), chosen));
    if known.is_some() { written.into() } else { Code::INVALID_VALUE }
}

/// The name of a code.
#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(code: Code, text: Out<*const c_char>) -> Code {
    tell(code, text, |told| told.1.as_ptr().cast())
}

/// What a code means.
#[unsafe(no_mangle)]
extern "C" fn cuGetErrorString(code: Code, text: Out<*const c_char>) -> Code {
    tell(code, text, |told| told.2.as_ptr().cast())
}
