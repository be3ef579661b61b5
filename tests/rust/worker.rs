//! Lanes and tickets: every task that is accepted is run or cancelled, once, in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use coresident::wait::{CancelToken, Owner, Parker, Patience, WaitError};
use coresident::worker::{Cancelled, Lane, Ticket, WorkerError};

use super::helpers::{Spawned, at_once, in_line, refusal, somebody, spawn, this_thread};

type Task = u64;
type Outcome = u64;

fn lane() -> Arc<Lane<Task, Outcome>> {
    Lane::new("virtual:0")
}

/// Queues tasks for a worker that does not serve yet.
fn push<const N: usize>(
    lane: &Lane<Task, Outcome>,
    tasks: [Task; N],
) -> [Arc<Ticket<Task, Outcome>>; N] {
    tasks.map(|task| lane.push(task).unwrap().ticket)
}

/// Serves until the lane is closed and empty: a task's outcome is ten times the task. Returns the
/// tasks that it ran, in order.
fn serve(lane: &Arc<Lane<Task, Outcome>>) -> Spawned<Vec<Task>> {
    let lane = lane.clone();
    spawn(move || {
        let mut ran = Vec::new();
        lane.serve(this_thread("worker"));
        while let Some(ticket) = lane.take() {
            if let Some(task) = ticket.start() {
                ran.push(task);
                ticket.finish(task * 10).wake();
            }
        }
        assert!(!lane.leave());
        ran
    })
}

fn result(ticket: &Ticket<Task, Outcome>) -> Option<Outcome> {
    ticket.outcome(|outcome| *outcome)
}

fn wait(ticket: &Arc<Ticket<Task, Outcome>>) -> Result<(), WaitError> {
    let parker = Parker::new();
    ticket.ask(&somebody("me"), parker.clone()).wait(&parker, &Patience::FOREVER)
}

#[test]
fn tasks_run_in_order_and_each_ticket_has_the_outcome_of_its_own_task() {
    let lane = lane();
    let tickets = push(&lane, [3, 1, 2]);
    let worker = serve(&lane);
    for ticket in &tickets {
        wait(ticket).unwrap();
    }
    lane.drain();
    assert_eq!(worker.join(), [3, 1, 2]);
    assert_eq!(tickets.each_ref().map(|ticket| result(ticket)), [Some(30), Some(10), Some(20)]);
    assert_eq!(lane.status().unwrap().finished, 3);
}

#[test]
fn only_the_first_push_asks_for_a_worker() {
    let lane = lane();
    assert!(lane.push(1).unwrap().needs_worker);
    assert!(!lane.push(2).unwrap().needs_worker);
    assert!(!lane.claim_worker());
    assert!(lane.leave(), "tasks are left, and the caller starts another worker");
    assert!(!lane.push(3).unwrap().needs_worker);
    assert_eq!(lane.cancel(None).len(), 3);
    assert!(!lane.leave());
}

#[test]
fn a_drained_lane_takes_no_more_but_runs_what_it_has() {
    let lane = lane();
    let [first, last] = push(&lane, [1, 2]);
    lane.drain();
    assert_eq!(refusal(lane.push(3)), "the worker of virtual:0 is closed and takes no more tasks");
    assert!(lane.is_ready());
    assert_eq!(serve(&lane).join(), [1, 2]);
    assert_eq!((result(&first), result(&last)), (Some(10), Some(20)));
}

#[test]
fn a_cancelled_lane_gives_back_what_was_queued_and_tells_what_runs() {
    let lane = lane();
    let [running, queued] = push(&lane, [1, 2]);
    assert!(Arc::ptr_eq(&lane.try_take().unwrap(), &running));
    assert_eq!(running.start(), Some(1));
    let cancelled = lane.cancel(Some("shutting down"));
    assert_eq!(cancelled.iter().map(|(task, _)| *task).collect::<Vec<_>>(), [2]);
    assert!(queued.is_cancelled() && queued.is_over());
    assert!(running.token().is_cancelled() && !running.is_over());
    assert_eq!(running.token().reason().as_deref(), Some("shutting down"));
    running.finish(10).wake();
    assert_eq!(result(&running), Some(10), "a task that ignores its token still has an outcome");
    assert!(lane.take().is_none());
}

#[test]
fn a_ticket_is_cancelled_or_run_but_never_both() {
    let lane = lane();
    let [ticket] = push(&lane, [7]);
    assert!(matches!(ticket.cancel(None), Cancelled::Queued(7, _)));
    assert!(matches!(ticket.cancel(None), Cancelled::Over));
    assert_eq!(ticket.start(), None);
    assert!(ticket.finish(1).is_empty());
    assert_eq!((result(&ticket), ticket.is_cancelled()), (None, true));
    let [ticket] = push(&lane, [8]);
    assert_eq!((ticket.start(), ticket.start()), (Some(8), None));
    assert!(ticket.running_since().is_some());
    assert!(matches!(ticket.cancel(Some("enough".to_owned())), Cancelled::Running));
    ticket.finish(80).wake();
    ticket.finish(81).wake();
    assert!(matches!(ticket.cancel(None), Cancelled::Over));
    assert_eq!((result(&ticket), ticket.is_cancelled()), (Some(80), false));
}

#[test]
fn everybody_who_waits_for_a_ticket_is_woken_by_its_end() {
    for cancelled in [false, true] {
        let lane = lane();
        let [ticket] = push(&lane, [1]);
        let waiters: Vec<_> = (0..4)
            .map(|at| {
                let parker = Parker::new();
                let pending = in_line(ticket.ask(&somebody(&at.to_string()), parker.clone()));
                super::wait_apart(pending, parker)
            })
            .collect();
        let finished = if cancelled {
            match ticket.cancel(None) {
                Cancelled::Queued(_, finished) => finished,
                other => panic!("{other:?}"),
            }
        } else {
            assert_eq!(ticket.start(), Some(1));
            ticket.finish(10)
        };
        finished.wake();
        for waiter in waiters {
            waiter.join().unwrap();
        }
        assert!(wait(&ticket).is_ok(), "it is over already");
    }
}

#[test]
fn waiting_for_ones_own_worker_is_refused() {
    let lane = lane();
    let [ticket] = push(&lane, [1]);
    let me = this_thread("busy worker");
    lane.serve(me.clone());
    assert!(lane.is_served_by(me.thread_number()) && lane.is_served_by(Owner::this_thread()));
    let parker = Parker::new();
    assert_eq!(
        refusal(ticket.ask(&me, parker.clone()).wait(&parker, &Patience::FOREVER)),
        "this wait would never end: thread 'busy worker' waits for the result of a task on \
         virtual:0, which it holds itself"
    );
    lane.drain();
    assert_eq!(
        refusal(lane.ask_left(&me, parker.clone()).wait(&parker, &Patience::FOREVER)),
        "this wait would never end: thread 'busy worker' waits for the worker of virtual:0 to \
         finish, which it holds itself"
    );
}

#[test]
fn two_workers_that_wait_for_each_other_are_found() {
    let lanes = ["virtual:0", "virtual:1"].map(Lane::<Task, Outcome>::new);
    let tickets = lanes.each_ref().map(|lane| lane.push(1).unwrap().ticket);
    let workers = ["first", "second"].map(somebody);
    for (lane, worker) in lanes.iter().zip(&workers) {
        lane.serve(worker.clone());
    }
    let mut first = in_line(tickets[1].ask(&workers[0], Parker::new()));
    first.watch().unwrap();
    let mut second = in_line(tickets[0].ask(&workers[1], Parker::new()));
    assert_eq!(
        refusal(second.watch()),
        "this wait would never end: thread 'second' waits for the result of a task on virtual:0, \
         held by thread 'first'; thread 'first' waits for the result of a task on virtual:1, held \
         by thread 'second'"
    );
}

#[test]
fn a_wait_for_a_task_says_how_far_it_is() {
    let lane = lane();
    let [ticket] = push(&lane, [1]);
    let token = CancelToken::new();
    token.cancel(None);
    let parker = Parker::new();
    let pending = in_line(ticket.ask(&somebody("me"), parker.clone()));
    assert_eq!(pending.describe().held, ", which has not started");
    ticket.start();
    assert!(pending.describe().held.starts_with(", which has run for 0"));
    assert_eq!(
        refusal(pending.wait(&parker, &Patience::FOREVER.or_cancelled(&token))),
        "cancelled while waiting for the result of a task on virtual:0"
    );
    assert!(!ticket.is_over(), "giving up waiting does not cancel the task");
}

#[test]
fn leaving_wakes_who_waits_for_a_closed_lane() {
    let lane = lane();
    push(&lane, [1, 2]);
    let parker = Parker::new();
    let pending = in_line(lane.ask_left(&somebody("me"), parker.clone()));
    assert_eq!(pending.describe().held, ", with 0 running and 2 queued");
    let waiting = super::wait_apart(pending, parker);
    lane.drain();
    let worker = serve(&lane);
    waiting.join().unwrap();
    assert_eq!(worker.join(), [1, 2]);
    assert!(!lane.status().unwrap().has_worker);
}

#[test]
fn a_worker_that_cannot_be_started_leaves_no_task_without_an_outcome() {
    let lane = lane();
    let tickets = push(&lane, [1, 2]);
    let given_up = lane.give_up(Some("no threads left"));
    assert_eq!(given_up.iter().map(|(task, _)| *task).collect::<Vec<_>>(), [1, 2]);
    assert!(tickets.iter().all(|ticket| ticket.is_cancelled()));
    assert!(!lane.is_ready());
    assert!(lane.push(3).unwrap().needs_worker, "the next task asks again");
}

#[test]
fn a_status_tells_how_a_lane_stands() {
    let lane = lane();
    push(&lane, [1, 2, 3]);
    let ticket = lane.try_take().unwrap();
    ticket.start();
    let status = lane.status().unwrap();
    assert_eq!((status.device.as_str(), status.queued, status.finished), ("virtual:0", 2, 0));
    assert!(status.running_for.is_some() && status.has_worker && !status.closed);
    lane.try_take();
    lane.drain();
    let status = lane.status().unwrap();
    assert_eq!((status.queued, status.finished, status.closed), (1, 1, true));
}

/// What eight threads pushed, by its fate.
#[derive(Default)]
struct Tally {
    accepted: AtomicU64,
    refused: AtomicU64,
    given_back: AtomicU64,
}

#[test]
fn what_eight_threads_push_while_a_lane_closes_is_run_or_cancelled_and_counted_once() {
    for round in 0..20u64 {
        let (lane, tally) = (lane(), Arc::new(Tally::default()));
        assert!(lane.claim_worker());
        let worker = serve(&lane);
        let (pushing, counting) = (lane.clone(), tally.clone());
        at_once(8, move |pusher| {
            let mut tickets = Vec::new();
            for number in 0..200u64 {
                match pushing.push(pusher as u64 * 1_000 + number) {
                    Ok(pushed) => {
                        assert!(!pushed.needs_worker);
                        counting.accepted.fetch_add(1, Ordering::Relaxed);
                        tickets.push(pushed.ticket);
                    }
                    Err(WorkerError::Closed { .. }) => {
                        counting.refused.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => panic!("{error}"),
                }
                if number % 7 == round % 7
                    && let Some(ticket) = tickets.last()
                    && let Cancelled::Queued(_, finished) = ticket.cancel(None)
                {
                    counting.given_back.fetch_add(1, Ordering::Relaxed);
                    finished.wake();
                }
                if pusher == 0 && number == 100 {
                    let cancelled = pushing.cancel(None);
                    counting.given_back.fetch_add(cancelled.len() as u64, Ordering::Relaxed);
                    for (_, finished) in cancelled {
                        finished.wake();
                    }
                }
            }
            assert!(tickets.iter().all(|ticket| wait(ticket).is_ok()));
        });
        let ran = worker.join();
        let [accepted, refused, given_back] = [&tally.accepted, &tally.refused, &tally.given_back]
            .map(|count| count.load(Ordering::Relaxed));
        assert_eq!(accepted + refused, 8 * 200);
        assert_eq!(ran.len() as u64 + given_back, accepted);
        for pusher in 0..8 {
            let own: Vec<_> = ran.iter().filter(|task| *task / 1_000 == pusher).collect();
            assert!(own.is_sorted_by(|a, b| a < b), "the order of one who pushes is kept");
        }
    }
}
