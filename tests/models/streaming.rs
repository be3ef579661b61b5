//! `Streaming`, over the arena's model of a device that does everything as late as it may.

use std::sync::Arc;

use coresident::arena::{Area, ArenaError, Beside};
use coresident::device::Stream;
use coresident::streaming::{Spec, Streaming, StreamingError};
use coresident::wait::Patience;
use loom::thread;

use crate::arena::{COMPUTE, House, house};
use crate::owner;

/// A model of pages of which each is a block, on a device with room for so many.
fn open(house: &House, area: &Area, blocks: usize) -> Arc<Streaming> {
    let blocks = (0..blocks).map(|at| area.block(&[at])).collect();
    let spec = Spec { resident: area.block(&[]), blocks, working_memory: 0, leave: 0 };
    let (streaming, _) =
        Streaming::quiet(area, spec, Stream::Host, &owner(0), &Patience::FOREVER).unwrap();
    assert!(house.budget.used() > 0);
    Arc::new(streaming)
}

/// Visits a block on a stream that computes later, which has to see what is in it.
fn visit(
    house: &House,
    area: &Area,
    streaming: &Streaming,
    block: u8,
    stream: Stream,
    thread: u64,
) {
    let at = usize::from(block);
    match streaming.enter(at, stream, &owner(thread), &Patience::FOREVER) {
        Ok(()) => {}
        Err(StreamingError::Closed { .. }) => return,
        Err(error) => panic!("{error}"),
    }
    house.see(stream, area.address(at).unwrap(), 10 + block);
    streaming.leave(at, 0);
}

fn serve(streaming: &Arc<Streaming>) -> thread::JoinHandle<()> {
    let streaming = streaming.clone();
    thread::spawn(move || streaming.serve(&owner(9)))
}

pub(crate) fn a_block_is_there_and_right_while_it_is_visited() {
    let house = house(1);
    let area = house.area(10, 2);
    let streaming = open(&house, &area, 2);
    let server = serve(&streaming);
    visit(&house, &area, &streaming, 0, COMPUTE, 0);
    visit(&house, &area, &streaming, 1, Stream::Host, 0);
    streaming.close(&owner(0));
    server.join().unwrap();
    assert!(area.residency().iter().all(|page| *page < 2), "something stays pinned");
    assert!(house.is_right());
}

pub(crate) fn a_block_that_comes_unexpectedly_is_right() {
    let house = house(2);
    let area = house.area(10, 3);
    let streaming = open(&house, &area, 3);
    let server = serve(&streaming);
    visit(&house, &area, &streaming, 1, Stream::Host, 0);
    streaming.close(&owner(0));
    server.join().unwrap();
    assert!(area.residency().iter().all(|page| *page < 2), "something stays pinned");
    assert!(house.is_right());
}

pub(crate) fn an_end_in_the_middle_leaves_nothing_pinned() {
    let house = house(2);
    let area = house.area(10, 2);
    let streaming = open(&house, &area, 2);
    let server = serve(&streaming);
    let closer = thread::spawn({
        let streaming = streaming.clone();
        move || streaming.close(&owner(1))
    });
    visit(&house, &area, &streaming, 0, Stream::Host, 0);
    closer.join().unwrap();
    server.join().unwrap();
    assert!(area.residency().iter().all(|page| *page < 2), "something stays pinned");
    assert!(house.is_right());
}

pub(crate) fn what_is_streamed_is_nobody_elses() {
    let house = house(2);
    let area = house.area(10, 1);
    let other = thread::spawn({
        let (house, area) = (house.clone(), area.clone());
        move || {
            let (all, me) = (area.all(), owner(1));
            let fault = area.fault(&all, Beside::default(), Stream::Host, &me, &Patience::FOREVER);
            match fault {
                Ok(pins) => {
                    house.see(Stream::Host, area.address(0).unwrap(), 10);
                    drop(pins);
                }
                Err(ArenaError::Exclusive { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    let blocks = vec![area.block(&[0])];
    let spec = Spec { resident: area.block(&[]), blocks, working_memory: 0, leave: 0 };
    match Streaming::quiet(&area, spec, Stream::Host, &owner(0), &Patience::FOREVER) {
        Ok((streaming, _)) => {
            visit(&house, &area, &streaming, 0, Stream::Host, 0);
            streaming.close(&owner(0));
        }
        Err(StreamingError::Arena(ArenaError::InUse { .. })) => {}
        Err(error) => panic!("{error}"),
    }
    other.join().unwrap();
    assert!(house.is_right());
}
