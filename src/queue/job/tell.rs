//! Telling those who watch a job what happens to it, in one step with what it is now.

use std::sync::{Arc, Weak};

use super::super::clock::Micros;
use super::super::event::{Aftermath, Event, Kind, Subscriber, Topic};
use super::{Job, JobState, Live};
use crate::sync::{Mutant, planted};

impl<V: Send + Sync + 'static> Job<V> {
    /// Changes what the job is now and tells those who watch, in one step.
    pub(in crate::queue) fn change(
        self: &Arc<Self>,
        kind: Kind,
        time: Micros,
        aftermath: &mut Aftermath<V>,
        change: impl FnOnce(&mut Live<V>),
    ) {
        let mut live = self.live.lock();
        change(&mut live);
        self.tell(&mut live, kind, time, None, aftermath);
        if live.now.state.is_over() && !planted(Mutant::FinishForgetsWaiters) {
            aftermath.wakers.extend(live.wakers());
        }
    }

    /// Says where the claim of this number is; nothing if it is not the one that runs.
    pub(in crate::queue) fn advance(
        self: &Arc<Self>,
        claim: u64,
        kind: Kind,
        time: Micros,
        preview: Option<V>,
        change: impl FnOnce(&mut Live<V>),
    ) -> Result<Aftermath<V>, Option<V>> {
        let mut aftermath = Aftermath::default();
        let mut live = self.live.lock();
        if live.claim != Some(claim) {
            return Err(preview);
        }
        if !std::mem::replace(&mut live.begun, true) {
            self.tell(&mut live, Kind::Started, time, None, &mut aftermath);
        }
        if kind != Kind::Started {
            change(&mut live);
            self.tell(&mut live, kind, time, preview.map(Arc::new), &mut aftermath);
        }
        Ok(aftermath)
    }

    fn tell(
        self: &Arc<Self>,
        live: &mut Live<V>,
        kind: Kind,
        time: Micros,
        preview: Option<Arc<V>>,
        aftermath: &mut Aftermath<V>,
    ) {
        let event = self.event(live, kind, time, preview);
        live.watchers.retain(|watcher| watcher.strong_count() > 0);
        for watcher in live.watchers.iter().filter_map(Weak::upgrade) {
            watcher.push(&event, aftermath);
            aftermath.hold(watcher);
        }
        self.home.subscribers.push(&event, aftermath);
        // With what it shows, if nobody kept it.
        aftermath.gone.push(event);
    }

    fn event(
        self: &Arc<Self>,
        live: &Live<V>,
        kind: Kind,
        time: Micros,
        preview: Option<Arc<V>>,
    ) -> Event<V> {
        let now = &live.now;
        let running = !matches!(kind, Kind::Queued);
        Event {
            kind,
            job: self.clone(),
            device: now.device.filter(|_| running),
            time,
            attempt: now.attempts,
            stage: now.stage.clone(),
            step: now.progress.filter(|_| kind == Kind::Step),
            preview,
            error: now.error.clone(),
        }
    }

    /// What happens to it: first what is so now, then every change up to its end.
    #[must_use]
    pub fn watch(self: &Arc<Self>, time: Micros, limit: usize) -> Arc<Subscriber<V>> {
        let mut live = self.live.lock();
        let kind = match live.now.state {
            JobState::Queued => Kind::Queued,
            JobState::Running if live.now.progress.is_some() => Kind::Step,
            JobState::Running if live.now.stage.is_some() => Kind::Stage,
            JobState::Running if live.begun => Kind::Started,
            JobState::Running => Kind::Claimed,
            JobState::Done => Kind::Finished,
            JobState::Failed => Kind::Failed,
            JobState::Cancelled => Kind::Cancelled,
        };
        let first = self.event(&live, kind, time, None);
        let subscriber = Subscriber::new(Topic::Job(self.clone()), limit, Some(first));
        live.watchers.push(Arc::downgrade(&subscriber));
        subscriber
    }
}
