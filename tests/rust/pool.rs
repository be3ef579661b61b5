//! Leases and borrows: one holder per device, in order of arrival.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use coresident::device::{
    Description, Device, DeviceType, Driver, Name, VirtualSpec, virtual_devices,
};
use coresident::pool::{DevicePool, Lease, PoolError, Shared, Wish};
use coresident::wait::{Owner, Parker, Patience, Pending, WaitError};

use super::helpers::{Random, at_once, in_line, refusal, somebody, spawn, this_thread, wait_apart};

fn devices(count: u64) -> Vec<Device> {
    virtual_devices(count, VirtualSpec::default()).unwrap()
}

fn pool(count: u64) -> DevicePool {
    DevicePool::new(devices(count)).unwrap()
}

fn virt(index: u32) -> Name {
    Name::new(DeviceType::Virtual, index).unwrap()
}

/// Takes a device that is free.
fn take(pool: &DevicePool, device: Option<Name>, owner: &Owner) -> Lease {
    pool.try_lease(device, owner).unwrap().expect("the device is not free")
}

/// Joins the line for a device that is not free.
fn join(pool: &DevicePool, device: Option<Name>, owner: &Owner) -> Pending<Shared> {
    in_line(pool.ask(device, owner, Parker::new()).unwrap())
}

/// The device whose turn has come.
fn got(pending: &mut Pending<Shared>) -> Option<Lease> {
    pending.poll().map(|outcome| outcome.unwrap_or_else(|error| panic!("{error}")))
}

fn idle(pool: &DevicePool) -> usize {
    pool.status().unwrap().iter().filter(|device| device.holder.is_none()).count()
}

fn borrow(pool: &DevicePool, wish: &Wish<'_>) -> Option<Lease> {
    pool.borrow(wish, &somebody("borrower")).unwrap()
}

#[test]
fn a_pool_has_each_device_once_and_at_least_one() {
    assert!(refusal(DevicePool::new(vec![])).starts_with("the list of devices is empty"));
    let twice = DevicePool::new([devices(2), devices(3)].concat()).unwrap();
    assert_eq!(twice.devices().unwrap(), devices(3));
}

#[test]
fn a_lease_takes_the_device_that_was_asked_for_or_the_first_idle_one() {
    let (pool, me) = (pool(3), somebody("me"));
    let last = take(&pool, Some(virt(2)), &me);
    let any = [take(&pool, None, &me), take(&pool, None, &me)];
    assert_eq!(any.each_ref().map(|lease| lease.device().name().index()), [0, 1]);
    assert_eq!(last.device().name(), virt(2));
    assert!(pool.try_lease(None, &me).unwrap().is_none());
    assert!(pool.try_lease(Some(virt(2)), &me).unwrap().is_none());
}

#[test]
fn a_device_that_is_not_in_the_pool_is_refused() {
    let (pool, me) = (pool(2), somebody("me"));
    let text = "virtual:7 is not in this pool, which has virtual:0, virtual:1";
    assert_eq!(refusal(pool.try_lease(Some(virt(7)), &me)), text);
    assert_eq!(refusal(pool.lease(Some(virt(7)), &me, &Patience::FOREVER)), text);
    let wish = Wish { prefer: &[virt(0), virt(7)], ..Wish::default() };
    assert_eq!(refusal(pool.borrow(&wish, &me)), text);
}

#[test]
fn waiters_are_served_in_order_of_arrival_each_with_a_device_that_it_takes() {
    let pool = pool(2);
    let holders = [0, 1].map(|at| take(&pool, Some(virt(at)), &somebody("holder")));
    let mut second = join(&pool, Some(virt(1)), &somebody("of the second"));
    let mut any = join(&pool, None, &somebody("of any"));
    let mut late = join(&pool, Some(virt(1)), &somebody("late"));
    let [zero, one] = holders;
    drop(zero);
    assert!(got(&mut second).is_none(), "it waits for the other device");
    assert_eq!(got(&mut any).unwrap().device().name(), virt(0));
    drop(one);
    assert!(got(&mut late).is_none());
    let first = got(&mut second).unwrap();
    drop(first);
    assert_eq!(got(&mut late).unwrap().device().name(), virt(1));
}

#[test]
fn nothing_overtakes_a_waiter() {
    let pool = pool(1);
    let held = take(&pool, None, &somebody("holder"));
    let mut waiting = join(&pool, None, &somebody("waiter"));
    drop(held);
    // The turn has come, though nobody has collected it yet.
    assert!(borrow(&pool, &Wish::default()).is_none());
    assert!(pool.try_lease(None, &somebody("late")).unwrap().is_none());
    drop(got(&mut waiting).unwrap());
    assert!(borrow(&pool, &Wish::default()).is_some());
}

#[test]
fn whoever_gives_up_leaves_the_line_as_if_never_there() {
    let pool = pool(1);
    let held = take(&pool, None, &somebody("holder"));
    let gives_up = join(&pool, None, &somebody("gives up"));
    let too_late = join(&pool, None, &somebody("gives up after its turn"));
    let mut stays = join(&pool, None, &somebody("stays"));
    drop(gives_up);
    drop(held);
    assert!(got(&mut stays).is_none());
    drop(too_late);
    assert!(got(&mut stays).is_some());
}

#[test]
fn a_lease_releases_what_it_holds_once_and_from_any_thread() {
    let pool = pool(1);
    let first = Arc::new(take(&pool, None, &somebody("first")));
    let elsewhere = first.clone();
    spawn(move || elsewhere.release()).join();
    assert!(!first.is_live() && !first.hold().is_live());
    let second = take(&pool, None, &somebody("second"));
    first.release();
    drop(first);
    assert!(second.is_live());
    assert_eq!(idle(&pool), 0);
}

#[test]
fn a_lease_knows_whether_somebody_waits_for_its_device() {
    let pool = pool(2);
    let [zero, one] = [0, 1].map(|at| take(&pool, Some(virt(at)), &somebody("holder")));
    assert!(!zero.is_wanted());
    let waiting = join(&pool, Some(virt(0)), &somebody("waiter"));
    assert!(zero.is_wanted() && !one.is_wanted());
    drop(waiting);
    let any = join(&pool, None, &somebody("waiter"));
    assert!(zero.is_wanted() && one.is_wanted());
    drop(any);
    assert!(!zero.is_wanted());
}

#[test]
fn a_borrow_takes_the_affine_the_preferred_and_then_the_first() {
    let pool = pool(3);
    let served = |wish: &Wish<'_>| borrow(&pool, wish).map(|lease| lease.device().name().index());
    let prefer = Wish { prefer: &[virt(2), virt(1)], ..Wish::default() };
    let affine = Wish { affinity: Some("clip"), ..Wish::default() };
    assert_eq!(served(&Wish::default()), Some(0));
    assert_eq!(served(&prefer), Some(2));
    assert_eq!(served(&Wish { affinity: Some("clip"), ..prefer }), Some(2));
    assert_eq!(served(&affine), Some(2), "where the same key was served last");
    let held = take(&pool, Some(virt(2)), &somebody("holder"));
    assert_eq!(served(&prefer), Some(1));
    assert_eq!(served(&affine), Some(0));
    drop(held);
    assert_eq!(served(&affine), Some(0), "it has moved");
    let lent = [(); 3].map(|()| borrow(&pool, &Wish::default()));
    assert!(lent.iter().all(Option::is_some));
    assert_eq!(served(&Wish::default()), None);
}

#[test]
fn more_affinities_than_are_remembered_do_no_harm() {
    let pool = pool(2);
    let key = |at: u32| format!("model {at}");
    for at in 0..10_000 {
        let (key, prefer) = (key(at), [virt(1)]);
        let wish = Wish { affinity: Some(&key), prefer: &prefer, ..Wish::default() };
        assert_eq!(borrow(&pool, &wish).unwrap().device().name(), virt(1));
    }
    let (forgotten, known) = (key(0), key(9_999));
    let served = |key| borrow(&pool, &Wish { affinity: Some(key), ..Wish::default() });
    assert_eq!(served(&forgotten).unwrap().device().name(), virt(0));
    assert_eq!(served(&known).unwrap().device().name(), virt(1));
}

/// A driver that counts how often it is asked.
struct Asked {
    free: Option<u64>,
    times: AtomicU64,
}

impl Driver for Asked {
    fn free_memory(&self) -> Option<u64> {
        self.times.fetch_add(1, Ordering::Relaxed);
        self.free
    }
}

#[test]
fn a_borrow_with_min_free_asks_the_drivers_of_idle_devices_in_order() {
    let drivers = [Some(1 << 30), None, Some(8 << 30), Some(9 << 30)]
        .map(|free| Arc::new(Asked { free, times: AtomicU64::new(0) }));
    let cards = drivers.iter().zip(0..).map(|(driver, index)| {
        Device::new(Description {
            name: Name::new(DeviceType::Cuda, index).unwrap(),
            model: "card".to_owned(),
            number: None,
            memory: None,
            unified: false,
            bandwidth: None,
            driver: driver.clone(),
        })
    });
    let pool = DevicePool::new(cards.collect()).unwrap();
    let asked = || drivers.each_ref().map(|driver| driver.times.load(Ordering::Relaxed));
    assert!(borrow(&pool, &Wish::default()).is_some());
    assert_eq!(asked(), [0; 4], "nobody asked for free memory");
    let wish = Wish { min_free: Some(4 << 30), ..Wish::default() };
    let lent = borrow(&pool, &wish).unwrap();
    assert_eq!(lent.device().to_string(), "cuda:2");
    assert_eq!(asked(), [1, 1, 1, 0]);
    assert_eq!(borrow(&pool, &wish).unwrap().device().to_string(), "cuda:3");
    let more = Wish { min_free: Some(10 << 30), ..Wish::default() };
    assert!(borrow(&pool, &more).is_none());
}

#[test]
fn a_borrow_of_one_type_takes_no_other() {
    let pool = pool(1);
    let only = |kind| borrow(&pool, &Wish { only: Some(kind), ..Wish::default() });
    assert!(only(DeviceType::Cuda).is_none());
    assert!(only(DeviceType::Virtual).is_some());
}

#[test]
fn a_device_taken_out_of_the_pool_stays_with_its_holder_until_released() {
    let pool = pool(2);
    let held = take(&pool, Some(virt(0)), &somebody("holder"));
    let mut waiting = join(&pool, Some(virt(0)), &somebody("waiter"));
    let only_one = vec![devices(2).remove(1)];
    assert_eq!(pool.reconfigure(only_one.clone()).unwrap(), devices(1));
    assert_eq!(
        refusal(waiting.poll().unwrap()),
        "virtual:0 was taken out of the pool while thread 'waiter' waited for it"
    );
    assert_eq!(pool.devices().unwrap(), only_one);
    assert!(held.is_live());
    assert!(pool.status().unwrap().iter().any(|device| device.draining));
    assert!(matches!(
        pool.try_lease(Some(virt(0)), &somebody("late")),
        Err(PoolError::NotInPool { .. })
    ));
    drop(held);
    assert_eq!(pool.status().unwrap().len(), 1);
}

#[test]
fn a_device_put_back_keeps_its_holder() {
    let pool = pool(2);
    let held = take(&pool, Some(virt(0)), &somebody("holder"));
    pool.reconfigure(vec![devices(2).remove(1)]).unwrap();
    assert!(pool.reconfigure(devices(2)).unwrap().is_empty());
    assert!(pool.try_lease(Some(virt(0)), &somebody("late")).unwrap().is_none());
    drop(held);
    assert_eq!(idle(&pool), 2);
}

#[test]
fn a_new_device_goes_to_who_waits_for_any() {
    let pool = pool(1);
    let _held = take(&pool, None, &somebody("holder"));
    let mut waiting = join(&pool, None, &somebody("waiter"));
    pool.reconfigure(devices(2)).unwrap();
    assert_eq!(got(&mut waiting).unwrap().device().name(), virt(1));
}

#[test]
fn a_refused_change_changes_nothing() {
    let pool = pool(2);
    let held = take(&pool, None, &somebody("holder"));
    assert!(pool.reconfigure(vec![]).is_err());
    assert_eq!(pool.devices().unwrap(), devices(2));
    assert!(held.is_live());
}

#[test]
fn a_closed_pool_turns_everybody_away_but_lets_holders_finish() {
    let (pool, me) = (pool(1), somebody("me"));
    let held = take(&pool, None, &somebody("holder"));
    let parker = Parker::new();
    let pending = in_line(pool.ask(None, &me, parker.clone()).unwrap());
    let waiting = wait_apart(pending, parker);
    pool.close();
    assert!(matches!(waiting.join(), Err(PoolError::Closed)));
    assert!(held.is_live());
    drop(held);
    pool.close();
    let closed = "the device pool is closed";
    assert_eq!(refusal(pool.try_lease(None, &me)), closed);
    assert_eq!(refusal(pool.lease(None, &me, &Patience::FOREVER)), closed);
    assert_eq!(refusal(pool.borrow(&Wish::default(), &me)), closed);
    assert_eq!(refusal(pool.reconfigure(devices(1))), closed);
}

#[test]
fn a_timeout_says_what_was_wanted_and_who_has_it() {
    let pool = pool(2);
    let _held = [0, 1].map(|at| take(&pool, Some(virt(at)), &somebody("holder")));
    let _before = join(&pool, Some(virt(1)), &somebody("before"));
    let brief = Patience::at_most(Duration::from_millis(2));
    let error = refusal(pool.lease(Some(virt(1)), &somebody("me"), &brief));
    let wanted = "timed out after 0.002 s waiting for virtual:1, held by thread 'holder' for 0.";
    assert!(error.starts_with(wanted) && error.ends_with(" s; 1 waiting before"), "{error}");
    let none = Patience::at_most(Duration::ZERO);
    let error = refusal(pool.lease(None, &somebody("me"), &none));
    assert!(
        error.starts_with(
            "timed out after 0 s waiting for any of virtual:0, virtual:1, virtual:0 held by thread \
             'holder' for "
        ),
        "{error}"
    );
}

#[test]
fn a_status_tells_who_holds_and_who_waits() {
    let pool = pool(2);
    let held = take(&pool, Some(virt(0)), &somebody("holder"));
    let lent = borrow(&pool, &Wish::default()).unwrap();
    let _waiting = [Some(virt(0)), None].map(|device| join(&pool, device, &somebody("waiter")));
    held.hand_over();
    let status = pool.status().unwrap();
    let holder = status[0].holder.as_ref().unwrap();
    assert_eq!(holder.owner, "thread 'holder'");
    assert!(holder.handed_over && !holder.borrowed);
    assert!(status[1].holder.as_ref().unwrap().borrowed);
    assert_eq!(status.iter().map(|device| device.waiting.len()).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(status[0].waiting[0].device, Some(virt(0)));
    assert_eq!(status[0].waiting[1].device, None);
    held.adopt(&somebody("heir"));
    assert!(held.is_with_owner());
    let heir = pool.status().unwrap()[0].holder.clone().unwrap();
    assert_eq!((heir.owner.as_str(), heir.handed_over), ("thread 'heir'", false));
    drop(lent);
}

#[test]
fn a_turn_that_came_in_the_instant_of_giving_up_is_kept_after_a_timeout() {
    let pool = pool(1);
    let held = take(&pool, None, &somebody("holder"));
    let parker = Parker::new();
    let pending = in_line(pool.ask(None, &somebody("me"), parker.clone()).unwrap());
    drop(held);
    assert!(pending.wait(&parker, &Patience::at_most(Duration::ZERO)).is_ok());
}

/// Devices of a pool under stress, each with a mark of being used.
#[derive(Clone)]
struct Stressed {
    pool: DevicePool,
    in_use: Arc<Vec<AtomicBool>>,
    served: Arc<AtomicU64>,
}

impl Stressed {
    fn new(count: u64) -> Self {
        let in_use = (0..count).map(|_| AtomicBool::new(false)).collect();
        Self { pool: pool(count), in_use: Arc::new(in_use), served: Arc::default() }
    }

    /// Uses a device, alone.
    fn use_device(&self, lease: &Lease, random: &mut Random) {
        let mark = &self.in_use[lease.device().name().index() as usize];
        assert!(!mark.swap(true, Ordering::Relaxed), "{} has two holders", lease.device());
        for _ in 0..random.below(64) {
            std::hint::spin_loop();
        }
        if random.below(4) == 0 {
            std::thread::yield_now();
        }
        mark.store(false, Ordering::Relaxed);
        self.served.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a device in one of the ways there are; not everybody gets one.
    fn take(&self, me: &Owner, random: &mut Random) -> Option<Lease> {
        let name = u32::try_from(random.below(self.in_use.len() as u64)).unwrap();
        let wanted = (random.below(2) == 0).then(|| virt(name));
        match random.below(8) {
            0 => self.pool.try_lease(wanted, me).unwrap(),
            1 => {
                let wish = Wish { affinity: Some("clip"), ..Wish::default() };
                self.pool.borrow(&wish, me).unwrap()
            }
            2 => {
                let most = Duration::from_micros(random.below(50));
                match self.pool.lease(wanted, me, &Patience::at_most(most)) {
                    Err(PoolError::Wait(WaitError::Timeout { .. })) => None,
                    outcome => Some(outcome.unwrap_or_else(|error| panic!("{error}"))),
                }
            }
            3 => {
                drop(self.pool.ask(wanted, me, Parker::new()).unwrap());
                None
            }
            _ => {
                let lease = self.pool.lease(wanted, me, &Patience::FOREVER);
                Some(lease.unwrap_or_else(|error| panic!("{error}")))
            }
        }
    }
}

#[test]
fn a_device_has_one_holder_whatever_eight_threads_do() {
    const ROUNDS: u64 = 4_000;
    let stressed = Stressed::new(3);
    let shared = stressed.clone();
    at_once(8, move |worker| {
        let me = this_thread(&format!("worker {worker}"));
        let mut random = Random(worker as u64);
        for _ in 0..ROUNDS {
            if let Some(lease) = shared.take(&me, &mut random) {
                shared.use_device(&lease, &mut random);
            }
        }
    });
    assert!(stressed.served.load(Ordering::Relaxed) >= 8 * ROUNDS / 3);
    let status = stressed.pool.status().unwrap();
    assert!(status.iter().all(|device| device.holder.is_none() && device.waiting.is_empty()));
}

#[test]
fn devices_that_come_and_go_lose_no_waiter_and_have_one_holder() {
    let stressed = Stressed::new(4);
    let (shared, done) = (stressed.clone(), Arc::new(AtomicBool::new(false)));
    let (changing, changed) = (stressed.clone(), done.clone());
    let change = spawn(move || {
        let mut random = Random(99);
        while !changed.load(Ordering::Relaxed) {
            // The first device always stays, so that whoever takes any is served.
            let mut some = devices(4);
            some.retain(|device| device.name() == virt(0) || random.below(2) == 0);
            changing.pool.reconfigure(some).unwrap();
            std::thread::yield_now();
        }
    });
    at_once(8, move |worker| {
        let me = this_thread(&format!("worker {worker}"));
        let mut random = Random(worker as u64);
        for _ in 0..2_000 {
            let wanted = (random.below(2) == 0).then(|| *random.pick(&[virt(1), virt(2)]));
            match shared.pool.lease(wanted, &me, &Patience::FOREVER) {
                Ok(lease) => shared.use_device(&lease, &mut random),
                Err(PoolError::NotInPool { .. } | PoolError::Removed { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    done.store(true, Ordering::Relaxed);
    change.join();
    stressed.pool.reconfigure(devices(4)).unwrap();
    assert_eq!(idle(&stressed.pool), 4);
}

#[test]
fn eight_waiters_in_line_are_served_in_that_line() {
    let pool = pool(1);
    let held = take(&pool, None, &somebody("holder"));
    let order = Arc::new(AtomicU64::new(0));
    let waiters: Vec<_> = (0..8u64)
        .map(|place| {
            let (parker, order) = (Parker::new(), order.clone());
            let owner = somebody(&format!("waiter {place}"));
            let pending = in_line(pool.ask(None, &owner, parker.clone()).unwrap());
            spawn(move || {
                let lease = pending.wait(&parker, &Patience::FOREVER).is_ok_and(|lease| {
                    assert_eq!(order.fetch_add(1, Ordering::Relaxed), place);
                    lease.is_live()
                });
                assert!(lease);
            })
        })
        .collect();
    drop(held);
    for waiter in waiters {
        waiter.join();
    }
    assert_eq!(idle(&pool), 1);
}
