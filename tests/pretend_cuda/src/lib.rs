//! A library with the face of NVIDIA's CUDA driver, over host memory, for machines without GPUs.
//!
//! Found as `libcuda.so.1`, it has the devices that the environment variable `PRETEND_CUDA`
//! describes when `cuInit` is called: entries with commas between them.
//!
//! | entry | means |
//! |---|---|
//! | `NVIDIA GeForce RTX 3090:24GiB` | the next device, with its memory (`GiB`, `MiB`, `KiB` or bytes) |
//! | `version:12040` | what `cuDriverGetVersion` tells; 12080 unless said |
//! | `delay:500us` | each piece of work begins late, by chance up to this (`us` or `ms`); `100us` unless said, `0us` for at once |
//! | `seed:7` | where that chance begins |
//! | `fail:cuMemCreate=2` | every call of the function returns this code |
//! | `fail:cuMemCreate=2*3+10` | its next 3 calls do so, after 10 that do not |
//! | `lost:1` | device 1 is lost: every call on it returns `CUDA_ERROR_DEVICE_UNAVAILABLE` |
//! | `visible` | the host, too, can touch device memory, where it is mapped and accessible |
//!
//! More about a device follows its memory, each after a further colon:
//!
//! | part | means |
//! |---|---|
//! | `8GiB-used` | others have taken that much of its memory |
//! | `300MiB-context` | a context takes that much as long as it lives |
//! | `no-vmm` | no virtual memory management |
//! | `integrated` | it shares the memory of the host |
//! | `no-host-pointer` | it cannot use the host's address of registered memory |
//! | `no-read-only` | it cannot register read-only memory |
//! | `bus=12GiB/s` | the speed of its bus, which its streams share; without it, that of the host |
//! | `compute=8.6` | its compute capability |
//! | `numa=0` | the NUMA node of the host next to it; -1 unless said |
//! | `pci=23` | its PCI bus; its place in the list, and one more, unless said |
//! | `uuid=00112233-4455-6677-8899-aabbccddeeff` | its UUID |
//!
//! Device 1 has the UUID `00000001-0000-0000-0000-000000000000`, as in `pretend_nvml`, and
//! `CUDA_VISIBLE_DEVICES` chooses among the devices as it does for the driver. What is not
//! described in this way makes `cuInit` say so and return `CUDA_ERROR_UNKNOWN`.
//!
//! Tests steer the library, while it runs, by the functions of [`control`].
//!
//! # What it takes over from the driver
//!
//! The facts are those of NVIDIA's CUDA driver API reference, under the name of each function. Where
//! the reference leaves something open, the library does what is least convenient to the caller:
//!
//! - `cuMemUnmap` and `cuMemHostUnregister` wait for nothing, and work that comes too late finds no
//!   memory, whereupon its context fails with `CUDA_ERROR_ILLEGAL_ADDRESS` for good.
//! - A copy that begins in pinned memory and ends outside it is refused. Memory registered without
//!   `CU_MEMHOSTREGISTER_PORTABLE` is pageable to other contexts.
//! - The host cannot touch device memory at all, mapped or not, unless `visible` is described.
//! - No device reaches another's memory, except by copies to and from what `cuMemAlloc` gave.
//! - A function needs a current context exactly when the reference lists
//!   `CUDA_ERROR_INVALID_CONTEXT` among what it returns, streams and events of one's own included.
//! - On a lost device, or one whose context failed, even calls that give something back do nothing.

#![cfg(target_os = "linux")]
#![allow(non_snake_case, reason = "the names are NVIDIA's")]

mod allocation;
mod bus;
mod calls;
mod capture;
mod code;
mod context;
pub mod control;
mod copy;
mod device;
mod driver;
mod event;
mod foreign;
mod machine;
mod memory;
mod pages;
mod pinned;
mod procedure;
mod stream;
mod virtual_memory;
mod work;
