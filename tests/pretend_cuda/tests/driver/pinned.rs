//! Host memory that devices reach on their own.

use std::fs::File;
use std::ptr;

use cudarc::driver::sys;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};

use crate::steer::{bytes, count, hold};
use crate::{ONE, PAGE, TWO, bind, fails, ok, on, page, pinned, stream};

const HOST_PAGE: usize = 4096;
const PORTABLE: u32 = 1;
const READ_ONLY: u32 = 8;

fn pages(count: usize) -> *mut std::ffi::c_void {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    unsafe { mmap_anonymous(ptr::null_mut(), count * HOST_PAGE, protection, MapFlags::PRIVATE) }
        .unwrap()
}

#[test]
fn registered_ranges_do_not_overlap() {
    on(ONE, || unsafe {
        bind(0);
        let memory = pages(8);
        let at = |page: usize| memory.byte_add(page * HOST_PAGE);
        ok(sys::cuMemHostRegister_v2(at(2), 2 * HOST_PAGE, 0));
        fails(sys::cuMemHostRegister_v2(at(2), 2 * HOST_PAGE, 0), 712);
        fails(sys::cuMemHostRegister_v2(at(1), 2 * HOST_PAGE, 0), 712);
        fails(sys::cuMemHostRegister_v2(at(3), HOST_PAGE, 0), 712);
        fails(sys::cuMemHostRegister_v2(memory, 8 * HOST_PAGE, 0), 712);
        ok(sys::cuMemHostRegister_v2(at(4), HOST_PAGE + 1, 0));
        fails(sys::cuMemHostRegister_v2(at(5).byte_add(10), 10, 0), 712);
        assert_eq!(bytes("pinned_bytes", 0), 3 * HOST_PAGE + 1);
        fails(sys::cuMemHostUnregister(at(3)), 713);
        ok(sys::cuMemHostUnregister(at(2)));
        fails(sys::cuMemHostUnregister(at(2)), 713);
        ok(sys::cuMemHostUnregister(at(4)));
        assert_eq!(count("pinned_bytes", 0), 0);
        fails(sys::cuMemHostRegister_v2(ptr::null_mut(), HOST_PAGE, 0), 1);
        fails(sys::cuMemHostRegister_v2(memory, 0, 0), 1);
        fails(sys::cuMemHostRegister_v2(memory, 1, 16), 1);
        fails(sys::cuMemFreeHost(memory), 1);
    });
}

#[test]
fn read_only_memory_is_registered_only_as_such() {
    on("GPU:1GiB,GPU:1GiB:no-read-only,delay:0us", || unsafe {
        bind(0);
        let file = File::open(std::env::current_exe().unwrap()).unwrap();
        let mapped = mmap(ptr::null_mut(), 8192, ProtFlags::READ, MapFlags::PRIVATE, &file, 0);
        let memory = mapped.unwrap();
        fails(sys::cuMemHostRegister_v2(memory, 8192, PORTABLE), 1);
        bind(1);
        fails(sys::cuMemHostRegister_v2(memory, 8192, PORTABLE | READ_ONLY), 801);
        bind(0);
        ok(sys::cuMemHostRegister_v2(memory, 8192, PORTABLE | READ_ONLY));
        let (address, _) = page(0);
        ok(sys::cuMemcpyHtoD_v2(address, memory, 8192));
        assert_eq!(count("pinned_bytes_in", 0), 8192);
        fails(sys::cuMemcpyDtoH_v2(memory, address, 8192), 1);
        fails(sys::cuMemHostRegister_v2(ptr::without_provenance_mut(0x10000), 4096, 0), 1);
        let hidden = ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap());
        fails(sys::cuMemHostRegister_v2(hidden, PAGE, 0), 1);
    });
}

#[test]
fn a_copy_is_pinned_as_a_whole_or_not_at_all() {
    on(ONE, || unsafe {
        bind(0);
        let (address, _) = page(0);
        let memory = pages(4);
        ok(sys::cuMemHostRegister_v2(memory.byte_add(HOST_PAGE), HOST_PAGE, PORTABLE));
        let copy = |from: usize, size| {
            sys::cuMemcpyHtoDAsync_v2(address, memory.byte_add(from), size, ptr::null_mut())
        };
        fails(copy(0, 2 * HOST_PAGE), 1);
        fails(copy(HOST_PAGE, HOST_PAGE + 1), 1);
        fails(copy(0, 4 * HOST_PAGE), 1);
        ok(copy(0, HOST_PAGE));
        ok(copy(HOST_PAGE + 5, 10));
        ok(copy(2 * HOST_PAGE, 20));
        ok(sys::cuCtxSynchronize());
        assert_eq!(bytes("pageable_bytes_in", 0), HOST_PAGE + 20);
        assert_eq!(count("pinned_bytes_in", 0), 10);
    });
}

#[test]
fn memory_that_is_not_portable_is_pageable_to_another_context() {
    on(TWO, || unsafe {
        bind(0);
        let memory = pages(2);
        ok(sys::cuMemHostRegister_v2(memory, HOST_PAGE, 0));
        ok(sys::cuMemHostRegister_v2(memory.byte_add(HOST_PAGE), HOST_PAGE, PORTABLE));
        bind(1);
        let (address, _) = page(1);
        ok(sys::cuMemcpyHtoD_v2(address, memory, 10));
        ok(sys::cuMemcpyHtoD_v2(address, memory.byte_add(HOST_PAGE), 20));
        ok(sys::cuCtxSynchronize());
        assert_eq!((count("pageable_bytes_in", 1), count("pinned_bytes_in", 1)), (10, 20));
    });
}

#[test]
fn memory_unregistered_too_early_fails_the_context() {
    on(ONE, || unsafe {
        bind(0);
        let (address, _) = page(0);
        let memory = pages(1);
        let stream = stream();
        ok(sys::cuMemHostRegister_v2(memory, HOST_PAGE, PORTABLE));
        hold(0, 1);
        ok(sys::cuMemcpyHtoDAsync_v2(address, memory, HOST_PAGE, stream));
        ok(sys::cuMemHostUnregister(memory));
        hold(0, 0);
        fails(sys::cuStreamSynchronize(stream), 700);
    });
}

#[test]
fn devices_have_other_addresses_where_one_cannot_use_the_hosts() {
    on("GPU:1GiB,GPU:1GiB:no-host-pointer,delay:0us", || unsafe {
        bind(0);
        let memory = pages(1);
        ok(sys::cuMemHostRegister_v2(memory, HOST_PAGE, PORTABLE));
        let (mut address, (page, _)) = (0, page(0));
        ok(sys::cuMemHostGetDevicePointer_v2(&raw mut address, memory.byte_add(8), 0));
        assert_ne!(address, memory.addr() as u64 + 8);
        memory.cast::<u8>().byte_add(8).write(9);
        ok(sys::cuMemcpyDtoDAsync_v2(page, address, 4, ptr::null_mut()));
        ok(sys::cuCtxSynchronize());
        assert_eq!(crate::steer::peek(page, 4).unwrap(), [9, 0, 0, 0]);
        let own = pinned(16);
        ok(sys::cuMemHostGetDevicePointer_v2(&raw mut address, own.as_mut_ptr().cast(), 0));
        assert_eq!(address, own.as_ptr().addr() as u64);
    });
}

#[test]
fn pageable_memory_has_no_address_on_devices() {
    on(ONE, || unsafe {
        bind(0);
        let (memory, mut address) = (pages(1), 0);
        fails(sys::cuMemHostGetDevicePointer_v2(&raw mut address, memory, 0), 1);
    });
}
