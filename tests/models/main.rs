//! The rules of the primitives, each explored by loom through the shipped types.
//!
//! Every rule is a model; beside it stand the mutants that break it. A model must hold over every
//! interleaving within a bound on preemptions, and must fail with each of its mutants, so that none
//! holds by accident. loom reports a lost wake-up as a deadlock; it has no clock, so where people
//! would time out, a model cancels.

#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a model fails")]
#![allow(clippy::arc_with_non_send_sync, reason = "loom's threads take turns on one")]

mod arena;
mod budget;
mod load_lock;
mod pool;
mod queue;
mod residency;
mod streaming;
mod trace;
mod wait;
mod weights;
mod worker;

use std::process::{Command, ExitStatus, Stdio, exit};
use std::{env, panic};

use coresident::sync::{Mutant, plant};
use coresident::wait::{Kind, Owner};

/// Makes a test of every rule, with a bound on preemptions for each room, and does not compile while some mutant breaks none.
macro_rules! rules {
    ($($room:ident by $bound:literal { $($rule:ident: $($mutant:ident),+;)+ })+) => {
        $($(#[test]
        fn $rule() {
            check(stringify!($rule), $room::$rule, &[$(Mutant::$mutant),+], $bound);
        })+)+

        const _: fn(Mutant) = |mutant| {
            #[allow(unreachable_patterns, reason = "several rules may notice the same mutant")]
            match mutant { $($($(Mutant::$mutant => (),)+)+)+ }
        };
    };
}

rules! {
    pool by 4 {
        a_device_has_one_holder_at_a_time: BorrowOvertakes, ReleaseForgetsWaiters;
        waiters_are_served_in_order_of_arrival: LastComeFirstServed;
        a_borrow_never_overtakes_a_waiting_lease: BorrowOvertakes;
        a_lease_released_twice_never_releases_anothers: ReleaseOfAnothers;
        a_cancel_racing_a_grant_leaves_nothing_behind: AbandonLeavesTicket;
        closing_a_pool_turns_away_whoever_waits: CloseForgetsWaiters;
        a_device_put_back_into_the_pool_keeps_its_holder: PutBackForgetsHolder;
        a_thread_that_ends_releases_all_but_what_it_handed_over: ThreadEndForgotten, HandOverForgotten;
    }
    budget by 4 {
        no_more_is_reserved_than_there_is: BudgetOverdrawn;
        bytes_are_granted_in_order_of_arrival: ReserveOvertakes;
        bytes_that_come_back_go_to_who_waits: BudgetReleaseWakesNobody, ReleaseForgetsBytes;
        a_cancel_racing_a_grant_leaves_no_bytes_behind: AbandonLeavesTicket;
        who_can_never_be_served_below_a_new_limit_hears_of_it: LowerLimitForgetsWaiters;
        splitting_and_releasing_at_once_keep_the_sum: SplitKeepsBytes;
    }
    load_lock by 4 {
        a_writer_is_alone: WriterIgnoresReaders;
        new_readers_wait_behind_a_waiting_writer: ReadersPassWriters;
        readers_that_wait_go_after_one_writer: WritersPassReaders;
        a_writer_that_gives_up_lets_readers_go: AbandonedWriterBlocks;
        a_writer_that_gives_up_lets_readers_go_before_later_writers: AbandonedWriterBlocks;
        a_cancel_racing_a_turn_leaves_nothing_behind: AbandonLeavesTicket;
        a_guard_released_twice_never_releases_anothers: ReleaseOfAnothers;
    }
    weights by 4 {
        one_load_serves_all_who_come_meanwhile: EveryOneLoads, LandingForgetsWaiters;
        who_waits_for_a_load_that_is_given_up_loads_it_himself: LandingForgetsWaiters;
        what_was_invalidated_while_it_was_loaded_is_had_by_nobody_else: StaleLoadIsAdopted;
        what_somebody_has_is_never_evicted: EvictsWhatIsUsed;
    }
    arena by 4 {
        a_page_stays_and_is_right_while_it_is_pinned: PinnedPageLeaves, ContentIsNotAwaited,
            OfferIsNotHeard;
        a_page_leaves_after_the_streams_that_use_it: PageLeavesEarly, UseIsForgotten;
        a_page_leaves_after_all_who_use_it_on_one_stream: LastMarkWins;
        what_may_be_wrong_is_filled_again_before_anybody_uses_it: StalePageIsUsed;
        pages_and_ledger_agree_when_faults_and_evictions_race: LeavingKeepsBytes, PinnedPageLeaves;
        a_fault_that_is_given_up_leaves_nothing: GivenUpStaysClaimed;
        who_waits_for_bytes_lets_others_have_his_pages: WaiterKeepsPages, TakenStakeIsStillCounted;
    }
    residency by 4 {
        what_a_job_uses_is_noted_whatever_others_use: OthersUseIsOwn;
    }
    trace by 4 {
        an_event_is_read_whole_or_not_at_all: TornEventIsRead;
        of_two_who_record_in_one_place_one_is_kept_whole: PlaceIsNotClaimed;
    }
    streaming by 2 {
        a_block_is_there_and_right_while_it_is_visited: RetiredWhileUsed, RetiredBytesAreLost,
            OverStaysPinned;
        a_block_that_comes_unexpectedly_is_right: BroughtInVainStays;
        an_end_in_the_middle_leaves_nothing_pinned: ClosedStaysPinned;
        what_is_streamed_is_nobody_elses: OthersAreLetIn;
    }
    worker by 4 {
        a_task_is_run_or_cancelled_but_never_both: CancelledTaskRuns;
        the_end_of_a_ticket_wakes_who_waits_for_it: FinishForgetsWaiters;
        a_drained_lane_runs_all_it_accepted_in_order: CloseDropsQueued, PushForgetsWorker;
        a_push_racing_a_drain_is_refused_or_run: ClosedLaneAccepts;
        a_cancelled_lane_leaves_no_ticket_without_outcome: CancelledTaskRuns;
        a_lane_has_one_worker: EveryPushNeedsWorker;
        a_worker_that_leaves_leaves_no_task_behind: LeaveForgetsQueued;
        a_worker_that_leaves_wakes_who_waits_for_it: LeaveForgetsWaiters;
        a_worker_that_never_starts_wakes_who_waits_for_it: LeaveForgetsWaiters;
    }
    queue by 4 {
        a_job_is_with_one_device_at_a_time: OfferedTwice;
        who_waits_for_a_job_is_woken_by_it: SubmitForgetsWaiters;
        a_user_is_known_while_a_job_of_his_comes: ComingJobHasNoUser;
        a_cancel_that_is_counted_ends_the_job_as_cancelled: FinishOvertakesCancel;
        a_job_that_is_cancelled_while_it_runs_is_told: CancelForgetsToken, FinishOvertakesCancel;
        an_offer_that_races_a_cancel_is_accepted_or_void: FinishOvertakesCancel, CancelForgetsToken;
        a_cancel_racing_a_grant_leaves_no_job_kept: AbandonLeavesTicket;
        closing_a_queue_turns_away_whoever_waits: CloseForgetsWaiters;
        the_end_of_a_job_wakes_who_waits_for_it: FinishForgetsWaiters;
    }
    wait by 4 {
        a_wake_before_the_sleep_is_not_lost: EarlyWakeIsLost;
        a_cancel_wakes_who_waits: CancelForgetsWaiters;
        a_cycle_of_waits_is_found_by_exactly_one: NoDeadlockCheck;
        a_task_that_waits_for_its_own_worker_is_refused: NoDeadlockCheck;
        waiting_for_any_device_ends_with_the_first: OneStuckAlternativeIsDeadlock;
        what_was_handed_over_is_in_no_cycle: HandOverForgotten;
        a_wait_that_can_end_is_never_refused: GrantedWaitCountsAsStuck;
        a_writer_waits_for_every_reader_that_goes_before_it: NoDeadlockCheck;
        a_reader_waits_for_no_writer_that_goes_after_it: GrantedWaitCountsAsStuck;
        a_refused_wait_stops_nobody: RefusedWaitStillStops;
    }
    // Ten times as many interleavings with one preemption more, and the mutant needs no more.
    wait by 3 {
        a_look_at_the_graph_sees_no_line_change_its_order: AbandonedUnderWatch;
    }
}

/// Names the mutant that a process of ours is to plant.
const PLANTED: &str = "CORESIDENT_PLANTED_MUTANT";
/// How such a process says that its model has failed.
const FOUND: i32 = 42;

/// Checks that `model` holds, and that it fails with each of the mutants.
fn check(rule: &str, model: fn(), mutants: &[Mutant], bound: usize) {
    if let Ok(name) = env::var(PLANTED) {
        let mutant = mutants.iter().find(|mutant| format!("{mutant:?}") == name);
        plant(Some(*mutant.unwrap()));
        // Nothing unwinds: a model that has failed cannot take its locks again to clean up.
        panic::set_hook(Box::new(|_| exit(FOUND)));
        return explore(model, bound);
    }
    explore(model, bound);
    for mutant in mutants {
        let status = run_mutated(rule, *mutant);
        assert_eq!(status.code(), Some(FOUND), "{rule} with {mutant:?}: {status}");
    }
}

/// Runs the test of one rule with a mutant. A process of its own keeps the mutant to itself.
fn run_mutated(rule: &str, mutant: Mutant) -> ExitStatus {
    let mut tests = Command::new(env::current_exe().unwrap());
    tests.args(["--exact", rule]).env(PLANTED, format!("{mutant:?}"));
    tests.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap()
}

/// Every interleaving in which threads are stopped at most so many times where they could go on.
fn explore(model: fn(), bound: usize) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(bound);
    builder.check(model);
}

/// The plain code of the thread with this number.
fn owner(thread: u64) -> Owner {
    Owner::with_thread(Kind::Thread, thread, thread.to_string())
}
