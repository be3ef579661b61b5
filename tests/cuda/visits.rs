//! Blocks of a streamed model while the driver fails, is lost, or captures a graph.

use coresident::arena::{ArenaError, Beside};
use coresident::device::{MemoryError, Stream};
use coresident::streaming::StreamingError;
use coresident::wait::Patience;

use super::bench::PAGE;
use super::helpers::{Random, refusal, somebody as owner, until};
use super::pretend;
use super::streaming::{Model, model};

fn ordinal(model: &Model) -> u32 {
    model.device.ordinal().cast_unsigned()
}

fn handle(stream: Stream) -> usize {
    let Stream::Device(handle) = stream else { panic!("the host is no stream of CUDA") };
    handle
}

/// Takes the failures of calls back that have not come.
fn forgive(model: &Model, calls: &[&str]) {
    for name in calls {
        pretend::fail(name, 0, 0, ordinal(model));
    }
}

/// Waits for what a stream has to do.
fn settle(model: &Model, stream: Stream) {
    assert!(model.device.pages.record(stream).unwrap().wait(None).unwrap());
}

#[test]
fn a_call_that_fails_fails_a_visit_and_not_the_next_one() {
    const OUT_OF_MEMORY: u32 = 2;
    const NOT_READY: u32 = 600;
    const UNKNOWN: u32 = 999;
    let calls = [
        "cuMemCreate",
        "cuMemRetainAllocationHandle",
        "cuMemMap",
        "cuMemSetAccess",
        "cuMemcpyHtoDAsync_v2",
        "cuEventCreate",
        "cuEventRecord",
        "cuEventQuery",
        "cuStreamWaitEvent",
        "cuStreamIsCapturing",
    ];
    let made = model(12, &[2; 6], None);
    let streaming = made.open().unwrap();
    let stream = made.device.stream();
    let (mut random, mut failed) = (Random(4), 0);
    for turn in 0..400 {
        if turn % 3 == 0 {
            let code = *random.pick(&[OUT_OF_MEMORY, NOT_READY, UNKNOWN]);
            pretend::fail(random.pick::<&str>(&calls), code, 1 + random.below(2), ordinal(&made));
        }
        let on = (random.below(2) == 0).then_some(stream);
        match made.try_visit(&streaming, random.place(6), random.place(3), on) {
            Ok(()) => {}
            Err(StreamingError::Arena(_)) => failed += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(failed > 10, "{failed}");
    forgive(&made, &calls);
    until(|| (0..30).all(|turn| made.try_visit(&streaming, turn % 6, 0, Some(stream)).is_ok()));
    settle(&made, stream);
    until(|| made.has_all_bytes(&streaming));
    drop(streaming);
    assert!(made.is_clean());
}

#[test]
fn a_copy_that_was_refused_is_told_and_made_again() {
    let made = model(8, &[2; 3], None);
    let streaming = made.open().unwrap();
    // What comes ahead may meet the failure first.
    let mut told = None;
    for turn in 0..100 {
        pretend::fail("cuMemcpyHtoDAsync_v2", 999, 1, ordinal(&made));
        if let Err(error) = made.try_visit(&streaming, turn % 3, 0, None) {
            told = Some(error.to_string());
            break;
        }
    }
    let told = told.expect("no visit has failed");
    assert!(told.contains("cuMemcpyHtoDAsync"), "{told}");
    forgive(&made, &["cuMemcpyHtoDAsync_v2"]);
    until(|| (0..9).all(|turn| made.try_visit(&streaming, turn % 3, 0, None).is_ok()));
    until(|| made.has_all_bytes(&streaming));
    drop(streaming);
    assert!(made.is_clean());
}

#[test]
fn a_device_that_is_lost_says_so_and_an_end_comes_all_the_same() {
    let made = model(8, &[2; 6], None);
    let streaming = made.open().unwrap();
    let stream = made.device.stream();
    (0..6).for_each(|block| made.visit(&streaming, block, 1, Some(stream)));
    pretend::lose(made.device.ordinal(), 46);
    let visits = (0..12).filter_map(|turn| made.try_visit(&streaming, turn % 6, 0, None).err());
    let told: Vec<String> = visits.map(|error| error.to_string()).collect();
    assert!(told.len() >= 10, "no more than what was there: {told:?}");
    assert!(told.iter().all(|told| told.contains("is lost")), "{told:?}");
    streaming.close(&owner("main"));
    assert_eq!(made.area.arena().status().unwrap().pinned, 0);
    drop(streaming);
    // Nobody else gets the device.
    std::mem::forget(made);
}

#[test]
fn no_graph_is_captured_of_what_comes_and_goes() {
    let made = model(8, &[2; 6], None);
    let streaming = made.open().unwrap();
    let stream = made.device.stream();
    assert_eq!(pretend::capture(handle(stream), true), 0);
    for block in 0..6 {
        // Whether it is there already or not.
        for _ in 0..2 {
            let told = refusal(made.try_visit(&streaming, block, 0, Some(stream)));
            assert!(told.contains("a graph is captured on this stream of"), "{told}");
        }
        made.visit(&streaming, block, 0, None);
    }
    assert_eq!(pretend::capture(handle(stream), false), 0, "nothing has spoiled it");
    (0..6).for_each(|block| made.visit(&streaming, block, 0, Some(stream)));
    settle(&made, stream);
    until(|| made.has_all_bytes(&streaming));
    drop(streaming);
    assert!(made.is_clean());
}

#[test]
fn what_a_stream_used_before_a_capture_leaves_after_it() {
    let made = model(5, &[2; 6], None);
    let streaming = made.open().unwrap();
    let (stream, other) = (made.device.stream(), made.device.stream());
    streaming.enter(0, stream, &owner("main"), &Patience::FOREVER).unwrap();
    assert_eq!(pretend::capture(handle(stream), true), 0);
    streaming.leave(0, 0);
    // The rest of the room is enough for some.
    let mut visited = 0;
    for turn in 1..30 {
        match made.try_visit(&streaming, turn % 6, 0, Some(other)) {
            Ok(()) => visited += 1,
            Err(error) => assert!(error.to_string().contains("captured"), "{error}"),
        }
    }
    assert!(visited > 0);
    assert_eq!(pretend::capture(handle(stream), false), 0, "nothing has spoiled it");
    (0..30).for_each(|turn| made.visit(&streaming, turn % 6, 0, Some(other)));
    settle(&made, other);
    until(|| made.has_all_bytes(&streaming));
    drop(streaming);
    assert!(made.is_clean());
}

#[test]
fn pages_that_are_let_go_while_a_graph_is_captured_leave_after_that() {
    let made = model(8, &[2; 2], None);
    let (all, me, stream) = (made.area.all(), owner("main"), made.device.stream());
    let fault = || {
        let fault = made.area.fault(&all, Beside::default(), stream, &me, &Patience::FOREVER);
        drop(fault.unwrap());
    };
    fault();
    settle(&made, stream);
    assert_eq!(pretend::capture(handle(stream), true), 0);
    // Everything is there: the graph uses it where it is.
    fault();
    assert_eq!(made.area.arena().evict(u64::MAX), 0);
    assert_eq!(pretend::capture(handle(stream), false), 0, "nothing has spoiled it");
    until(|| made.area.arena().evict(u64::MAX) == 0 && made.device.committed() == 0);
}

#[test]
fn memory_that_others_took_is_told_with_its_figures() {
    let made = model(8, &[2; 6], None);
    pretend::fail("cuMemCreate", 2, u64::MAX, ordinal(&made));
    assert!(matches!(
        made.open().err(),
        Some(StreamingError::Arena(ArenaError::Memory(MemoryError::OutOfMemory {
            asked: PAGE,
            ..
        })))
    ));
    assert_eq!(made.budget.used(), 0);
    forgive(&made, &["cuMemCreate"]);
    let streaming = made.open().unwrap();
    (0..12).for_each(|turn| made.visit(&streaming, turn % 6, 0, None));
    until(|| made.has_all_bytes(&streaming));
    drop(streaming);
    assert!(made.is_clean());
}
