//! `Arena`: pages that come and go without ever being wrong, on devices whose streams are late.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use coresident::arena::{Area, Arena, ArenaError, Beside, Content, HostSide, Identity, Pins};
use coresident::budget::{Budget, BudgetError, Probe, Spec};
use coresident::device::{HostBytes, MemoryError, Stream, VirtualSpec, virtual_devices};
use coresident::wait::{CancelToken, Owner, Patience, WaitError};
use coresident::weights::ElementType;

use super::bench::{Bench, MOVES, NAME, PAGE, bench};
use super::helpers::{Random, refusal, somebody as owner, until};

/// Bytes that tell where they are from; counts how many were copied.
struct Pattern {
    seed: u8,
    copied: AtomicUsize,
}

impl Pattern {
    /// Another byte every 256.
    fn write(&self, from: usize, to: &mut [u8]) {
        let mut at = from;
        let end = from + to.len();
        while at < end {
            let next = (((at >> 8) + 1) << 8).min(end);
            let byte = self.seed.wrapping_mul(31).wrapping_add(small((at >> 8) % 251));
            to[at - from..next - from].fill(byte);
            at = next;
        }
    }

    fn is(&self, bytes: &[u8]) -> bool {
        let mut right = vec![0; bytes.len()];
        self.write(0, &mut right);
        right == bytes
    }
}

impl HostBytes for Pattern {
    fn copy_to(&self, from: usize, to: &mut [u8]) {
        self.write(from, to);
        self.copied.fetch_add(to.len(), Ordering::SeqCst);
    }
}

fn small(number: usize) -> u8 {
    (number % 256).try_into().unwrap()
}

fn pick(random: &mut Random, end: u64) -> usize {
    random.below(end).try_into().unwrap()
}

struct OfDevice(Arc<Bench>);

impl Probe for OfDevice {
    fn free(&self) -> Option<u64> {
        Some(self.0.pages.free())
    }
}

/// A device of so many pages, with an arena.
struct House {
    device: Arc<Bench>,
    budget: Budget,
    arena: Arena,
}

fn house_with(pages: u64, jitter: Option<u64>) -> House {
    let device = bench(pages, jitter);
    let spec = Spec {
        total: Some(pages * PAGE),
        limit: pages * PAGE,
        probe: Some(Arc::new(OfDevice(device.clone()))),
        look_every: Duration::from_millis(1),
        ..Spec::named(NAME)
    };
    charged_to(device, spec)
}

/// The same with a budget as described.
fn charged_to(device: Arc<Bench>, spec: Spec) -> House {
    let budget = Budget::new(spec);
    let arena = Arena::over(device.name, device.pages.clone(), &budget, HostSide::default());
    House { device, budget, arena }
}

fn house(pages: u64) -> House {
    house_with(pages, Some(7))
}

/// A model of so many tensors of so many bytes.
struct Model {
    area: Area,
    patterns: Vec<Arc<Pattern>>,
}

impl House {
    fn model(&self, seed: u8, sizes: &[usize]) -> Model {
        let pattern = |at: usize| {
            let seed = seed.wrapping_add(small(at));
            Arc::new(Pattern { seed, copied: AtomicUsize::new(0) })
        };
        let patterns: Vec<Arc<Pattern>> = (0..sizes.len()).map(pattern).collect();
        let contents = || {
            let content = |(at, &nbytes): (usize, &usize)| Content {
                name: format!("t{at}"),
                element: ElementType::UInt8,
                shape: vec![nbytes],
                nbytes,
                bytes: patterns[at].clone(),
            };
            sizes.iter().enumerate().map(content).collect()
        };
        let key = format!("model {seed}");
        let identity = Identity { of: seed.into(), order: Vec::new() };
        let area = self.arena.area(&key, identity, &owner("main"), contents).unwrap();
        Model { area, patterns }
    }

    /// Whether ledger, books and memory agree.
    fn is_consistent(&self) -> bool {
        let status = self.arena.status().unwrap();
        let reserved: u64 = self.budget.status().unwrap().holders.iter().map(|h| h.bytes).sum();
        status.resident == self.device.committed() && reserved == self.budget.used()
    }
}

impl Model {
    fn fault(&self, who: &Owner) -> Pins {
        self.fault_on(Stream::Host, who)
    }

    fn fault_on(&self, stream: Stream, who: &Owner) -> Pins {
        let all = self.area.all();
        self.area.fault(&all, Beside::default(), stream, who, &Patience::FOREVER).unwrap().0
    }

    fn copied(&self) -> usize {
        self.patterns.iter().map(|pattern| pattern.copied.load(Ordering::SeqCst)).sum()
    }

    /// Some bytes of a tensor, as they are on the device.
    fn check(&self, memory: &Bench, tensor: usize) -> Result<bool, MemoryError> {
        check(memory, &self.patterns[tensor], &self.area, tensor)
    }

    fn is_whole(&self, memory: &Bench) -> bool {
        (0..self.patterns.len()).all(|tensor| self.check(memory, tensor).unwrap())
    }
}

fn check(
    memory: &Bench,
    pattern: &Pattern,
    area: &Area,
    tensor: usize,
) -> Result<bool, MemoryError> {
    let nowhere = MemoryError::Unmapped { device: memory.name, address: 0 };
    let address = area.address(tensor).ok_or(nowhere)?;
    let mut bytes = vec![0; area.contents()[tensor].nbytes];
    memory.read_at(address, &mut bytes)?;
    Ok(pattern.is(&bytes))
}

/// What is expected where pages come to addresses of their own; and where whole blocks come, of one
/// page here or of one tensor.
fn either<T>(pages: T, blocks: T) -> T {
    if MOVES { blocks } else { pages }
}

const MIB: usize = 1 << 20;

#[test]
fn a_fault_brings_all_tensors_and_a_second_one_copies_nothing() {
    let house = house(16);
    // Small ones, one of many pages, an empty one, and one that ends in the middle of a page.
    let model = house.model(1, &[100, 0, 5 * MIB, 3, 700, 3 * MIB + 1]);
    assert_eq!(model.area.pages(), either(5, 6));
    let me = owner("main");
    for _ in 0..3 {
        let pins = model.fault(&me);
        assert!(model.is_whole(&house.device));
        assert_eq!(model.copied(), 8 * MIB + 804);
        drop(pins);
    }
    assert_eq!(house.budget.used(), model.area.pages() as u64 * PAGE);
    assert!(house.is_consistent());
}

#[test]
fn tensors_share_pages_so_that_a_model_wastes_less_than_one() {
    let house = house(16);
    let sizes: Vec<usize> = (0..300).map(|at| 1 + at * 37 % 20_000).collect();
    let model = house.model(1, &sizes);
    let bytes: usize = sizes.iter().map(|size| size.next_multiple_of(256)).sum();
    assert!(model.area.pages() as u64 * PAGE - (bytes as u64) < PAGE);
    drop(model.fault(&owner("main")));
    assert!(model.is_whole(&house.device));
}

#[test]
fn a_block_brings_only_the_pages_that_it_lies_in() {
    let house = house(16);
    let model = house.model(1, &[4 * MIB, 3 * MIB, 3 * MIB]);
    let block = model.area.block(&[1]);
    assert_eq!(block.len(), 2);
    let me = owner("main");
    let (pins, _) =
        model.area.fault(&block, Beside::default(), Stream::Host, &me, &Patience::FOREVER).unwrap();
    assert_eq!(model.area.residency(), either(vec![0, 0, 2, 2, 0], vec![0, 0, 2, 2, 0, 0]));
    assert!(model.check(&house.device, 1).unwrap());
    drop(pins);
    drop(model.fault(&me));
    assert_eq!(model.copied(), 10 * MIB, "pages that were there are not copied again");
}

#[test]
fn what_is_evicted_is_given_back_and_using_it_is_an_error() {
    let house = house(8);
    let model = house.model(1, &[4 * MIB, 4 * MIB]);
    drop(model.fault(&owner("main")));
    assert_eq!(house.device.committed(), 4 * PAGE);
    let left = either(1, 2);
    let asked = (4 - left) * PAGE - 1;
    assert_eq!(house.arena.evict(asked), (4 - left) * PAGE);
    assert_eq!((house.device.committed(), house.budget.used()), (left * PAGE, left * PAGE));
    assert_eq!(model.area.residency(), [1, either(0, 1), 0, 0], "the last pages go first");
    let refused = model.check(&house.device, 1).unwrap_err();
    assert!(matches!(refused, MemoryError::Unmapped { .. }), "{refused}");
    drop(model.fault(&owner("main")));
    assert!(model.is_whole(&house.device));
    assert_eq!(model.copied(), either(14, 12) * MIB, "the page that stayed is not copied again");
}

#[test]
fn only_missing_bytes_are_evicted_and_of_the_least_wanted_first() {
    let house = house(8);
    let [first, second, third] = [1, 2, 3].map(|seed| house.model(10 * seed, &[6 * MIB]));
    let me = owner("main");
    drop(first.fault(&me));
    drop(second.fault(&me));
    drop(third.fault(&me));
    let resident = |model: &Model| model.area.residency().iter().filter(|page| **page > 0).count();
    assert_eq!([&first, &second, &third].map(resident), [either(2, 0), 3, 3]);
    second.area.set_priority(-1);
    drop(first.fault(&me));
    assert_eq!(
        [&first, &second, &third].map(resident),
        [3, either(2, 0), 3],
        "a lower priority goes first"
    );
    assert!(house.is_consistent());
}

#[test]
fn pinned_pages_stay_whoever_asks() {
    let house = house(4);
    let model = house.model(1, &[4 * MIB]);
    let pins = model.fault(&owner("main"));
    assert_eq!(house.arena.evict(u64::MAX), 0);
    let error = house.budget.reserve(
        3 * PAGE,
        None,
        &owner("other"),
        &Patience::at_most(Duration::from_millis(60)),
    );
    assert!(matches!(error, Err(BudgetError::Timeout { .. })));
    assert!(model.is_whole(&house.device));
    drop(pins);
    let taken = house.budget.reserve(3 * PAGE, None, &owner("other"), &Patience::FOREVER);
    assert_eq!(taken.unwrap().bytes(), 3 * PAGE);
    assert_eq!(model.area.residency(), [either(1, 0), 0]);
}

#[test]
fn pages_whose_content_may_be_wrong_are_filled_again() {
    let house = house(4);
    let model = house.model(1, &[3 * MIB]);
    drop(model.fault(&owner("main")));
    model.area.renew();
    let committed = house.device.committed();
    drop(model.fault(&owner("main")));
    assert_eq!((model.copied(), house.device.committed()), (6 * MIB, committed));
}

#[test]
fn what_is_written_while_somebody_waits_for_bytes_is_filled_again_for_him() {
    let house = house(6);
    let (model, other) = (house.model(1, &[3 * MIB]), house.model(2, &[6 * MIB]));
    let me = owner("main");
    drop(model.fault(&me));
    let pins = other.fault(&me);
    let copied = model.copied();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let (all, beside) = (model.area.all(), Beside { bytes: 2 * PAGE });
            let who = owner("waiter");
            model.area.fault(&all, beside, Stream::Host, &who, &Patience::FOREVER).map(drop)
        });
        until(|| !house.budget.status().unwrap().waiting.is_empty());
        model.area.renew();
        drop(pins);
        waiter.join().unwrap().unwrap();
    });
    assert!(model.copied() >= copied + 3 * MIB);
    assert!(model.is_whole(&house.device));
}

/// Three models of three pages on a device of eight: two in use, and what is left of the third.
fn three_on_eight(house: &House) -> ([Model; 3], [Pins; 2]) {
    let models = [1, 2, 3].map(|seed| house.model(10 * seed, &[2 * MIB; 3]));
    let me = owner("main");
    drop(models[2].fault(&me));
    let pins = [models[0].fault(&me), models[1].fault(&me)];
    assert_eq!(models[2].area.residency(), [1, 1, 0]);
    (models, pins)
}

#[test]
fn who_waits_for_bytes_lets_those_have_his_pages_who_use_theirs() {
    let house = house(8);
    let ([.., third], [first, second]) = three_on_eight(&house);
    let me = owner("main");
    let at_once = || house.budget.try_reserve(PAGE, None, &me).unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| drop(third.fault(&owner("waiter"))));
        until(|| house.budget.is_wanted());
        assert!(at_once().is_none(), "there is nothing but his pages");
        let mut activations = Vec::new();
        for _ in 0..2 {
            assert_eq!(house.arena.evict(PAGE), PAGE);
            // A look at the memory while the page was leaving may have found less than there is.
            let taken = std::cell::Cell::new(None);
            until(|| {
                let got = at_once();
                let has = got.is_some();
                taken.set(got);
                has
            });
            activations.extend(taken.into_inner());
        }
        assert_eq!(house.arena.evict(PAGE), 0);
        assert!(house.budget.is_wanted());
        drop((activations, first));
        waiter.join().unwrap();
    });
    assert!(third.is_whole(&house.device));
    assert_eq!(third.copied(), 12 * MIB, "one page came again, and two that were taken");
    drop(second);
    assert!(house.is_consistent());
    house.arena.evict(u64::MAX);
    assert_eq!((house.device.committed(), house.budget.used()), (0, 0));
}

#[test]
fn what_nobody_takes_from_him_who_waits_is_not_copied_again() {
    let house = house(8);
    let ([.., third], [first, second]) = three_on_eight(&house);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| third.fault(&owner("waiter")));
        until(|| house.budget.is_wanted());
        drop(first);
        let pins = waiter.join().unwrap();
        assert_eq!(third.area.residency(), [2, 2, 2]);
        drop((pins, second));
    });
    assert_eq!(third.copied(), 8 * MIB);
    assert!(third.is_whole(&house.device) && house.is_consistent());
}

#[test]
fn who_gives_up_after_others_took_of_his_pages_leaves_nothing_pinned() {
    let house = house(8);
    let ([.., third], [first, second]) = three_on_eight(&house);
    let token = CancelToken::new();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let patience = Patience::FOREVER.or_cancelled(&token);
            let (all, who) = (third.area.all(), owner("waiter"));
            third.area.fault(&all, Beside::default(), Stream::Host, &who, &patience).map(drop)
        });
        until(|| house.budget.is_wanted());
        assert_eq!(house.arena.evict(PAGE), PAGE);
        token.cancel(None);
        waiter.join().unwrap().unwrap_err();
    });
    assert_eq!(third.area.residency(), [1, 0, 0]);
    drop((first, second));
    assert!(house.is_consistent());
    drop(third.fault(&owner("main")));
    assert!(third.is_whole(&house.device) && house.is_consistent());
}

#[test]
fn who_waits_before_him_is_given_the_pages_of_who_waits() {
    let house = house(8);
    let ([.., third], [first, second]) = three_on_eight(&house);
    let first_page = third.area.block(&[0]);
    let held = third.area.pin(&first_page, Stream::Host, &owner("other")).unwrap();
    thread::scope(|scope| {
        // He waits for two pages, of which one is idle and the other one is in use.
        let before = scope.spawn(|| {
            let (who, patience) = (owner("before"), Patience::FOREVER);
            house.budget.reserve(2 * PAGE, None, &who, &patience).map(|taken| taken.bytes())
        });
        until(|| house.budget.is_wanted());
        let waiter = scope.spawn(|| drop(third.fault(&owner("waiter"))));
        until(|| house.budget.status().unwrap().waiting.len() == 2);
        drop(held);
        assert_eq!(before.join().unwrap().unwrap(), 2 * PAGE);
        drop(first);
        waiter.join().unwrap();
    });
    drop(second);
    assert!(third.is_whole(&house.device) && house.is_consistent());
}

#[test]
fn bytes_that_others_took_since_the_last_look_are_waited_for() {
    let device = bench(8, None);
    let spec = Spec {
        total: Some(8 * PAGE),
        limit: 8 * PAGE,
        probe: Some(Arc::new(OfDevice(device.clone()))),
        // Long enough that nobody looks of himself.
        look_every: Duration::from_millis(50),
        ..Spec::named(NAME)
    };
    let house = charged_to(device, spec);
    let model = house.model(1, &[6 * MIB]);
    drop(house.budget.try_reserve(0, None, &owner("main")).unwrap());
    let outside = house.device.occupy(6 * PAGE);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| drop(model.fault(&owner("waiter"))));
        until(|| !house.budget.status().unwrap().waiting.is_empty());
        drop(outside);
        waiter.join().unwrap();
    });
    assert!(model.is_whole(&house.device));
}

#[test]
fn a_device_that_is_fuller_than_known_loses_only_what_is_missing() {
    let house = charged_to(bench(8, None), Spec { limit: 16 * PAGE, ..Spec::named(NAME) });
    let (there, wanted) = (house.model(1, &[6 * MIB]), house.model(2, &[12 * MIB]));
    drop(there.fault(&owner("main")));
    drop(wanted.fault(&owner("main")));
    let left = either([1, 1, 0], [0; 3]);
    assert_eq!(there.area.residency(), left, "one page was missing");
}

/// A model of three pages that a stream uses until it is let through the gate.
fn in_use_on_a_stream(house: &House) -> ((Model, Pins), Stream, Arc<Barrier>) {
    let model = house.model(1, &[6 * MIB]);
    let (stream, gate) = (house.device.stream(), Arc::new(Barrier::new(2)));
    let pins = model.fault_on(stream, &owner("main"));
    let opened = gate.clone();
    house.device.launch(stream, move || {
        opened.wait();
    });
    ((model, pins), stream, gate)
}

#[test]
fn what_a_stream_still_uses_when_its_area_goes_leaves_afterwards() {
    let house = house_with(8, None);
    let (used, stream, gate) = in_use_on_a_stream(&house);
    drop(used);
    assert_eq!(house.device.committed(), 3 * PAGE);
    gate.wait();
    house.device.pages.record(stream).unwrap().wait(None).unwrap();
    assert_eq!(house.arena.status().unwrap().resident, 0, "seen by whoever comes next");
    assert_eq!((house.device.committed(), house.budget.used()), (0, 0));
}

#[test]
fn who_lets_go_of_an_arena_waits_for_no_stream() {
    let house = house_with(8, None);
    let (used, _, gate) = in_use_on_a_stream(&house);
    let House { device, budget, arena } = house;
    drop((used, arena));
    assert_eq!((device.committed(), budget.used()), (3 * PAGE, 3 * PAGE));
    gate.wait();
    until(|| (device.committed(), budget.used()) == (0, 0));
}

#[test]
fn working_memory_comes_with_the_pages_or_not_at_all() {
    let house = house(8);
    let (model, other) = (house.model(1, &[6 * MIB]), house.model(2, &[10 * MIB]));
    let me = owner("main");
    drop(other.fault(&me));
    let fault = |bytes| {
        let all = model.area.all();
        model.area.fault(&all, Beside { bytes }, Stream::Host, &me, &Patience::FOREVER)
    };
    let (pins, working) = fault(5 * PAGE).unwrap();
    assert_eq!(working.as_ref().unwrap().bytes(), 5 * PAGE);
    assert_eq!(other.area.residency(), [0; 5], "what is not used makes room");
    drop((pins, working));
    assert_eq!(house.budget.used(), 3 * PAGE, "when it ends nothing moves");
    let error = fault(6 * PAGE).map(drop).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "\"model 1\" needs 6 MiB of weights and 12 MiB beside them on {NAME}, which can never have \
             more than 16 MiB"
        )
    );
    assert_eq!(house.budget.used(), 3 * PAGE);
    assert_eq!(model.area.residency(), [1; 3], "nothing stays pinned");
}

#[test]
fn two_who_do_not_fit_together_take_turns() {
    let house = house(4);
    let models = [1, 2].map(|seed| house.model(10 * seed, &[6 * MIB]));
    let start = Barrier::new(2);
    thread::scope(|scope| {
        for (number, model) in models.iter().enumerate() {
            let (start, memory) = (&start, &house.device);
            scope.spawn(move || {
                let me = owner(if number == 0 { "one" } else { "two" });
                start.wait();
                for _ in 0..20 {
                    let pins = model.fault(&me);
                    assert!(model.is_whole(memory));
                    drop(pins);
                }
            });
        }
    });
    assert!(house.is_consistent());
}

#[test]
fn who_waits_for_what_he_has_himself_is_told_so() {
    let house = house(4);
    let (outer, inner) = (house.model(1, &[6 * MIB]), house.model(2, &[4 * MIB]));
    let me = owner("main");
    let pins = outer.fault(&me);
    let all = inner.area.all();
    let fault = || {
        inner.area.fault(&all, Beside::default(), Stream::Host, &me, &Patience::FOREVER).map(drop)
    };
    let error = fault().unwrap_err();
    let ArenaError::Budget(BudgetError::Wait(WaitError::Deadlock(deadlock))) = error else {
        panic!("{error}");
    };
    assert!(deadlock.to_string().contains("thread 'main'"), "{deadlock}");
    drop(pins);
    fault().unwrap();
}

#[test]
fn a_wait_for_pages_ends_with_its_timeout_or_its_token_and_leaves_nothing() {
    let house = house(4);
    let (held, wanted) = (house.model(1, &[6 * MIB]), house.model(2, &[4 * MIB]));
    let pins = held.fault(&owner("holder"));
    let all = wanted.area.all();
    let fault = |patience: &Patience<'_>| {
        let me = owner("waiter");
        refusal(wanted.area.fault(&all, Beside::default(), Stream::Host, &me, patience).map(drop))
    };
    let told = fault(&Patience::at_most(Duration::from_millis(30)));
    assert!(told.contains("timed out"), "{told}");
    let token = CancelToken::new();
    token.cancel(Some("enough".to_owned()));
    let told = fault(&Patience::FOREVER.or_cancelled(&token));
    assert!(told.contains("enough"), "{told}");
    assert_eq!(wanted.area.residency(), [0, 0]);
    assert_eq!(house.budget.used(), 3 * PAGE);
    drop(pins);
    drop(wanted.fault(&owner("waiter")));
    assert!(wanted.is_whole(&house.device));
}

#[test]
fn a_page_leaves_only_after_every_stream_that_used_it() {
    for seed in 0..either(20, 10) {
        let house = house_with(5, Some(seed));
        let streams = [house.device.stream(), house.device.stream()];
        let models = [1, 2, 3].map(|seed| Arc::new(house.model(10 * seed, &[3 * MIB, MIB])));
        let wrong = Arc::new(AtomicUsize::new(0));
        for (round, model) in models.iter().cycle().take(12).enumerate() {
            let stream = streams[round % 2];
            let pins = model.fault_on(stream, &owner("main"));
            let (model, wrong) = (model.clone(), wrong.clone());
            let device = house.device.clone();
            house.device.launch(stream, move || {
                let right = (0..2).all(|tensor| model.check(&device, tensor).unwrap_or(false));
                wrong.fetch_add(usize::from(!right), Ordering::SeqCst);
            });
            drop(pins);
        }
        for stream in streams {
            house.device.pages.record(stream).unwrap().wait(None).unwrap();
        }
        assert_eq!(wrong.load(Ordering::SeqCst), 0, "seed {seed}");
        assert!(house.is_consistent());
    }
}

#[test]
fn what_others_take_from_the_device_is_evicted_and_comes_back_by_itself() {
    let house = house(8);
    let models = [1, 2].map(|seed| house.model(10 * seed, &[8 * MIB]));
    let me = owner("main");
    let all_fit = || models.iter().for_each(|model| drop(model.fault(&me)));
    all_fit();
    house.arena.evict(4 * PAGE);
    let spike = house.device.occupy(4 * PAGE);
    house.budget.look().unwrap();
    for _ in 0..2 {
        all_fit();
    }
    assert!(house.device.committed() <= 4 * PAGE);
    drop(spike);
    house.budget.look().unwrap();
    all_fit();
    let copied: usize = models.iter().map(Model::copied).sum();
    all_fit();
    assert_eq!(models.iter().map(Model::copied).sum::<usize>(), copied, "all fits, nothing moves");
    assert!(house.is_consistent());
}

#[test]
fn a_device_that_is_fuller_than_its_budget_knows_is_an_error_that_leaves_nothing() {
    // A ledger that does not look.
    let house = charged_to(bench(8, None), Spec { limit: 8 * PAGE, ..Spec::named(NAME) });
    let (small, large) = (house.model(1, &[4 * MIB]), house.model(2, &[8 * MIB]));
    let me = owner("main");
    drop(small.fault(&me));
    let outside = house.device.occupy(4 * PAGE);
    drop(large.fault(&me));
    assert_eq!(small.area.residency(), [0, 0], "what nobody uses goes first");
    let pins = large.fault(&me);
    let all = small.area.all();
    let error = small
        .area
        .fault(&all, Beside::default(), Stream::Host, &me, &Patience::FOREVER)
        .map(drop)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{NAME} is out of memory: \"model 1\" needs 4 MiB more there, 0 B is free now that \
             everything unpinned was evicted; 8 MiB of weights are pinned"
        )
    );
    assert_eq!(small.area.residency(), [0, 0]);
    assert!(house.is_consistent());
    drop((outside, pins));
    drop(small.fault(&me));
    assert!(small.is_whole(&house.device));
}

#[test]
fn limits_headroom_and_watermarks_hold_from_when_they_are_set() {
    let house = house(8);
    let models = [1, 2].map(|seed| house.model(10 * seed, &[8 * MIB]));
    let me = owner("main");
    let all_fit = || models.iter().for_each(|model| drop(model.fault(&me)));
    all_fit();
    house.budget.set_limit(5 * PAGE).unwrap();
    assert_eq!(house.device.committed(), either(5, 4) * PAGE);
    house.budget.set_limit(8 * PAGE).unwrap();
    all_fit();
    house.budget.set_headroom(2 * PAGE).unwrap();
    assert_eq!(house.device.committed(), either(6, 4) * PAGE);
    house.budget.set_headroom(0).unwrap();
    all_fit();
    assert_eq!(house.device.committed(), 8 * PAGE);
    house.arena.set_watermarks(PAGE, Some(6 * PAGE)).unwrap();
    assert_eq!(house.device.committed(), either(1, 0) * PAGE);
    drop(models[0].fault(&me));
    assert_eq!(house.device.committed(), either(5, 4) * PAGE, "below the high watermark they stay");
    house.arena.set_watermarks(0, Some(0)).unwrap();
    drop(models[0].fault(&me));
    assert_eq!(house.device.committed(), 0, "nothing stays that is not used");
    let told = refusal(house.arena.set_watermarks(PAGE, Some(0)));
    assert!(
        told.contains(&format!("low watermark of {NAME} is 2 MiB, above the high one of 0 B")),
        "{told}"
    );
}

#[test]
fn an_area_that_nobody_has_gives_its_memory_back_and_a_view_keeps_the_addresses() {
    let house = house(8);
    let model = house.model(1, &[8 * MIB]);
    drop(model.fault(&owner("main")));
    let view = model.area.view(0).unwrap();
    drop(model);
    assert_eq!((house.device.committed(), house.budget.used()), (0, 0));
    assert!(house.arena.status().unwrap().areas.is_empty());
    let other = house.model(2, &[8 * MIB]);
    let elsewhere =
        |start| start >= view.address() + view.nbytes() || start + 8 * MIB <= view.address();
    assert_eq!(other.area.address(0).is_some_and(elsewhere), !MOVES);
}

#[test]
fn what_has_no_memory_is_nowhere_where_memory_moves() {
    let house = house(8);
    let model = house.model(1, &[3 * MIB, 0, 5]);
    assert_eq!(house.arena.moves().unwrap(), MOVES);
    assert_eq!(model.area.address(0).is_none(), MOVES);
    assert!(model.area.view(1).is_ok(), "what has no bytes is anywhere");
    let pins = model.fault(&owner("main"));
    assert!((0..3).all(|at| model.area.view(at).is_ok()));
    drop(pins);
    house.arena.evict(u64::MAX);
    if MOVES {
        assert_eq!(
            refusal(model.area.view(2).map(drop)),
            format!(
                "\"t2\" of \"model 1\" is nowhere on {NAME} now: memory comes somewhere else each time \
                 there, so that tensors have addresses only while they are pinned"
            )
        );
    }
}

#[test]
fn a_pinned_tensor_stays_until_it_is_dropped_and_status_names_it() {
    let house = house(4);
    let model = house.model(1, &[2 * MIB, 2 * MIB, 2 * MIB]);
    let me = owner("main");
    let tensor = model.area.pinned(1, Stream::Host, &me, &Patience::FOREVER).unwrap();
    drop(model.fault(&me));
    let Model { area, patterns } = model;
    assert_eq!(house.arena.status().unwrap().areas[0].pinned_tensors, ["t1"]);
    drop(area);
    assert_eq!(house.arena.evict(u64::MAX), 2 * PAGE);
    let mut bytes = vec![0; 2 * MIB];
    house.device.read_at(tensor.view().address(), &mut bytes).unwrap();
    assert!(patterns[1].is(&bytes));
    drop(tensor);
    assert_eq!(house.device.committed(), 0);
}

#[test]
fn an_area_is_the_same_for_all_who_ask_for_its_identity() {
    let house = house(4);
    let one = house.model(1, &[MIB]);
    assert!(one.area.is(&house.model(1, &[MIB]).area));
    assert!(!one.area.is(&house.model(2, &[MIB]).area));
}

#[test]
fn an_arena_needs_memory_that_can_be_paged() {
    let unified = virtual_devices(1, VirtualSpec::default()).unwrap().remove(0);
    let told = refusal(
        Arena::new(&unified, &Budget::new(Spec::named("virtual:0")), HostSide::default()).map(drop),
    );
    assert!(told.contains("virtual:0 has no memory of its own"), "{told}");
}

#[test]
fn many_threads_on_one_device_never_read_what_is_wrong() {
    for jitter in [None, Some(3)] {
        let house = house_with(10, jitter);
        let models: Vec<Model> =
            (1..=4).map(|seed| house.model(10 * seed, &[3 * MIB, 700, MIB, 2 * MIB])).collect();
        let streams: Vec<Stream> = (0..2).map(|_| house.device.stream()).collect();
        let wrong = Arc::new(AtomicUsize::new(0));
        thread::scope(|scope| {
            for number in 0..4_u64 {
                let (house, models, streams, wrong) = (&house, &models, &streams, &wrong);
                scope.spawn(move || {
                    let me = owner(&format!("thread {number}"));
                    let mut random = Random(number + 1);
                    for _ in 0..60 {
                        let model = &models[pick(&mut random, 4)];
                        let tensors: Vec<usize> = (0..4).filter(|_| random.below(2) == 0).collect();
                        let block = model.area.block(&tensors);
                        let device = pick(&mut random, 3);
                        let stream = streams.get(device).copied().unwrap_or(Stream::Host);
                        let beside = Beside { bytes: random.below(2) * PAGE };
                        let (pins, working) = model
                            .area
                            .fault(&block, beside, stream, &me, &Patience::FOREVER)
                            .unwrap();
                        if stream == Stream::Host {
                            for tensor in &tensors {
                                assert!(model.check(&house.device, *tensor).unwrap());
                            }
                        } else {
                            let area = model.area.clone();
                            let (patterns, wrong) = (model.patterns.clone(), wrong.clone());
                            let device = house.device.clone();
                            house.device.launch(stream, move || {
                                let right = tensors.into_iter().all(|tensor| {
                                    let pattern = &patterns[tensor];
                                    check(&device, pattern, &area, tensor).unwrap_or(false)
                                });
                                wrong.fetch_add(usize::from(!right), Ordering::SeqCst);
                            });
                        }
                        drop((pins, working));
                        match random.below(8) {
                            0 => drop(house.arena.evict(3 * PAGE)),
                            1 => model.area.renew(),
                            _ => {}
                        }
                    }
                });
            }
        });
        for stream in streams {
            house.device.pages.record(stream).unwrap().wait(None).unwrap();
        }
        assert_eq!(wrong.load(Ordering::SeqCst), 0);
        assert!(house.is_consistent());
        drop(models);
        house.arena.evict(u64::MAX);
        assert_eq!((house.device.committed(), house.budget.used()), (0, 0));
    }
}
