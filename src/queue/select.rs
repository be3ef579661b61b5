//! Which jobs are meant.

use std::sync::Arc;

use super::job::{Job, JobState};
use super::state::State;

/// Jobs that are all of what is given; nothing given means all.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Those with these numbers.
    pub ids: Option<Vec<u64>>,
    /// Those of this batch.
    pub batch: Option<Arc<str>>,
    /// Those of this user.
    pub user: Option<Arc<str>>,
    /// Those with this tag.
    pub tag: Option<Arc<str>>,
    /// Those in this state.
    pub state: Option<JobState>,
}

impl Selection {
    /// One job.
    #[must_use]
    pub fn job(id: u64) -> Self {
        Self { ids: Some(vec![id]), ..Self::default() }
    }

    /// The jobs of one user.
    #[must_use]
    pub fn user(user: &str) -> Self {
        Self { user: Some(user.into()), ..Self::default() }
    }

    fn has<V: Send + Sync + 'static>(&self, job: &Job<V>) -> bool {
        self.batch.as_ref().is_none_or(|batch| job.batch.as_ref() == Some(batch))
            && self.user.as_ref().is_none_or(|user| job.user == *user)
            && self.tag.as_ref().is_none_or(|tag| job.tags.contains(tag))
            && self.state.is_none_or(|state| job.state() == state)
    }
}

impl<V: Send + Sync + 'static> State<V> {
    /// The numbers of the jobs that are meant: as they were given, else in order.
    pub(super) fn selected(&self, selection: &Selection) -> Vec<u64> {
        match &selection.ids {
            Some(ids) => {
                let known =
                    |id: &&u64| self.jobs.get(id).is_some_and(|record| selection.has(&record.job));
                let mut seen = std::collections::HashSet::new();
                ids.iter().filter(known).copied().filter(|id| seen.insert(*id)).collect()
            }
            None => {
                let all = self.jobs.iter().filter(|(_, record)| selection.has(&record.job));
                all.map(|(id, _)| *id).collect()
            }
        }
    }
}
