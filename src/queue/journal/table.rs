//! The tables of a queue's file.
//!
//! `jobs` has a row for each job, `users` one for each user who has had GPU time or settings, `fairness`
//! the one figure that all users share. Times are in microseconds, since the epoch or of GPU time;
//! lists are JSON.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, Row as SqlRow, TransactionBehavior, params};

use super::{Durability, Left};
use crate::queue::clock::Micros;
use crate::queue::error::JournalError;
use crate::queue::job::{JobState, Payload};
use crate::queue::order::{Limits, Rank};
use crate::queue::write::{Row, Standing, UserRow, Write};

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

/// Writes all of this, or nothing.
pub(super) fn write<'a>(
    connection: &mut Connection,
    writes: impl Iterator<Item = &'a Write>,
) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for write in writes {
        match write {
            Write::Insert(row) => insert(&transaction, row)?,
            Write::Stand(standing) => stand(&transaction, standing)?,
            Write::Cancelling(id, error) => {
                let sql = "UPDATE jobs SET cancelling = 1, error = ?2 WHERE id = ?1";
                transaction.prepare_cached(sql)?.execute(params![number(*id), &**error])?;
            }
            Write::Delete(id) => {
                let sql = "DELETE FROM jobs WHERE id = ?1";
                transaction.prepare_cached(sql)?.execute([number(*id)])?;
            }
            Write::User(user) => put_user(&transaction, user)?,
        }
    }
    transaction.commit()
}

/// Numbers are below 2^63, here and in the file.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn list(items: &[Arc<str>]) -> String {
    let items: Vec<&str> = items.iter().map(|item| &**item).collect();
    serde_json::to_string(&items).unwrap_or_default()
}

fn insert(connection: &Connection, row: &Row) -> rusqlite::Result<()> {
    let sql = "INSERT INTO jobs (id, user, batch, tags, needs, devices, memory, estimate,
        max_attempts, submitted, payload, is_json, state, cancelling, attempts, device, priority,
        rank_level, rank_time, started, finished, error, path) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8,
        ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23)";
    let devices =
        row.devices.as_ref().map(|names| serde_json::to_string(&names[..]).unwrap_or_default());
    let (payload, is_json) = match &row.payload {
        Payload::Bytes(bytes) => (&bytes[..], false),
        Payload::Json(text) => (text.as_bytes(), true),
    };
    let standing = &row.standing;
    connection.prepare_cached(sql)?.execute(params![
        number(row.id),
        &*row.user,
        row.batch.as_deref(),
        list(&row.tags),
        list(&row.needs),
        devices,
        row.memory.map(number),
        row.estimate,
        row.max_attempts,
        row.submitted,
        payload,
        is_json,
        standing.state.as_str(),
        standing.cancelling,
        standing.attempts,
        standing.device,
        standing.priority,
        standing.rank.0,
        standing.rank.1,
        standing.started,
        standing.finished,
        standing.error.as_deref(),
        standing.path.as_deref(),
    ])?;
    Ok(())
}

fn stand(connection: &Connection, standing: &Standing) -> rusqlite::Result<()> {
    let sql = "UPDATE jobs SET state = ?2, cancelling = ?3, attempts = ?4, device = ?5,
        priority = ?6, rank_level = ?7, rank_time = ?8, started = ?9, finished = ?10, error = ?11,
        path = ?12 WHERE id = ?1";
    connection.prepare_cached(sql)?.execute(params![
        number(standing.id),
        standing.state.as_str(),
        standing.cancelling,
        standing.attempts,
        standing.device,
        standing.priority,
        standing.rank.0,
        standing.rank.1,
        standing.started,
        standing.finished,
        standing.error.as_deref(),
        standing.path.as_deref(),
    ])?;
    Ok(())
}

fn put_user(connection: &Connection, user: &UserRow) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO users (name, weight, running, queued, gpu_time_per_hour, had,
        gpu_time, last_hour) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let Limits { weight, running, queued, gpu_time_per_hour } = &user.limits;
    let last_hour = serde_json::to_string(&user.last_hour).unwrap_or_default();
    connection.prepare_cached(sql)?.execute(params![
        &*user.name,
        weight,
        running.map(number),
        queued.map(number),
        gpu_time_per_hour,
        user.had,
        user.time,
        last_hour,
    ])?;
    let sql = "UPDATE fairness SET virtual_time = ?1 WHERE virtual_time < ?1";
    connection.prepare_cached(sql)?.execute([user.virtual_time])?;
    Ok(())
}

/// Everything that is there.
pub(super) fn read(connection: &Connection) -> rusqlite::Result<Left> {
    let mut jobs = connection.prepare("SELECT * FROM jobs ORDER BY id")?;
    let jobs = jobs.query_map([], job)?.collect::<rusqlite::Result<_>>()?;
    let mut users = connection.prepare("SELECT * FROM users")?;
    let users = users.query_map([], user)?.collect::<rusqlite::Result<_>>()?;
    let last = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'jobs'";
    let last: i64 = connection.query_row(last, [], |row| row.get(0))?;
    let virtual_time = "SELECT coalesce(max(virtual_time), 0) FROM fairness";
    let virtual_time = connection.query_row(virtual_time, [], |row| row.get(0))?;
    Ok(Left { jobs, users, virtual_time, next_id: u64::try_from(last).unwrap_or(0) + 1 })
}

/// A column that somebody has written who is not a queue.
fn strange(column: &str, why: &dyn std::error::Error) -> rusqlite::Error {
    rusqlite::Error::InvalidColumnName(format!("{column} ({why})"))
}

fn unsigned(row: &SqlRow<'_>, column: &str) -> rusqlite::Result<Option<u64>> {
    let value: Option<i64> = row.get(column)?;
    value.map(|value| u64::try_from(value).map_err(|why| strange(column, &why))).transpose()
}

fn texts(row: &SqlRow<'_>, column: &str) -> rusqlite::Result<Vec<String>> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|why| strange(column, &why))
}

fn arcs(texts: Vec<String>) -> Arc<[Arc<str>]> {
    texts.into_iter().map(Into::into).collect()
}

fn text(row: &SqlRow<'_>, column: &str) -> rusqlite::Result<Option<Arc<str>>> {
    Ok(row.get::<_, Option<String>>(column)?.map(Into::into))
}

fn job(row: &SqlRow<'_>) -> rusqlite::Result<Row> {
    let id = unsigned(row, "id")?.unwrap_or(0);
    let payload: Vec<u8> = row.get("payload")?;
    let payload = if row.get("is_json")? {
        let text = String::from_utf8(payload).map_err(|why| strange("payload", &why))?;
        Payload::Json(text.into())
    } else {
        Payload::Bytes(payload.into())
    };
    let state: String = row.get("state")?;
    let state = JobState::named(&state)
        .ok_or_else(|| rusqlite::Error::InvalidColumnName(format!("state ({state:?} is none)")))?;
    let devices: Option<String> = row.get("devices")?;
    let devices = devices.map(|text| {
        serde_json::from_str::<Vec<String>>(&text).map_err(|why| strange("devices", &why))
    });
    Ok(Row {
        id,
        user: row.get::<_, String>("user")?.into(),
        batch: text(row, "batch")?,
        tags: arcs(texts(row, "tags")?),
        needs: arcs(texts(row, "needs")?),
        devices: devices.transpose()?.map(Into::into),
        memory: unsigned(row, "memory")?,
        estimate: row.get("estimate")?,
        max_attempts: row.get("max_attempts")?,
        submitted: row.get("submitted")?,
        payload,
        standing: Standing {
            id,
            state,
            cancelling: row.get("cancelling")?,
            attempts: row.get("attempts")?,
            device: row.get("device")?,
            priority: row.get("priority")?,
            rank: Rank(row.get("rank_level")?, row.get("rank_time")?),
            started: row.get("started")?,
            finished: row.get("finished")?,
            error: text(row, "error")?,
            path: text(row, "path")?,
        },
    })
}

fn user(row: &SqlRow<'_>) -> rusqlite::Result<UserRow> {
    let last_hour: String = row.get("last_hour")?;
    let last_hour: Vec<(i64, Micros)> =
        serde_json::from_str(&last_hour).map_err(|why| strange("last_hour", &why))?;
    Ok(UserRow {
        name: row.get::<_, String>("name")?.into(),
        limits: Limits {
            weight: row.get("weight")?,
            running: unsigned(row, "running")?,
            queued: unsigned(row, "queued")?,
            gpu_time_per_hour: row.get("gpu_time_per_hour")?,
        },
        had: row.get("had")?,
        time: row.get("gpu_time")?,
        last_hour,
        virtual_time: 0,
    })
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
