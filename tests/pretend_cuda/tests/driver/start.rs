//! Before `cuInit`, by it, and without it.

use std::ffi::{CStr, c_int};
use std::ptr;

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};
use rustix::process::{Pid, WaitOptions};

use crate::steer::{count, fail};
use crate::{ONE, TWO, bind, end_of, fails, ok, on, stream};

#[test]
fn nothing_works_before_init_but_the_version_and_the_names_of_errors() {
    on(ONE, || unsafe {
        let mut number: c_int = 0;
        let mut context = ptr::null_mut();
        fails(sys::cuDeviceGetCount(&raw mut number), 3);
        fails(sys::cuDevicePrimaryCtxRetain(&raw mut context, 0), 3);
        fails(sys::cuCtxSynchronize(), 3);
        assert_eq!(count("cuCtxSynchronize", -1), 0);
        assert_eq!(count("streams", -1), 0);
        ok(sys::cuDriverGetVersion(&raw mut number));
        assert_eq!(number, 12080);
        let mut text = ptr::null();
        ok(sys::cuGetErrorName(CUresult::CUDA_ERROR_OUT_OF_MEMORY, &raw mut text));
        assert_eq!(CStr::from_ptr(text), c"CUDA_ERROR_OUT_OF_MEMORY");
        ok(sys::cuGetErrorString(CUresult::CUDA_ERROR_OUT_OF_MEMORY, &raw mut text));
        assert_eq!(CStr::from_ptr(text), c"not enough memory");
        fails(sys::cuGetErrorName(CUresult::CUDA_ERROR_TENSOR_MEMORY_LEAK, &raw mut text), 1);
        assert!(text.is_null());
        fails(sys::cuInit(1), 1);
        ok(sys::cuInit(0));
        ok(sys::cuDeviceGetCount(&raw mut number));
        assert_eq!(number, 1);
        assert_eq!(count("cuInit", -1), 2);
    });
}

#[test]
fn devices_are_as_described() {
    let machine = "A:1GiB,B Ti:512MiB:integrated:no-vmm:no-host-pointer:no-read-only:compute=9.0:\
                   numa=1:pci=23:uuid=00112233-4455-6677-8899-aabbccddeeff,version:12040";
    on(machine, || unsafe {
        let mut value = 0;
        ok(sys::cuInit(0));
        ok(sys::cuDriverGetVersion(&raw mut value));
        assert_eq!(value, 12040);
        let attributes = [
            (Attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, 1, 0),
            (Attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED, 0, 1),
            (Attribute::CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM, 1, 0),
            (Attribute::CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED, 1, 0),
            (Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 8, 9),
            (Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 6, 0),
            (Attribute::CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID, -1, 1),
            (Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID, 1, 23),
            (Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID, 0, 0),
            (Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID, 0, 0),
            (Attribute::CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1, 1),
            (Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, 0, 0),
        ];
        for (attribute, first, second) in attributes {
            ok(sys::cuDeviceGetAttribute(&raw mut value, attribute, 0));
            assert_eq!(value, first, "{attribute:?}");
            ok(sys::cuDeviceGetAttribute(&raw mut value, attribute, 1));
            assert_eq!(value, second, "{attribute:?}");
        }
        let mut name = [1; 8];
        ok(sys::cuDeviceGetName(name.as_mut_ptr(), 8, 1));
        assert_eq!(CStr::from_ptr(name.as_ptr()), c"B Ti");
        ok(sys::cuDeviceGetName(name.as_mut_ptr(), 2, 1));
        assert_eq!(CStr::from_ptr(name.as_ptr()), c"B");
        let mut size = 0;
        ok(sys::cuDeviceTotalMem_v2(&raw mut size, 1));
        assert_eq!(size, 512 << 20);
        let mut uuid = sys::CUuuid { bytes: [0; 16] };
        ok(sys::cuDeviceGetUuid_v2(&raw mut uuid, 1));
        assert_eq!(uuid.bytes[..3], [0, 0x11, 0x22]);
        fails(sys::cuDeviceGet(&raw mut value, 2), 101);
        fails(sys::cuDeviceGetName(name.as_mut_ptr(), 8, -1), 101);
    });
}

#[test]
fn a_machine_without_devices_has_none() {
    on("", || fails(unsafe { sys::cuInit(0) }, 100));
}

#[test]
fn what_makes_no_sense_is_said() {
    on("GPU:1GiB:purple", || fails(unsafe { sys::cuInit(0) }, 999));
}

#[test]
fn visible_devices_are_chosen_as_by_the_driver() {
    on("A:1GiB,B:2GiB,C:3GiB", || unsafe {
        std::env::set_var("CUDA_VISIBLE_DEVICES", "2,GPU-00000001,7,0");
        ok(sys::cuInit(0));
        let (mut number, mut size) = (0, 0);
        ok(sys::cuDeviceGetCount(&raw mut number));
        assert_eq!(number, 2);
        for (device, gibibytes) in [(0, 3), (1, 2)] {
            ok(sys::cuDeviceTotalMem_v2(&raw mut size, device));
            assert_eq!(size, gibibytes << 30);
        }
    });
}

#[test]
fn a_failed_init_can_be_tried_again() {
    on(ONE, || unsafe {
        fail("cuInit", 802, 1, 0, -1);
        fails(sys::cuInit(0), 802);
        ok(sys::cuInit(0));
    });
}

#[test]
fn a_forked_child_has_no_driver() {
    on(TWO, || unsafe {
        bind(0);
        stream();
        let child = fork();
        if child == 0 {
            let mut context = ptr::null_mut();
            let all = [
                sys::cuInit(0),
                sys::cuCtxSynchronize(),
                sys::cuCtxGetCurrent(&raw mut context),
                sys::cuDevicePrimaryCtxRetain(&raw mut context, 1),
                sys::cuMemFree_v2(0),
            ];
            let right = all.iter().all(|&code| code as u32 == 3) && count("streams", -1) == -1;
            _exit(i32::from(!right));
        }
        let ended = rustix::process::waitpid(Pid::from_raw(child), WaitOptions::empty());
        assert_eq!(ended.unwrap().unwrap().1.exit_status(), Some(0));
        ok(sys::cuCtxSynchronize());
    });
}

#[test]
fn a_process_ends_while_streams_work() {
    let end = end_of("GPU:1GiB,delay:20ms", || unsafe {
        bind(0);
        for _ in 0..4 {
            let stream = stream();
            for _ in 0..100 {
                ok(sys::cuLaunchHostFunc(stream, Some(nothing), ptr::null_mut()));
            }
        }
        std::process::exit(7);
    });
    assert_eq!(end.and_then(|end| end.code()), Some(7));
}

unsafe extern "C" {
    fn fork() -> c_int;
    fn _exit(status: c_int) -> !;
}

unsafe extern "C" fn nothing(_: *mut std::ffi::c_void) {}

#[test]
fn functions_are_found_by_name() {
    on(ONE, || unsafe {
        let mut found = ptr::null_mut();
        let mut status = sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SUCCESS;
        for name in [c"cuMemAlloc", c"cuInit"] {
            ok(sys::cuGetProcAddress_v2(name.as_ptr(), &raw mut found, 12080, 0, &raw mut status));
            assert!(!found.is_null());
        }
        ok(sys::cuGetProcAddress_v2(c"cuNo".as_ptr(), &raw mut found, 12080, 0, &raw mut status));
        assert!(found.is_null());
        assert_eq!(status as u32, 1);
    });
}
