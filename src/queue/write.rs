//! What a journal is told: whole rows and whole standings, so that the last one told is true whatever
//! was told before.

use std::sync::Arc;

use super::clock::Micros;
use super::job::{JobState, Payload};
use super::order::{Limits, Rank};

/// A job when it is submitted.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its number.
    pub id: u64,
    /// Whose it is.
    pub user: Arc<str>,
    /// Its batch.
    pub batch: Option<Arc<str>>,
    /// Its tags.
    pub tags: Arc<[Arc<str>]>,
    /// Keys of the weights that it uses.
    pub needs: Arc<[Arc<str>]>,
    /// The names of the only devices that may run it.
    pub devices: Option<Arc<[String]>>,
    /// The bytes that its device must have.
    pub memory: Option<u64>,
    /// The GPU time that its submitter expects.
    pub estimate: Option<Micros>,
    /// How often it may be begun.
    pub max_attempts: u32,
    /// When it was submitted.
    pub submitted: Micros,
    /// What it is.
    pub payload: Payload,
    /// How it stands.
    pub standing: Standing,
}

/// How a job stands.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Its number.
    pub id: u64,
    /// Its state.
    pub state: JobState,
    /// Whether it runs and was told to stop.
    pub cancelling: bool,
    /// How often it was begun.
    pub attempts: u32,
    /// Where it runs or ran last.
    pub device: Option<String>,
    /// Its priority.
    pub priority: i32,
    /// Its rank among the jobs of its user.
    pub rank: Rank,
    /// When it was last claimed.
    pub started: Option<Micros>,
    /// When it was over.
    pub finished: Option<Micros>,
    /// Why it failed or was cancelled.
    pub error: Option<Arc<str>>,
    /// The path that it finished with.
    pub path: Option<Arc<str>>,
}

impl Standing {
    /// A job that has just been submitted.
    #[must_use]
    pub fn queued(id: u64, priority: i32, rank: Rank) -> Self {
        Self {
            id,
            state: JobState::Queued,
            cancelling: false,
            attempts: 0,
            device: None,
            priority,
            rank,
            started: None,
            finished: None,
            error: None,
            path: None,
        }
    }
}

/// A user.
#[derive(Debug, Clone)]
pub struct UserRow {
    /// The name.
    pub name: Arc<str>,
    /// What he may have.
    pub limits: Limits,
    /// GPU time had, divided by the weight.
    pub had: Micros,
    /// GPU time had.
    pub time: Micros,
    /// GPU time of the last sixty minutes, by minute since the epoch.
    pub last_hour: Vec<(i64, Micros)>,
    /// Where users are who come now: the same for all.
    pub virtual_time: Micros,
}

/// One thing to write.
#[derive(Debug, Clone)]
pub enum Write {
    /// A job that is new.
    Insert(Box<Row>),
    /// A job that stands otherwise.
    Stand(Box<Standing>),
    /// A job that runs and was told to stop, for this reason.
    Cancelling(u64, Arc<str>),
    /// A job that is gone.
    Delete(u64),
    /// What a user may have and has had.
    User(UserRow),
    /// A user who is forgotten, and where users are from then on who come.
    Forget {
        /// The name.
        name: Arc<str>,
        /// As [`UserRow::virtual_time`].
        virtual_time: Micros,
    },
}
