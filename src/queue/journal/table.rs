//! The tables of a queue's file.
//!
//! `jobs` has a row for each job, `users` one for each user who has had GPU time or settings, `fairness`
//! the one figure that all users share. Times are in microseconds, since the epoch or of GPU time;
//! lists are JSON.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::Durability;
use crate::queue::error::JournalError;

/// How a file of ours is told from other files of `SQLite`: `coRQ`.
const APPLICATION: i64 = 0x636f_5251;
/// How long a write waits for somebody else who has locked the file.
const PATIENCE: Duration = Duration::from_millis(500);

/// What makes a file of each version one of the next; the version is how many have been done.
const STEPS: [&str; 2] = [
    "CREATE TABLE jobs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        user TEXT NOT NULL,
        batch TEXT,
        tags TEXT NOT NULL,
        needs TEXT NOT NULL,
        devices TEXT,
        memory INTEGER,
        estimate INTEGER,
        max_attempts INTEGER NOT NULL,
        submitted INTEGER NOT NULL,
        payload BLOB NOT NULL,
        is_json INTEGER NOT NULL,
        state TEXT NOT NULL,
        cancelling INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        device TEXT,
        priority INTEGER NOT NULL,
        rank_level INTEGER NOT NULL,
        rank_time INTEGER NOT NULL,
        started INTEGER,
        finished INTEGER,
        error TEXT,
        path TEXT
    );
    CREATE TABLE users (
        name TEXT PRIMARY KEY,
        weight REAL NOT NULL,
        running INTEGER,
        queued INTEGER,
        gpu_time_per_hour INTEGER,
        had INTEGER NOT NULL,
        gpu_time INTEGER NOT NULL
    ) WITHOUT ROWID;",
    "ALTER TABLE users ADD COLUMN last_hour TEXT NOT NULL DEFAULT '[]';
    CREATE TABLE fairness (id INTEGER PRIMARY KEY CHECK (id = 0), virtual_time INTEGER NOT NULL);
    INSERT INTO fairness SELECT 0, coalesce(max(had), 0) FROM users;",
];

/// Opens a file and brings it to the present version.
pub(super) fn open(path: &Path, durability: Durability) -> Result<Connection, JournalError> {
    let sql = |why: rusqlite::Error| failed("opening", path, &why);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(sql)?;
    connection.busy_timeout(PATIENCE).map_err(sql)?;
    connection.set_prepared_statement_cache_capacity(16);
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (application, version) =
        (pragma("application_id").map_err(sql)?, pragma("user_version").map_err(sql)?);
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(sql)?;
    if application != APPLICATION && (tables > 0 || application != 0) {
        let why = "it is the database of another program".to_owned();
        return Err(JournalError::NoQueue { path: path.to_owned(), why });
    }
    if version > known() {
        return Err(JournalError::Newer { path: path.to_owned(), found: version, known: known() });
    }
    connection.pragma_update(None, "journal_mode", "WAL").map_err(sql)?;
    let synchronous = match durability {
        // What is written to the file survives the process as it is.
        Durability::Process => "NORMAL",
        Durability::Power => "FULL",
    };
    connection.pragma_update(None, "synchronous", synchronous).map_err(sql)?;
    migrate(&mut connection, version).map_err(sql)?;
    Ok(connection)
}

/// The version of this library.
fn known() -> i64 {
    i64::try_from(STEPS.len()).unwrap_or(i64::MAX)
}

fn migrate(connection: &mut Connection, version: i64) -> rusqlite::Result<()> {
    let done = usize::try_from(version).unwrap_or(0);
    if done == STEPS.len() {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for step in &STEPS[done..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", known())?;
    transaction.commit()
}

/// What `SQLite` says, as an error of ours.
pub(super) fn failed(doing: &'static str, path: &Path, why: &rusqlite::Error) -> JournalError {
    let code = why.sqlite_error_code();
    if code == Some(ErrorCode::NotADatabase) {
        let why = "it is no database of SQLite".to_owned();
        return JournalError::NoQueue { path: path.to_owned(), why };
    }
    let locked = matches!(code, Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked));
    let full = code == Some(ErrorCode::DiskFull);
    let told = if locked {
        format!("somebody else has locked it for more than {} s", PATIENCE.as_secs_f64())
    } else if full {
        "the disk is full".to_owned()
    } else {
        why.to_string()
    };
    JournalError::Failed { doing, path: path.to_owned(), why: told.into(), full, locked }
}

/// What the file system says.
pub(super) fn unusable(doing: &'static str, path: &Path, why: &std::io::Error) -> JournalError {
    let full = why.kind() == std::io::ErrorKind::StorageFull;
    let why = why.to_string().into();
    JournalError::Failed { doing, path: path.to_owned(), why, full, locked: false }
}
