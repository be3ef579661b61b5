//! Device memory: bounded, in granules, and there only where it is mapped.

use std::os::unix::process::ExitStatusExt;
use std::ptr;

use cudarc::driver::sys::{self, CUdeviceptr};

use crate::steer::{bytes, count, peek, set_taken};
use crate::{
    ONE, PAGE, TWO, allow, bind, create, end_of, fails, ok, on, page, properties, reserve, stream,
    try_create,
};

fn free() -> usize {
    let (mut free, mut total) = (0, 0);
    ok(unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) });
    free
}

fn map(address: CUdeviceptr, size: usize, handle: u64) -> u32 {
    unsafe { sys::cuMemMap(address, size, 0, handle, 0) as u32 }
}

#[test]
fn memory_ends_at_what_the_device_has_and_others_left() {
    on("GPU:64MiB:32MiB-used", || unsafe {
        bind(0);
        let pages: Vec<_> = (0..16).map(|_| create(0, PAGE)).collect();
        assert_eq!(free(), 0);
        fails(try_create(0, PAGE).unwrap_err(), 2);
        let mut address = 0;
        fails(sys::cuMemAlloc_v2(&raw mut address, 1), 2);
        set_taken(0, 16 << 20);
        create(0, 8 * PAGE);
        ok(sys::cuMemRelease(pages[0]));
        ok(sys::cuMemAlloc_v2(&raw mut address, 1));
        set_taken(0, 64 << 20);
        assert_eq!(free(), 0);
    });
}

#[test]
fn everything_is_in_granules() {
    on(TWO, || unsafe {
        bind(0);
        let mut size = 0;
        let minimum = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
        let properties = properties(0);
        ok(sys::cuMemGetAllocationGranularity(&raw mut size, &raw const properties, minimum));
        assert_eq!(size, PAGE);
        for wrong in [0, 1, 4096, PAGE + 1] {
            fails(try_create(0, wrong).unwrap_err(), 1);
            let mut address = 0;
            fails(sys::cuMemAddressReserve(&raw mut address, wrong, 0, 0, 0), 1);
        }
        fails(try_create(7, PAGE).unwrap_err(), 101);
        let mut address = 0;
        fails(sys::cuMemAddressReserve(&raw mut address, PAGE, 3, 0, 0), 1);
        ok(sys::cuMemAddressReserve(&raw mut address, PAGE, 1 << 30, 0, 0));
        assert!(address.is_multiple_of(1 << 30));
        let (handle, address) = (create(0, 2 * PAGE), reserve(4 * PAGE));
        assert!(address.is_multiple_of(PAGE as u64));
        assert_eq!(map(address + 4096, PAGE, handle), 1);
        assert_eq!(map(address, 4096, handle), 1);
        fails(sys::cuMemMap(address, PAGE, PAGE, handle, 0), 1);
        fails(sys::cuMemMap(address, PAGE, 0, handle, 1), 1);
    });
}

#[test]
fn a_mapping_lies_in_one_reservation_where_nothing_is_yet() {
    on(ONE, || unsafe {
        bind(0);
        let (handle, address) = (create(0, 2 * PAGE), reserve(4 * PAGE));
        assert_eq!(map(address, PAGE, handle + 16), 1);
        assert_eq!(map(0x10_0000_0000, PAGE, handle), 1);
        assert_eq!(map(address + 3 * PAGE as u64, 2 * PAGE, handle), 1);
        assert_eq!(map(address, 3 * PAGE, handle), 1);
        assert_eq!(map(address + PAGE as u64, 2 * PAGE, handle), 0);
        for at in 0..3 {
            assert_eq!(map(address + at * PAGE as u64, 2 * PAGE, handle), 1, "{at}");
        }
        assert_eq!(count("mappings", 0), 1);
        fails(sys::cuMemUnmap(address + PAGE as u64, PAGE), 1);
        fails(sys::cuMemUnmap(address, 4 * PAGE), 1);
        fails(sys::cuMemAddressFree(address, 4 * PAGE), 1);
        ok(sys::cuMemUnmap(address + PAGE as u64, 2 * PAGE));
        fails(sys::cuMemUnmap(address + PAGE as u64, 2 * PAGE), 1);
        fails(sys::cuMemAddressFree(address, 2 * PAGE), 1);
        fails(sys::cuMemAddressFree(address + PAGE as u64, 2 * PAGE), 1);
        ok(sys::cuMemAddressFree(address, 4 * PAGE));
        assert_eq!((count("reservations", -1), count("reserved_bytes", -1)), (0, 0));
    });
}

#[test]
fn several_whole_mappings_go_at_once() {
    on(ONE, || unsafe {
        bind(0);
        let address = reserve(2 * PAGE);
        assert_eq!(map(address, PAGE, create(0, PAGE)), 0);
        assert_eq!(map(address + PAGE as u64, PAGE, create(0, PAGE)), 0);
        fails(allow(0, address, 3 * PAGE), 1);
        ok(allow(0, address, 2 * PAGE));
        ok(sys::cuMemUnmap(address, 2 * PAGE));
    });
}

#[test]
fn memory_stays_until_neither_handle_nor_mapping_holds_it() {
    on(ONE, || unsafe {
        bind(0);
        let (address, handle) = page(0);
        ok(sys::cuMemRelease(handle));
        fails(sys::cuMemRelease(handle), 1);
        assert_eq!((count("handles", 0), bytes("used_bytes", 0)), (0, PAGE));
        ok(sys::cuMemcpyHtoD_v2(address, b"kept".as_ptr().cast(), 4));
        ok(sys::cuCtxSynchronize());
        assert_eq!(peek(address, 4).unwrap(), b"kept");
        ok(sys::cuMemUnmap(address, PAGE));
        assert_eq!(count("used_bytes", 0), 0);
        assert_eq!(peek(address, 4), Err(700));
    });
}

#[test]
fn one_handle_mapped_twice_is_the_same_memory() {
    on(ONE, || unsafe {
        bind(0);
        let (first, handle) = page(0);
        let second = reserve(PAGE);
        assert_eq!(map(second, PAGE, handle), 0);
        ok(sys::cuMemcpyHtoD_v2(first, b"same".as_ptr().cast(), 4));
        ok(sys::cuCtxSynchronize());
        assert_eq!(peek(second, 4).unwrap(), b"same");
    });
}

#[test]
fn a_new_mapping_is_not_accessible() {
    on(ONE, || unsafe {
        bind(0);
        let (address, handle) = page(0);
        ok(sys::cuMemUnmap(address, PAGE));
        assert_eq!(map(address, PAGE, handle), 0);
        let mut flags = 9;
        let location = crate::location(0);
        ok(sys::cuMemGetAccess(&raw mut flags, &raw const location, address));
        assert_eq!(flags, 0);
        ok(sys::cuMemsetD8Async(address, 1, 1, ptr::null_mut()));
        fails(sys::cuStreamSynchronize(ptr::null_mut()), 700);
        fails(sys::cuCtxSynchronize(), 700);
        fails(sys::cuMemUnmap(address, PAGE), 700);
    });
}

#[test]
fn no_device_gets_access_to_anothers_memory() {
    on(TWO, || unsafe {
        bind(1);
        let (address, _) = page(0);
        fails(allow(1, address, PAGE), 101);
        fails(allow(2, address, PAGE), 101);
        let stream = stream();
        ok(sys::cuMemsetD8Async(address, 1, 1, stream));
        fails(sys::cuStreamSynchronize(stream), 700);
        bind(0);
        ok(sys::cuCtxSynchronize());
    });
}

#[test]
fn a_device_without_virtual_memory_says_so() {
    on("GPU:1GiB:no-vmm", || unsafe {
        bind(0);
        fails(try_create(0, PAGE).unwrap_err(), 801);
        let mut address = 0;
        fails(sys::cuMemAddressReserve(&raw mut address, PAGE, 0, 0, 0), 801);
        ok(sys::cuMemAlloc_v2(&raw mut address, PAGE));
    });
}

#[test]
fn a_copy_must_stay_in_memory_that_is_there() {
    on(ONE, || unsafe {
        bind(0);
        let mut address = 0;
        ok(sys::cuMemAlloc_v2(&raw mut address, 100));
        let bytes = [5_u8; 200];
        fails(sys::cuMemcpyHtoD_v2(address, bytes.as_ptr().cast(), 101), 1);
        fails(sys::cuMemcpyHtoD_v2(address + 99, bytes.as_ptr().cast(), 2), 1);
        fails(sys::cuMemcpyHtoD_v2(0x1000, bytes.as_ptr().cast(), 2), 1);
        fails(sys::cuMemcpyHtoD_v2(address, ptr::null(), 2), 1);
        fails(sys::cuMemcpyHtoD_v2(reserve(PAGE), bytes.as_ptr().cast(), 2), 1);
        fails(sys::cuMemcpyHtoD_v2(address, ptr::without_provenance(host(address)), 2), 1);
        ok(sys::cuMemcpyHtoD_v2(0x1000, bytes.as_ptr().cast(), 0));
        ok(sys::cuMemcpyHtoD_v2(address, bytes.as_ptr().cast(), 100));
        let mut read = [0_u8; 100];
        ok(sys::cuMemcpyDtoH_v2(read.as_mut_ptr().cast(), address, 100));
        assert_eq!(read, [5; 100]);
        fails(sys::cuMemFree_v2(address + 1), 1);
        ok(sys::cuMemFree_v2(address));
        fails(sys::cuMemFree_v2(address), 1);
        fails(sys::cuMemAlloc_v2(&raw mut address, 0), 1);
        assert_eq!(count("used_bytes", 0), 0);
    });
}

fn host(address: CUdeviceptr) -> usize {
    usize::try_from(address).unwrap()
}

#[test]
fn a_copy_may_cross_mappings() {
    on(ONE, || unsafe {
        bind(0);
        let address = reserve(3 * PAGE);
        for at in 0..3 {
            assert_eq!(map(address + at * PAGE as u64, PAGE, create(0, PAGE)), 0);
        }
        ok(allow(0, address, 3 * PAGE));
        let bytes: Vec<u8> = (0..=250).cycle().take(2 * PAGE).collect();
        ok(sys::cuMemcpyHtoD_v2(address + 77, bytes.as_ptr().cast(), bytes.len()));
        ok(sys::cuCtxSynchronize());
        assert!(peek(address + 77, bytes.len()).unwrap() == bytes);
    });
}

#[test]
fn what_a_pointer_is_can_be_asked() {
    use sys::CUpointer_attribute_enum as Attribute;
    on(TWO, || unsafe {
        let context = bind(1);
        let mut address = 0;
        ok(sys::cuMemAlloc_v2(&raw mut address, 100));
        let (mut number, mut start, mut found) = (7_u32, 0_u64, 1_usize);
        let kind = Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
        ok(sys::cuPointerGetAttribute((&raw mut number).cast(), kind, address + 9));
        assert_eq!(number, 2);
        let ordinal = Attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL;
        ok(sys::cuPointerGetAttribute((&raw mut number).cast(), ordinal, address));
        assert_eq!(number, 1);
        let range = Attribute::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR;
        ok(sys::cuPointerGetAttribute((&raw mut start).cast(), range, address + 9));
        assert_eq!(start, address);
        let of = Attribute::CU_POINTER_ATTRIBUTE_CONTEXT;
        ok(sys::cuPointerGetAttribute((&raw mut found).cast(), of, address));
        assert_eq!(found, context.addr());
        ok(sys::cuPointerGetAttribute((&raw mut found).cast(), of, page(0).0));
        assert_eq!(found, 0);
        let pinned = crate::pinned(10).as_ptr().addr() as u64;
        ok(sys::cuPointerGetAttribute((&raw mut number).cast(), kind, pinned));
        assert_eq!(number, 1);
        let own = (&raw const number).addr() as u64;
        fails(sys::cuPointerGetAttribute((&raw mut number).cast(), kind, own), 1);
    });
}

#[test]
fn the_host_cannot_touch_device_memory() {
    let end = end_of(ONE, || unsafe {
        bind(0);
        let (address, _) = page(0);
        ptr::with_exposed_provenance_mut::<u8>(host(address)).write_volatile(1);
    });
    if let Some(end) = end {
        assert_eq!(end.signal(), Some(11));
    }
}

#[test]
fn the_host_sees_mapped_memory_if_so_described() {
    let end = end_of("GPU:1GiB,delay:0us,visible", || unsafe {
        bind(0);
        let (address, handle) = page(0);
        let seen = ptr::with_exposed_provenance_mut::<u8>(host(address));
        ok(sys::cuMemcpyHtoD_v2(address, b"x".as_ptr().cast(), 1));
        ok(sys::cuCtxSynchronize());
        assert_eq!(seen.read_volatile(), b'x');
        seen.write_volatile(b'y');
        assert_eq!(peek(address, 1).unwrap(), b"y");
        ok(sys::cuMemUnmap(address, PAGE));
        ok(sys::cuMemMap(address, PAGE, 0, handle, 0));
        ok(allow(0, address, PAGE));
        assert_eq!(seen.read_volatile(), b'y');
        let mut given = 0;
        ok(sys::cuMemAlloc_v2(&raw mut given, 10));
        ptr::with_exposed_provenance_mut::<u8>(host(given)).write_volatile(1);
        assert_eq!(peek(given, 1).unwrap(), [1]);
        ok(sys::cuMemUnmap(address, PAGE));
        seen.read_volatile();
    });
    if let Some(end) = end {
        assert_eq!(end.signal(), Some(11));
    }
}
