//! What is written to the tables of a queue's file, and read from them.

use std::sync::{Arc, OnceLock};

use rusqlite::types::{ToSql, ToSqlOutput};
use rusqlite::{Connection, Row as SqlRow, TransactionBehavior, params, params_from_iter};

use super::Left;
use crate::queue::clock::Micros;
use crate::queue::job::{JobState, Payload};
use crate::queue::order::{Limits, Rank};
use crate::queue::write::{Row, Standing, UserRow, Write};

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
            Write::Forget { name, virtual_time } => {
                let sql = "DELETE FROM users WHERE name = ?1";
                transaction.prepare_cached(sql)?.execute([&**name])?;
                put_time(&transaction, *virtual_time)?;
            }
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

/// What a column is to have.
type Column<'a> = (&'static str, ToSqlOutput<'a>);

/// What an optional number is in the file.
fn optional<'a>(value: Option<u64>) -> ToSqlOutput<'a> {
    ToSqlOutput::Owned(value.map(number).into())
}

/// What of a job stays as it was submitted.
fn submitted(row: &Row) -> rusqlite::Result<[Column<'_>; 12]> {
    let devices =
        row.devices.as_ref().map(|names| serde_json::to_string(&names[..]).unwrap_or_default());
    let (payload, is_json) = match &row.payload {
        Payload::Bytes(bytes) => (&bytes[..], false),
        Payload::Json(text) => (text.as_bytes(), true),
    };
    Ok([
        ("id", number(row.id).into()),
        ("user", row.user.to_sql()?),
        ("batch", row.batch.to_sql()?),
        ("tags", list(&row.tags).into()),
        ("needs", list(&row.needs).into()),
        ("devices", ToSqlOutput::Owned(devices.into())),
        ("memory", optional(row.memory)),
        ("estimate", row.estimate.to_sql()?),
        ("max_attempts", row.max_attempts.into()),
        ("submitted", row.submitted.into()),
        ("payload", payload.to_sql()?),
        ("is_json", is_json.into()),
    ])
}

/// What of a job changes.
fn stands(standing: &Standing) -> rusqlite::Result<[Column<'_>; 11]> {
    Ok([
        ("state", standing.state.as_str().into()),
        ("cancelling", standing.cancelling.into()),
        ("attempts", standing.attempts.into()),
        ("device", standing.device.to_sql()?),
        ("priority", standing.priority.into()),
        ("rank_level", standing.rank.0.into()),
        ("rank_time", standing.rank.1.into()),
        ("started", standing.started.to_sql()?),
        ("finished", standing.finished.to_sql()?),
        ("error", standing.error.to_sql()?),
        ("path", standing.path.to_sql()?),
    ])
}

/// The names of columns, and as many parameters.
fn named(columns: &[Column<'_>]) -> (String, String) {
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    (names.join(", "), vec!["?"; names.len()].join(", "))
}

fn values<'a>(columns: &'a [Column<'a>]) -> impl Iterator<Item = &'a ToSqlOutput<'a>> {
    columns.iter().map(|(_, value)| value)
}

fn insert(connection: &Connection, row: &Row) -> rusqlite::Result<()> {
    static SQL: OnceLock<String> = OnceLock::new();
    let columns: Vec<_> = submitted(row)?.into_iter().chain(stands(&row.standing)?).collect();
    let sql = SQL.get_or_init(|| {
        let (names, places) = named(&columns);
        format!("INSERT INTO jobs ({names}) VALUES ({places})")
    });
    connection.prepare_cached(sql)?.execute(params_from_iter(values(&columns)))?;
    Ok(())
}

fn stand(connection: &Connection, standing: &Standing) -> rusqlite::Result<()> {
    static SQL: OnceLock<String> = OnceLock::new();
    let columns = stands(standing)?;
    let sql = SQL.get_or_init(|| {
        let (names, places) = named(&columns);
        format!("UPDATE jobs SET ({names}) = ({places}) WHERE id = ?")
    });
    let id = ToSqlOutput::from(number(standing.id));
    let values = values(&columns).chain(std::iter::once(&id));
    connection.prepare_cached(sql)?.execute(params_from_iter(values))?;
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
    put_time(connection, user.virtual_time)
}

fn put_time(connection: &Connection, virtual_time: Micros) -> rusqlite::Result<()> {
    let sql = "UPDATE fairness SET virtual_time = ?1 WHERE virtual_time < ?1";
    connection.prepare_cached(sql)?.execute([virtual_time])?;
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
