//! `Arena`, over a device that does everything as late as it may: only when somebody waits for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use coresident::arena::{Area, Arena, Beside, Content, HostSide, Identity, Pins};
use coresident::budget::{Budget, Spec};
use coresident::device::{
    Address, DeviceMemory, DeviceType, Event, Fence, HostBytes, MemoryError, Name, Piece, Pinning,
    Stream,
};
use coresident::wait::{CancelToken, Patience};
use coresident::weights::ElementType;
use loom::thread;

use crate::owner;

/// As far apart as tensors lie, so that each has a page of its own.
const PAGE: usize = 256;
const COPIES: Stream = Stream::Device(0);
pub(crate) const COMPUTE: Stream = Stream::Device(1);

/// A tensor of one page that is all one number.
struct All(u8);

impl HostBytes for All {
    fn copy_to(&self, _from: usize, to: &mut [u8]) {
        to.fill(self.0);
    }
}

/// What a stream is told to do.
enum Order {
    Copy(Vec<Piece>),
    /// To see that this address has this number.
    See(Address, u8),
    After(Event),
}

#[derive(Default)]
struct Queue {
    orders: Vec<Option<Order>>,
    done: usize,
}

/// Loom's threads take turns, so that these mutexes are always free.
#[derive(Default)]
struct Late {
    next: Mutex<Address>,
    /// What is in each page that has memory.
    pages: Mutex<HashMap<Address, u8>>,
    queues: Mutex<HashMap<Stream, Queue>>,
    wrong: Mutex<bool>,
}

impl Late {
    fn submit(&self, stream: Stream, order: Order) {
        self.queues.lock().unwrap().entry(stream).or_default().orders.push(Some(order));
    }

    fn sees(&self, address: Address, number: u8) {
        if self.pages.lock().unwrap().get(&address) != Some(&number) {
            *self.wrong.lock().unwrap() = true;
        }
    }

    fn run(&self, stream: Stream, until: usize) {
        loop {
            let order = {
                let mut queues = self.queues.lock().unwrap();
                let queue = queues.entry(stream).or_default();
                if queue.done >= until {
                    return;
                }
                queue.done += 1;
                queue.orders[queue.done - 1].take()
            };
            match order {
                None => {}
                Some(Order::See(address, number)) => self.sees(address, number),
                Some(Order::After(event)) => drop(event.wait(None)),
                Some(Order::Copy(pieces)) => {
                    for piece in pieces {
                        let mut bytes = [0];
                        piece.source.copy_to(piece.from, &mut bytes);
                        match self.pages.lock().unwrap().get_mut(&piece.to) {
                            Some(page) => *page = bytes[0],
                            None => *self.wrong.lock().unwrap() = true,
                        }
                    }
                }
            }
        }
    }

    fn run_all(&self) {
        for stream in [COPIES, COMPUTE] {
            self.run(stream, self.length(stream));
        }
    }

    fn length(&self, stream: Stream) -> usize {
        self.queues.lock().unwrap().get(&stream).map_or(0, |queue| queue.orders.len())
    }
}

struct Marked {
    late: Arc<Late>,
    stream: Stream,
    until: usize,
}

impl Fence for Marked {
    fn has_passed(&self) -> Result<bool, MemoryError> {
        let queues = self.late.queues.lock().unwrap();
        Ok(queues.get(&self.stream).is_none_or(|queue| queue.done >= self.until))
    }

    fn wait(&self, _until: Option<Instant>) -> Result<bool, MemoryError> {
        self.late.run(self.stream, self.until);
        Ok(true)
    }
}

struct Device(Arc<Late>);

impl DeviceMemory for Device {
    fn page(&self) -> usize {
        PAGE
    }

    fn free(&self) -> u64 {
        0
    }

    fn reserve(&self, bytes: usize) -> Result<Address, MemoryError> {
        let mut next = self.0.next.lock().unwrap();
        *next += bytes;
        Ok(*next - bytes)
    }

    fn release(&self, _start: Address, _bytes: usize) {}

    fn commit(&self, start: Address, bytes: usize) -> Result<(), MemoryError> {
        for page in (start..start + bytes).step_by(PAGE) {
            assert_eq!(self.0.pages.lock().unwrap().insert(page, 0), None, "committed twice");
        }
        Ok(())
    }

    fn decommit(&self, start: Address, bytes: usize) {
        for page in (start..start + bytes).step_by(PAGE) {
            assert!(self.0.pages.lock().unwrap().remove(&page).is_some(), "decommitted twice");
        }
    }

    fn copies(&self) -> Result<Stream, MemoryError> {
        Ok(COPIES)
    }

    fn upload(
        &self,
        after: &[Event],
        pieces: Vec<Piece>,
        _how: Pinning,
    ) -> Result<Event, MemoryError> {
        for event in after {
            self.after(COPIES, event)?;
        }
        self.0.submit(COPIES, Order::Copy(pieces));
        self.record(COPIES)
    }

    fn record(&self, stream: Stream) -> Result<Event, MemoryError> {
        let (late, until) = (self.0.clone(), self.0.length(stream));
        Ok(Arc::new(Marked { late, stream, until }))
    }

    fn after(&self, stream: Stream, event: &Event) -> Result<(), MemoryError> {
        self.0.submit(stream, Order::After(event.clone()));
        Ok(())
    }
}

/// A device of so many pages.
#[derive(Clone)]
pub(crate) struct House {
    late: Arc<Late>,
    pub(crate) budget: Budget,
    arena: Arena,
}

pub(crate) fn house(pages: usize) -> House {
    let late = Arc::new(Late::default());
    let limit = (pages * PAGE) as u64;
    let budget = Budget::new(Spec { limit, ..Spec::named("cuda:0") });
    let name = Name::new(DeviceType::Cuda, 0).unwrap();
    let arena = Arena::over(name, Arc::new(Device(late.clone())), &budget, HostSide::default());
    House { late, budget, arena }
}

impl House {
    /// A model of so many pages, the first of which is all `number`, the second the next one.
    pub(crate) fn area(&self, number: u8, pages: u8) -> Area {
        let content = |at: u8| Content {
            name: at.to_string(),
            element: ElementType::UInt8,
            shape: vec![PAGE],
            nbytes: PAGE,
            bytes: Arc::new(All(number + at)),
        };
        let identity = Identity { of: number.into(), order: Vec::new() };
        let contents = || (0..pages).map(content).collect();
        self.arena.area("model", identity, &owner(0), contents).unwrap()
    }

    /// Has a stream see that an address has a number.
    pub(crate) fn see(&self, stream: Stream, address: Address, number: u8) {
        if stream == Stream::Host {
            self.late.sees(address, number);
        } else {
            self.late.submit(stream, Order::See(address, number));
        }
    }

    /// Whether the ledger has what the device has, and nothing was wrong.
    pub(crate) fn is_right(&self) -> bool {
        self.late.run_all();
        let committed = self.late.pages.lock().unwrap().len() * PAGE;
        self.budget.used() == committed as u64 && !*self.late.wrong.lock().unwrap()
    }
}

fn fault(area: &Area, tensors: &[usize], stream: Stream, thread: u64) -> Pins {
    let block = area.block(tensors);
    let patience = Patience::FOREVER;
    area.fault(&block, Beside::default(), stream, &owner(thread), &patience).unwrap().0
}

pub(crate) fn a_page_stays_and_is_right_while_it_is_pinned() {
    let house = house(1);
    let other = thread::spawn({
        let house = house.clone();
        move || {
            let area = house.area(10, 1);
            let pins = fault(&area, &[0], Stream::Host, 1);
            house.late.sees(area.address(0).unwrap(), 10);
            drop(pins);
        }
    });
    let area = house.area(20, 1);
    let pins = fault(&area, &[0], Stream::Host, 0);
    house.late.sees(area.address(0).unwrap(), 20);
    drop(pins);
    other.join().unwrap();
    assert!(house.is_right());
}

pub(crate) fn a_page_leaves_after_the_streams_that_use_it() {
    let house = house(1);
    let other = thread::spawn({
        let house = house.clone();
        move || {
            let area = house.area(10, 1);
            let pins = fault(&area, &[0], COMPUTE, 1);
            house.late.submit(COMPUTE, Order::See(area.address(0).unwrap(), 10));
            drop(pins);
            area
        }
    });
    let area = house.area(20, 1);
    drop(fault(&area, &[0], Stream::Host, 0));
    drop(other.join().unwrap());
    assert!(house.is_right());
}

pub(crate) fn a_page_leaves_after_all_who_use_it_on_one_stream() {
    let house = house(1);
    let area = house.area(10, 1);
    drop(fault(&area, &[0], Stream::Host, 0));
    let use_it = |house: &House, area: &Area, thread| {
        let pins = fault(area, &[0], COMPUTE, thread);
        house.late.submit(COMPUTE, Order::See(area.address(0).unwrap(), 10));
        drop(pins);
    };
    let other = thread::spawn({
        let (house, area) = (house.clone(), area.clone());
        move || use_it(&house, &area, 1)
    });
    use_it(&house, &area, 0);
    other.join().unwrap();
    house.arena.evict(1);
    assert!(house.is_right());
}

pub(crate) fn what_may_be_wrong_is_filled_again_before_anybody_uses_it() {
    let house = house(1);
    let area = house.area(10, 1);
    drop(fault(&area, &[0], Stream::Host, 0));
    house.late.pages.lock().unwrap().insert(area.address(0).unwrap(), 99);
    area.renew();
    let other = thread::spawn({
        let (house, area) = (house.clone(), area.clone());
        move || {
            let pins = fault(&area, &[0], Stream::Host, 1);
            house.late.sees(area.address(0).unwrap(), 10);
            drop(pins);
        }
    });
    let pins = fault(&area, &[0], Stream::Host, 0);
    house.late.sees(area.address(0).unwrap(), 10);
    drop(pins);
    other.join().unwrap();
    assert!(house.is_right());
}

pub(crate) fn pages_and_ledger_agree_when_faults_and_evictions_race() {
    let house = house(2);
    let area = house.area(10, 2);
    let faulter = thread::spawn({
        let (house, area) = (house.clone(), area.clone());
        move || {
            let pins = fault(&area, &[0, 1], Stream::Host, 1);
            house.late.sees(area.address(1).unwrap(), 11);
            drop(pins);
        }
    });
    drop(fault(&area, &[1], Stream::Host, 0));
    house.arena.evict(PAGE as u64);
    faulter.join().unwrap();
    assert!(house.is_right());
    drop(area);
    assert!(house.late.pages.lock().unwrap().is_empty() && house.budget.used() == 0);
}

pub(crate) fn a_fault_that_is_given_up_leaves_nothing() {
    let house = house(1);
    let (held, wanted) = (house.area(10, 1), house.area(20, 1));
    let pins = fault(&held, &[0], Stream::Host, 0);
    let token = CancelToken::new();
    let waiter = thread::spawn({
        let (wanted, token) = (wanted.clone(), token.clone());
        move || {
            let patience = Patience::FOREVER.or_cancelled(&token);
            let block = wanted.block(&[0]);
            drop(wanted.fault(&block, Beside::default(), Stream::Host, &owner(1), &patience));
        }
    });
    token.cancel(None);
    drop(pins);
    waiter.join().unwrap();
    assert!(house.is_right());
    drop(fault(&wanted, &[0], Stream::Host, 0));
    assert_eq!(wanted.residency(), [1]);
    assert!(house.is_right());
}

pub(crate) fn who_waits_for_bytes_lets_others_have_his_pages() {
    let house = house(2);
    let (used, wanted) = (house.area(10, 1), house.area(20, 2));
    drop(fault(&wanted, &[0], Stream::Host, 0));
    let pins = fault(&used, &[0], Stream::Host, 0);
    let waiter = thread::spawn({
        let (house, wanted) = (house.clone(), wanted.clone());
        move || {
            let pins = fault(&wanted, &[0, 1], Stream::Host, 1);
            house.late.sees(wanted.address(0).unwrap(), 20);
            house.late.sees(wanted.address(1).unwrap(), 21);
            drop(pins);
        }
    });
    if house.budget.is_wanted() {
        // He waits for the page that is used, which nobody else can end.
        assert_eq!(house.arena.evict(1), PAGE as u64);
        let more = house.budget.try_reserve(PAGE as u64, None, &owner(0)).unwrap();
        assert!(more.is_some(), "what he had is not his before all of it is");
    }
    drop(pins);
    waiter.join().unwrap();
    assert!(house.is_right());
}
