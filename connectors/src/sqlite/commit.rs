//! Weir's own tables inside the database, and the transactions that make rows visible.
//!
//! ```text
//! batch:  BEGIN IMMEDIATE; fences; insert rows; _weir_ledger(committed_at = now); COMMIT
//! run:    BEGIN IMMEDIATE; fences; insert into staging; _weir_ledger(committed_at = NULL); COMMIT
//!         … BEGIN IMMEDIATE; fence; merge or swap; committed_at = now for all; COMMIT
//! ```

use sqlx::Row as _;

use super::connect::{Session, arguments};
use crate::{ConnectorError, ErrorKind, Manifest, PrepareSink, PublishedBatch};

/// What the database knows of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BatchState {
    Unknown,
    /// In the staging table.
    Staged,
    Committed,
}

/// Creates Weir's tables where they are missing.
pub(super) async fn create_tables(session: &mut Session) -> Result<(), ConnectorError> {
    for sql in [
        "CREATE TABLE IF NOT EXISTS _weir_ledger (
            ledger_id TEXT NOT NULL, pipeline TEXT NOT NULL, sink TEXT NOT NULL,
            run TEXT NOT NULL, slice INTEGER NOT NULL, sequence INTEGER NOT NULL,
            rows INTEGER NOT NULL, checksum TEXT NOT NULL, epoch INTEGER NOT NULL,
            committed_at TEXT,
            PRIMARY KEY (ledger_id, run, sink, slice, sequence)) WITHOUT ROWID",
        "CREATE TABLE IF NOT EXISTS _weir_fence (
            ledger_id TEXT NOT NULL, pipeline TEXT NOT NULL, sink TEXT NOT NULL,
            epoch INTEGER NOT NULL,
            PRIMARY KEY (ledger_id, pipeline, sink)) WITHOUT ROWID",
        "CREATE TABLE IF NOT EXISTS _weir_attempts (
            ledger_id TEXT NOT NULL, run TEXT NOT NULL, sink TEXT NOT NULL,
            slice INTEGER NOT NULL, attempt INTEGER NOT NULL,
            PRIMARY KEY (ledger_id, run, sink, slice)) WITHOUT ROWID",
    ] {
        session.execute("create Weir's tables in", sql).await?;
    }
    Ok(())
}

/// Checks that no newer epoch has been here, and raises the fence to `epoch`.
pub(super) async fn fence(
    session: &mut Session,
    identity: &PrepareSink,
    epoch: u64,
) -> Result<(), ConnectorError> {
    let rows = session
        .fetch(
            "read the fence in",
            "SELECT epoch FROM _weir_fence WHERE ledger_id = ? AND pipeline = ? AND sink = ?",
            arguments![
                identity.ledger_id.as_str(),
                identity.pipeline.as_str(),
                identity.sink.as_str()
            ],
        )
        .await?;
    let fence = rows.first().map_or(0, |row| row.get::<i64, _>(0).cast_unsigned());
    if fence > epoch {
        return Err(ConnectorError::new(
            ErrorKind::Fenced,
            format!(
                "sink `{}` of run {} has been taken over: this writer has epoch {epoch}, {} knows \
                 {fence}",
                identity.sink,
                identity.run,
                session.database.path.display()
            ),
        ));
    }
    if fence < epoch {
        session
            .execute_with(
                "raise the fence in",
                "INSERT INTO _weir_fence VALUES (?, ?, ?, ?) \
                 ON CONFLICT (ledger_id, pipeline, sink) DO UPDATE SET epoch = excluded.epoch",
                arguments![
                    identity.ledger_id.as_str(),
                    identity.pipeline.as_str(),
                    identity.sink.as_str(),
                    epoch.cast_signed()
                ],
            )
            .await?;
    }
    Ok(())
}

/// Checks that no later attempt at the slice has been here, and that this one has not been given up;
/// makes `attempt` the least that may publish. Within one epoch an attempt may be paused, not dead.
pub(super) async fn fence_attempt(
    session: &mut Session,
    identity: &PrepareSink,
    slice: u32,
    attempt: u32,
) -> Result<(), ConnectorError> {
    let raised = session
        .fetch(
            "raise the fence in",
            "INSERT INTO _weir_attempts VALUES (?, ?, ?, ?, ?) \
             ON CONFLICT (ledger_id, run, sink, slice) \
             DO UPDATE SET attempt = max(attempt, excluded.attempt) RETURNING attempt",
            arguments![
                identity.ledger_id.as_str(),
                identity.run.as_str(),
                identity.sink.as_str(),
                i64::from(slice),
                i64::from(attempt)
            ],
        )
        .await?;
    if raised.first().is_none_or(|row| row.get::<i64, _>(0) > i64::from(attempt)) {
        return Err(ConnectorError::new(
            ErrorKind::Fenced,
            format!(
                "sink `{}` of run {}: attempt {attempt} at slice {slice} has been given up for another \
                 one",
                identity.sink, identity.run
            ),
        ));
    }
    Ok(())
}

pub(super) async fn batch_state(
    session: &mut Session,
    identity: &PrepareSink,
    manifest: &Manifest,
) -> Result<BatchState, ConnectorError> {
    let rows = session
        .fetch(
            "read Weir's ledger in",
            "SELECT committed_at IS NOT NULL FROM _weir_ledger \
             WHERE ledger_id = ? AND run = ? AND sink = ? AND slice = ? AND sequence = ?",
            arguments![
                identity.ledger_id.as_str(),
                identity.run.as_str(),
                identity.sink.as_str(),
                i64::from(manifest.slice),
                manifest.sequence.cast_signed()
            ],
        )
        .await?;
    Ok(match rows.first().map(|row| row.get::<i64, _>(0)) {
        None => BatchState::Unknown,
        Some(0) => BatchState::Staged,
        Some(_) => BatchState::Committed,
    })
}

/// Notes a batch, in the transaction that writes its rows.
pub(super) async fn record(
    session: &mut Session,
    identity: &PrepareSink,
    manifest: &Manifest,
    epoch: u64,
    is_committed: bool,
) -> Result<(), ConnectorError> {
    let time = if is_committed { "strftime('%Y-%m-%d %H:%M:%f', 'now')" } else { "NULL" };
    session
        .execute_with(
            "write Weir's ledger in",
            &format!("INSERT INTO _weir_ledger VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, {time})"),
            arguments![
                identity.ledger_id.as_str(),
                identity.pipeline.as_str(),
                identity.sink.as_str(),
                identity.run.as_str(),
                i64::from(manifest.slice),
                manifest.sequence.cast_signed(),
                manifest.rows.cast_signed(),
                format!("{:016x}", manifest.checksum),
                epoch.cast_signed()
            ],
        )
        .await
        .map(drop)
}

/// Notes that all staged batches of the run are visible, in the transaction that shows them.
pub(super) async fn record_run(
    session: &mut Session,
    identity: &PrepareSink,
) -> Result<(), ConnectorError> {
    session
        .execute_with(
            "write Weir's ledger in",
            "UPDATE _weir_ledger SET committed_at = strftime('%Y-%m-%d %H:%M:%f', 'now') \
             WHERE ledger_id = ? AND run = ? AND sink = ? AND committed_at IS NULL",
            run_arguments(identity),
        )
        .await
        .map(drop)
}

/// Forgets batches of the run that were staged and never shown.
pub(super) async fn forget_staged(
    session: &mut Session,
    identity: &PrepareSink,
) -> Result<(), ConnectorError> {
    session
        .execute_with(
            "write Weir's ledger in",
            "DELETE FROM _weir_ledger \
             WHERE ledger_id = ? AND run = ? AND sink = ? AND committed_at IS NULL",
            run_arguments(identity),
        )
        .await
        .map(drop)
}

/// Batches of the run, committed or only staged.
pub(super) async fn batches(
    session: &mut Session,
    identity: &PrepareSink,
    is_committed: bool,
) -> Result<Vec<PublishedBatch>, ConnectorError> {
    let rows = session
        .fetch(
            "read Weir's ledger in",
            &format!(
                "SELECT slice, sequence, rows, checksum FROM _weir_ledger \
                 WHERE ledger_id = ? AND run = ? AND sink = ? AND committed_at IS {} NULL \
                 ORDER BY slice, sequence",
                if is_committed { "NOT" } else { "" }
            ),
            run_arguments(identity),
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| PublishedBatch {
            slice: u32::try_from(row.get::<i64, _>(0)).unwrap_or(u32::MAX),
            sequence: row.get::<i64, _>(1).cast_unsigned(),
            rows: row.get::<i64, _>(2).cast_unsigned(),
            checksum: u64::from_str_radix(row.get(3), 16).ok(),
        })
        .collect())
}

fn run_arguments(identity: &PrepareSink) -> sqlx::sqlite::SqliteArguments {
    arguments![identity.ledger_id.as_str(), identity.run.as_str(), identity.sink.as_str()]
}
