//! What is left of a queue in a file when its process ends.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use coresident::queue::{Durability, JournalError};
use rusqlite::Connection;

use super::*;

/// A folder for one test.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("coresident-queue-{}-{count}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub(super) fn file(&self) -> PathBuf {
        self.0.join("jobs.sqlite")
    }

    fn sql(&self) -> Connection {
        Connection::open(self.file()).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

pub(super) fn open(folder: &Folder, count: u64) -> Queue {
    try_open(folder, count).unwrap()
}

fn try_open(folder: &Folder, count: u64) -> Result<Queue, QueueError> {
    JobQueue::open(&folder.file(), Durability::Process, devices(count), settings(plain()).0)
}

#[test]
fn who_is_forgotten_is_in_the_file_no_more_and_gains_nothing_by_a_new_process() {
    let folder = Folder::new();
    let open = |remembered| {
        let (settings, clock) = settings(Rules { remembered, ..plain() });
        let settings = Settings { history: 0, ..settings };
        let queue = JobQueue::open(&folder.file(), Durability::Process, devices(1), settings);
        (queue.unwrap(), clock)
    };
    let users = || -> Vec<String> {
        let sql = folder.sql();
        let mut names = sql.prepare("SELECT name FROM users ORDER BY name").unwrap();
        names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    let (queue, clock): (Queue, _) = open(1);
    let mut now = 1000 * SECOND;
    for (user, seconds) in [("ann", 40), ("bob", 60), ("cleo", 50)] {
        queue.submit(taking(user, seconds)).unwrap();
        let claim = claimed(&queue, 0);
        now += seconds * SECOND;
        clock.set(now);
        claim.finish(Outcome::done(0)).unwrap();
    }
    queue.close();
    drop(queue);
    // She came when ann was forgotten, and began where ann was.
    assert_eq!(users(), ["cleo"]);
    // Where she was is where those are who come from now on.
    let (queue, _) = open(0);
    queue.submit(taking("bob", 1)).unwrap();
    queue.submit(taking("ann", 1)).unwrap();
    queue.close();
    drop(queue);
    assert_eq!(users(), [""; 0]);
    let at: Micros =
        folder.sql().query_row("SELECT virtual_time FROM fairness", [], |row| row.get(0)).unwrap();
    assert_eq!(at, 90 * SECOND);
}

#[test]
fn every_job_is_there_again_as_it_was() {
    let folder = Folder::new();
    let queue = open(&folder, 2);
    let full = Spec {
        payload: coresident::queue::Payload::Json(r#"{"prompt":"ü"}"#.into()),
        priority: 3,
        batch: Some("b".into()),
        tags: ["x".into()].into(),
        devices: Some(vec![name(1)]),
        memory: None,
        estimate: Some(5 * SECOND),
        max_attempts: Some(7),
        ..needing("ann", &["clip", "unet"])
    };
    queue.submit(full).unwrap();
    queue.submit_all(vec![Spec::of("bob", b"\0\xff"); 4]).unwrap();
    claimed(&queue, 0)
        .finish(Outcome::Done { value: Some(1), path: Some("/out.png".into()) })
        .unwrap();
    claimed(&queue, 0).finish(Outcome::failed("no luck")).unwrap();
    queue.cancel(&Selection::job(4), Some("enough")).unwrap();
    let before = queue.jobs(&Selection::default(), None).unwrap();
    drop(queue);
    let queue = open(&folder, 2);
    let after = queue.jobs(&Selection::default(), None).unwrap();
    assert_eq!(states(&before), states(&after));
    for (before, after) in before.iter().zip(&after) {
        let told = |job: &Job<u64>| {
            let now = job.now();
            let what =
                (job.id, job.user.clone(), job.batch.clone(), job.tags.clone(), job.needs.clone());
            let rest = (job.payload.clone(), job.submitted, job.max_attempts);
            (
                what,
                rest,
                (now.attempts, now.priority, now.device),
                (now.error, now.path, now.finished),
            )
        };
        assert_eq!(told(before), told(after));
    }
    assert_eq!(after[1].now().path.as_deref(), Some("/out.png"));
    assert!(after[1].now().earlier && after[1].value(|_| ()).is_none());
    let claims = [claimed(&queue, 0), claimed(&queue, 1)];
    assert_eq!(claims.map(|claim| claim.job().id), [5, 1], "the first may run on 1 only");
    assert_eq!(queue.submit(spec("ann")).unwrap().id, 6, "numbers are not used again");
}

/// What the next process finds if this one ends now, without being told.
fn killed(folder: &Folder) -> (Queue, Folder) {
    let copy = Folder::new();
    for file in ["jobs.sqlite", "jobs.sqlite-wal"] {
        let from = folder.0.join(file);
        if from.exists() {
            std::fs::copy(from, copy.0.join(file)).unwrap();
        }
    }
    (open(&copy, 2), copy)
}

#[test]
fn what_ran_is_queued_again_until_its_attempts_are_used() {
    let mut folder = Folder::new();
    let mut queue = open(&folder, 2);
    queue.submit(Spec { max_attempts: Some(2), ..spec("ann") }).unwrap();
    for attempt in 1..=2 {
        let claim = claimed(&queue, 0);
        assert_eq!(claim.attempt(), attempt);
        let written = "SELECT state FROM jobs";
        let written: String = folder.sql().query_row(written, [], |row| row.get(0)).unwrap();
        assert_eq!(written, "running", "a claim is written before anybody has it");
        (queue, folder) = killed(&folder);
        let now = queue.job(1).unwrap().now();
        let expected = [JobState::Queued, JobState::Failed][usize::try_from(attempt - 1).unwrap()];
        assert_eq!((now.state, now.attempts), (expected, attempt));
        let error = now.error.unwrap();
        assert!(error.starts_with("the process that ran it ended"), "{error}");
    }
    assert!(claim(&queue, 0).is_none());
}

#[test]
fn what_had_used_its_attempts_has_failed_with_the_reason() {
    let folder = Folder::new();
    let queue = open(&folder, 2);
    queue.submit(Spec { max_attempts: Some(1), ..spec("ann") }).unwrap();
    let _running = claimed(&queue, 0);
    let (queue, _copy) = killed(&folder);
    let now = queue.job(1).unwrap().now();
    assert_eq!(now.state, JobState::Failed);
    let error = "the process that ran it ended, and all 1 attempts have been used";
    assert_eq!(now.error.as_deref(), Some(error));
}

#[test]
fn what_was_told_to_stop_is_cancelled_and_not_run_again() {
    let folder = Folder::new();
    let queue = open(&folder, 2);
    queue.submit(spec("ann")).unwrap();
    let _running = claimed(&queue, 0);
    queue.cancel(&Selection::job(1), Some("enough")).unwrap();
    let (queue, _copy) = killed(&folder);
    let now = queue.job(1).unwrap().now();
    assert_eq!((now.state, now.error.as_deref()), (JobState::Cancelled, Some("cancelled: enough")));
}

#[test]
fn a_file_has_one_owner_at_a_time_and_readers_may_look() {
    let folder = Folder::new();
    let queue = open(&folder, 1);
    queue.submit(spec("ann")).unwrap();
    let refused = refusal(try_open(&folder, 1));
    assert!(
        refused
            .ends_with("is owned by another queue of this process: a file has one queue at a time")
    );
    let seen: i64 =
        folder.sql().query_row("SELECT count(*) FROM jobs", [], |row| row.get(0)).unwrap();
    assert_eq!(seen, 1);
    queue.close();
    let next = open(&folder, 1);
    assert_eq!(next.queued().unwrap(), 1, "closing leaves it to the next");
    drop(next);
    drop(open(&folder, 1));
}

#[test]
fn a_closed_queue_gives_its_file_up_when_its_last_claim_ends() {
    let folder = Folder::new();
    let queue = open(&folder, 1);
    queue.submit(spec("ann")).unwrap();
    let claim = claimed(&queue, 0);
    queue.close();
    assert!(try_open(&folder, 1).is_err());
    assert_eq!(claim.finish(Outcome::done(1)).unwrap(), JobState::Done);
    assert_eq!(open(&folder, 1).job(1).unwrap().state(), JobState::Done);
}

#[test]
fn who_waits_for_a_job_that_is_left_to_the_next_process_is_told_so() {
    let folder = Folder::new();
    let queue = open(&folder, 1);
    let job = queue.submit(spec("ann")).unwrap();
    let parker = coresident::wait::Parker::new();
    let pending = in_line(job.ask(&somebody("me"), parker.clone()).unwrap());
    let waiting = crate::helpers::wait_apart(pending, parker);
    queue.close();
    assert_eq!(refusal(waiting.join()), "the queue is closed");
    assert_eq!(job.state(), JobState::Queued);
}

#[test]
fn what_cannot_be_written_has_not_happened_and_nothing_is_lost() {
    let folder = Folder::new();
    let queue = open(&folder, 1);
    let jobs = queue.submit_all(vec![spec("ann"); 2]).unwrap();
    let running = claimed(&queue, 0);
    let status = || {
        let status = queue.status().unwrap();
        let user = status.users[0].clone();
        (status.counts, user.queued, user.running, user.gpu_time)
    };
    let before = status();
    let blocker = folder.sql();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let is_locked = |error: &QueueError| {
        matches!(error, QueueError::Journal(JournalError::Failed { locked: true, .. }))
    };
    let mut refusals = vec![
        queue.submit(spec("bob")).err(),
        queue.claim(name(0), &this_thread("worker"), &LOOK).err(),
        queue.cancel(&Selection::job(jobs[1].id), None).err(),
        queue.delete(&Selection::job(jobs[1].id)).err(),
        queue.rearrange(&Selection::job(jobs[1].id), Some(true), Some(4)).err(),
        queue.set_limits(&"ann".into(), |limits| limits.weight = 9.0).err(),
    ];
    refusals.push(running.finish(Outcome::done(5)).err());
    for refused in &refusals {
        assert!(refused.as_ref().is_some_and(is_locked), "{refused:?}");
    }
    let told = refusals[0].as_ref().unwrap().to_string();
    assert!(told.ends_with("failed: somebody else has locked it for more than 0.5 s"), "{told}");
    assert_eq!(status(), before);
    assert_eq!(jobs[1].now().priority, 0);
    assert!(running.is_open());
    blocker.execute_batch("ROLLBACK").unwrap();
    assert_eq!(running.finish(Outcome::done(5)).unwrap(), JobState::Done);
    assert_eq!(jobs[0].value(|value| *value), Some(5));
    assert_eq!(claimed(&queue, 0).job().id, jobs[1].id);
}

#[test]
fn a_claim_is_given_back_though_nobody_can_write_it() {
    let folder = Folder::new();
    let queue = open(&folder, 1);
    let job = queue.submit(spec("ann")).unwrap();
    let claim = claimed(&queue, 0);
    let blocker = folder.sql();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    claim.release();
    assert_eq!(job.state(), JobState::Queued);
    blocker.execute_batch("ROLLBACK").unwrap();
    assert_eq!(claimed(&queue, 0).finish(Outcome::done(1)).unwrap(), JobState::Done);
}

#[test]
fn a_file_of_another_program_or_of_a_newer_version_is_refused() {
    let folder = Folder::new();
    folder.sql().execute_batch("CREATE TABLE theirs (x)").unwrap();
    let refused = refusal(try_open(&folder, 1));
    assert!(refused.ends_with("is no queue: it is the database of another program"), "{refused}");
    let folder = Folder::new();
    std::fs::write(folder.file(), vec![7; 4096]).unwrap();
    let refused = refusal(try_open(&folder, 1));
    assert!(refused.ends_with("is no queue: it is no database of SQLite"), "{refused}");
    let folder = Folder::new();
    drop(open(&folder, 1));
    folder.sql().execute_batch("PRAGMA user_version = 99").unwrap();
    let refused = refusal(try_open(&folder, 1));
    assert!(refused.contains("is of version 99, and this library writes version 2"), "{refused}");
    let refused = refusal(JobQueue::<u64>::open(
        &folder.0.join("no folder").join("jobs.sqlite"),
        Durability::Process,
        devices(1),
        Settings::default(),
    ));
    assert!(refused.starts_with("opening ") && refused.contains("No such file"), "{refused}");
}

#[test]
fn a_file_of_the_first_version_becomes_one_of_this() {
    let folder = Folder::new();
    let queue = open(&folder, 1);
    queue.submit(spec("ann")).unwrap();
    queue.set_limits(&"ann".into(), |limits| limits.weight = 2.0).unwrap();
    drop(queue);
    let older = "ALTER TABLE users DROP COLUMN last_hour; DROP TABLE fairness;
        PRAGMA user_version = 1";
    folder.sql().execute_batch(older).unwrap();
    let queue = open(&folder, 1);
    assert_eq!(queue.queued().unwrap(), 1);
    assert!((queue.status().unwrap().users[0].weight - 2.0).abs() < 1e-9);
    let version: i64 = folder.sql().query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(version, 2);
}

#[test]
fn accounts_and_limits_outlive_the_process_and_so_do_turns() {
    let folder = Folder::new();
    let queue = open(&folder, 1);
    let limits = |limits: &mut Limits| limits.gpu_time_per_hour = Some(1000 * SECOND);
    queue.set_limits(&"ann".into(), limits).unwrap();
    for user in ["ann", "bob"] {
        queue.submit_all(vec![taking(user, 100); 3]).unwrap();
    }
    let first = claimed(&queue, 0);
    assert_eq!(&*first.job().user, "ann");
    let (queue, _copy) = killed(&folder);
    let status = queue.status().unwrap();
    assert_eq!((status.users[0].gpu_time, status.users[0].last_hour), (100 * SECOND, 100 * SECOND));
    assert_eq!(&*claimed(&queue, 0).job().user, "bob", "ann has had a turn");
}

#[test]
fn a_device_that_is_gone_leaves_its_jobs_to_a_process_that_has_it() {
    let folder = Folder::new();
    let queue = open(&folder, 2);
    queue.submit(Spec { devices: Some(vec![name(1)]), ..spec("ann") }).unwrap();
    drop(queue);
    let queue = open(&folder, 1);
    let now = queue.job(1).unwrap().now();
    assert!(now.error.is_some_and(|error| error.contains("could never run")));
    assert!(claim(&queue, 0).is_none());
    drop(queue);
    let queue = open(&folder, 2);
    assert!(claim(&queue, 1).is_some());
}

#[test]
fn a_clock_that_was_turned_back_changes_no_order() {
    let folder = Folder::new();
    let (late, clock) = settings(plain());
    clock.set(1_000_000 * SECOND);
    let queue: Queue = JobQueue::open(&folder.file(), Durability::Power, devices(1), late).unwrap();
    let first = queue.submit(spec("ann")).unwrap().id;
    drop(queue);
    let queue = open(&folder, 1);
    queue.submit(spec("ann")).unwrap();
    assert_eq!(claimed(&queue, 0).job().id, first);
}

#[test]
fn many_threads_share_their_writes_and_each_hears_of_its_own() {
    let folder = Folder::new();
    let queue = open(&folder, 4);
    let done = at_once(4, {
        let queue = queue.clone();
        move |worker| {
            for _ in 0..25 {
                queue.submit(Spec { devices: Some(vec![name(worker)]), ..spec("ann") }).unwrap();
                let claim = claimed(&queue, worker);
                assert_eq!(claim.finish(Outcome::done(1)).unwrap(), JobState::Done);
            }
            25
        }
    });
    assert_eq!(done.iter().sum::<u64>(), 100);
    drop(queue);
    let rows: i64 = folder
        .sql()
        .query_row("SELECT count(*) FROM jobs WHERE state = 'done'", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 100);
}
