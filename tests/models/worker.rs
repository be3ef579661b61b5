//! `Lane` and `Ticket`.

use std::sync::Arc;

use coresident::wait::{Parker, Patience};
use coresident::worker::{Cancelled, Lane as AnyLane, Ticket};
use loom::thread::{self, JoinHandle};

use crate::owner;

/// Tasks are numbers, and yield nothing.
type Lane = AnyLane<u32, ()>;

/// Serves the lane until it is closed. Returns the tasks in the order in which they ran.
fn serve(lane: &Lane) -> Vec<u32> {
    lane.serve(owner(9));
    let mut ran = Vec::new();
    while let Some(ticket) = lane.take() {
        if let Some(task) = ticket.start() {
            ran.push(task);
            ticket.finish(()).wake();
        }
    }
    assert!(!lane.leave());
    ran
}

/// A lane with a thread that serves it.
fn served() -> (Arc<Lane>, JoinHandle<Vec<u32>>) {
    let lane = Lane::new("virtual:0");
    assert!(lane.claim_worker());
    let worker = thread::spawn({
        let lane = lane.clone();
        move || serve(&lane)
    });
    (lane, worker)
}

fn wait_for(ticket: &Arc<Ticket<u32, ()>>) {
    let parker = Parker::new();
    ticket.ask(&owner(1), parker.clone()).wait(&parker, &Patience::FOREVER).unwrap();
}

fn wait_until_left(lane: &Arc<Lane>) {
    let parker = Parker::new();
    lane.ask_left(&owner(1), parker.clone()).wait(&parker, &Patience::FOREVER).unwrap();
}

pub(crate) fn a_task_is_run_or_cancelled_but_never_both() {
    let (lane, worker) = served();
    let ticket = lane.push(1).unwrap().ticket;
    lane.drain();
    let was_queued = match ticket.cancel(None) {
        Cancelled::Queued(..) => true,
        Cancelled::Running => false,
        Cancelled::Over => {
            assert!(ticket.is_over());
            false
        }
    };
    let ran = worker.join().unwrap();
    assert_eq!(ran.is_empty(), was_queued);
    assert_eq!(ticket.is_cancelled(), was_queued);
    assert_eq!(ticket.outcome(|()| ()).is_some(), !was_queued);
}

pub(crate) fn the_end_of_a_ticket_wakes_who_waits_for_it() {
    let (lane, worker) = served();
    let ticket = lane.push(1).unwrap().ticket;
    wait_for(&ticket);
    assert!(ticket.is_over());
    lane.drain();
    worker.join().unwrap();
}

pub(crate) fn a_drained_lane_runs_all_it_accepted_in_order() {
    let (lane, worker) = served();
    let first = lane.push(1).unwrap().ticket;
    wait_for(&first);
    lane.push(2).unwrap();
    lane.push(3).unwrap();
    lane.drain();
    assert_eq!(worker.join().unwrap(), [1, 2, 3]);
}

pub(crate) fn a_push_racing_a_drain_is_refused_or_run() {
    let (lane, worker) = served();
    let pusher = thread::spawn({
        let lane = lane.clone();
        move || lane.push(1).is_ok()
    });
    lane.drain();
    let accepted = pusher.join().unwrap();
    assert_eq!(worker.join().unwrap().len(), usize::from(accepted));
}

pub(crate) fn a_cancelled_lane_leaves_no_ticket_without_outcome() {
    let (lane, worker) = served();
    let tickets = [1, 2].map(|task| lane.push(task).unwrap().ticket);
    let cancelled = lane.cancel(None);
    let ran = worker.join().unwrap();
    assert_eq!(ran.len() + cancelled.len(), tickets.len());
    assert!(tickets.iter().all(|ticket| ticket.is_over()));
}

pub(crate) fn a_lane_has_one_worker() {
    let lane = Lane::new("virtual:0");
    let pusher = thread::spawn({
        let lane = lane.clone();
        move || lane.push(1).unwrap().needs_worker
    });
    let here = lane.push(2).unwrap().needs_worker;
    assert!(here ^ pusher.join().unwrap());
}

pub(crate) fn a_worker_that_leaves_leaves_no_task_behind() {
    let lane = Lane::new("virtual:0");
    assert!(lane.claim_worker());
    let leaving = thread::spawn({
        let lane = lane.clone();
        move || lane.leave()
    });
    let pushed = lane.push(1).unwrap();
    let left_behind = leaving.join().unwrap();
    assert!(pushed.needs_worker ^ left_behind);
}

pub(crate) fn a_worker_that_leaves_wakes_who_waits_for_it() {
    let (lane, worker) = served();
    lane.drain();
    wait_until_left(&lane);
    assert!(!lane.status().unwrap().has_worker);
    worker.join().unwrap();
}

pub(crate) fn a_worker_that_never_starts_wakes_who_waits_for_it() {
    let lane = Lane::new("virtual:0");
    let pushed = lane.push(1).unwrap();
    let starter = thread::spawn({
        let lane = lane.clone();
        move || lane.give_up(None).into_iter().for_each(|(_, finished)| finished.wake())
    });
    lane.drain();
    wait_until_left(&lane);
    wait_for(&pushed.ticket);
    starter.join().unwrap();
}
