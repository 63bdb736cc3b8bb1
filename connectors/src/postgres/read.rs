//! Reads one split: `COPY … TO STDOUT` after `COPY … TO STDOUT`, decoded as it arrives.
//!
//! ```text
//! task: COPY blocks 0–511 ─▶ batch, batch, batch + position 512 ─▶ COPY blocks 512–1100 ─▶ …
//! ```
//! A task owns the connection and stays at most [`BATCHES_IN_FLIGHT`] batches ahead.

use futures::{StreamExt as _, TryStreamExt as _};
use sqlx::postgres::PgConnection;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::decode::Decoder;
use super::error::classify;
use crate::{ConnectorError, Position, SourceBatch, SourceStream};

const BATCH_ROWS: usize = 8_192;
/// A batch ends early once it has received this much, whatever its rows.
const BATCH_BYTES: usize = 8 << 20;
const BATCHES_IN_FLIGHT: usize = 2;
/// About how many rows lie between two positions.
const STEP_ROWS: u64 = 32_768;
const STEP_BLOCKS_MAX: u64 = 8_192;

/// What to read, as SQL.
pub(super) struct Reading {
    /// For messages: `public.orders at db:5432/shop`.
    pub subject: String,
    /// `SELECT … FROM …`
    pub select: String,
    /// All must hold.
    pub conditions: Vec<String>,
    pub limit: Option<u64>,
    /// Where the split can be read block by block.
    pub blocks: Option<Blocks>,
}

/// A range of a table's blocks.
pub(super) struct Blocks {
    pub next: u64,
    pub end: u64,
    /// First guess; corrected by what is read.
    pub rows_per_block: f64,
}

impl Reading {
    fn statement(&self, range: Option<(u64, u64)>, limit: Option<u64>) -> String {
        let mut conditions = self.conditions.clone();
        if let Some((start, end)) = range {
            conditions.push(format!("ctid >= '({start},0)'::tid AND ctid < '({end},0)'::tid"));
        }
        let mut sql = format!("COPY ({}", self.select);
        if !conditions.is_empty() {
            sql.push_str(&format!("\nWHERE {}", conditions.join(" AND ")));
        }
        if let Some(limit) = limit {
            sql.push_str(&format!("\nLIMIT {limit}"));
        }
        sql.push_str(") TO STDOUT (FORMAT BINARY)");
        sql
    }
}

/// Starts reading on a connection that is inside its transaction.
pub(super) fn stream(connection: PgConnection, reading: Reading, decoder: Decoder) -> SourceStream {
    let (sender, receiver) = mpsc::channel(BATCHES_IN_FLIGHT);
    let task = tokio::spawn(async move {
        if let Err(error) = read(connection, reading, decoder, &sender).await {
            // The receiver may be gone: then nobody waits for the error.
            let _ = sender.send(Err(error)).await;
        }
    });
    futures::stream::unfold(Some((receiver, task)), next).boxed()
}

type Running = (mpsc::Receiver<Result<SourceBatch, ConnectorError>>, JoinHandle<()>);

async fn next(
    running: Option<Running>,
) -> Option<(Result<SourceBatch, ConnectorError>, Option<Running>)> {
    let (mut receiver, task) = running?;
    match receiver.recv().await {
        Some(Ok(batch)) => Some((Ok(batch), Some((receiver, task)))),
        Some(Err(error)) => Some((Err(error), None)),
        // A task that died must not look like the end of the data.
        None => match task.await {
            Ok(()) => None,
            Err(cause) => Some((
                Err(ConnectorError::internal(format!("the reader of a split stopped: {cause}"))),
                None,
            )),
        },
    }
}

/// Whoever receives has gone away, or the split is finished.
struct Stopped;

async fn read(
    mut connection: PgConnection,
    mut reading: Reading,
    mut decoder: Decoder,
    sender: &mpsc::Sender<Result<SourceBatch, ConnectorError>>,
) -> Result<(), ConnectorError> {
    let mut remaining = reading.limit;
    let Some(mut blocks) = reading.blocks.take() else {
        let sql = reading.statement(None, remaining);
        if copy(&mut connection, &sql, &reading, &mut decoder, sender).await?.is_ok()
            && decoder.rows() > 0
        {
            let rows = decoder.take()?;
            let batch = SourceBatch { rows, rejected: Vec::new(), position: None };
            let _ = sender.send(Ok(batch)).await;
        }
        return Ok(());
    };
    let mut step = step_blocks(blocks.rows_per_block);
    while blocks.next < blocks.end {
        let end = blocks.end.min(blocks.next + step);
        let sql = reading.statement(Some((blocks.next, end)), remaining);
        let Ok(rows) = copy(&mut connection, &sql, &reading, &mut decoder, sender).await? else {
            return Ok(());
        };
        let taken = end - blocks.next;
        blocks.next = end;
        if let Some(remaining) = &mut remaining {
            *remaining = remaining.saturating_sub(rows);
            if *remaining == 0 {
                blocks.next = blocks.end;
            }
        }
        let position = Some(Position(blocks.next.to_string()));
        let batch = SourceBatch { rows: decoder.take()?, rejected: Vec::new(), position };
        if sender.send(Ok(batch)).await.is_err() {
            return Ok(());
        }
        // Precision does not matter here.
        let seen = step_blocks(rows as f64 / taken as f64);
        step = seen.clamp(step.div_ceil(4), step.saturating_mul(4)).min(STEP_BLOCKS_MAX);
    }
    Ok(())
}

fn step_blocks(rows_per_block: f64) -> u64 {
    let blocks = STEP_ROWS as f64 / rows_per_block.max(0.01);
    (blocks as u64).clamp(1, STEP_BLOCKS_MAX)
}

/// One `COPY`. Sends full batches; what is left stays in the decoder. Returns the rows read.
async fn copy(
    connection: &mut PgConnection,
    sql: &str,
    reading: &Reading,
    decoder: &mut Decoder,
    sender: &mpsc::Sender<Result<SourceBatch, ConnectorError>>,
) -> Result<Result<u64, Stopped>, ConnectorError> {
    let failed = |cause| classify(format!("read {}", reading.subject), cause);
    decoder.start();
    let mut rows = 0;
    let mut messages = connection.copy_out_raw(sql).await.map_err(failed)?;
    while let Some(message) = messages.try_next().await.map_err(failed)? {
        // The batch before is sent only once there is more, so that the last one of a step is
        // still here to carry the position.
        if decoder.rows() >= BATCH_ROWS || decoder.bytes() >= BATCH_BYTES {
            rows += decoder.rows() as u64;
            let batch = SourceBatch { rows: decoder.take()?, rejected: Vec::new(), position: None };
            if sender.send(Ok(batch)).await.is_err() {
                return Ok(Err(Stopped));
            }
        }
        decoder.push(&message)?;
    }
    rows += decoder.rows() as u64;
    Ok(Ok(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_about_as_many_rows_whatever_the_table_looks_like() {
        assert_eq!(step_blocks(64.0), 512);
        assert_eq!(step_blocks(1_000_000.0), 1);
        assert_eq!(step_blocks(0.0), STEP_BLOCKS_MAX);
    }

    #[test]
    fn conditions_and_limit_go_inside_the_copy() {
        let reading = Reading {
            subject: String::new(),
            select: "SELECT \"a\" FROM \"t\"".to_owned(),
            conditions: vec!["\"a\" > 1".to_owned()],
            limit: Some(5),
            blocks: None,
        };
        assert_eq!(
            reading.statement(Some((0, 8)), reading.limit),
            "COPY (SELECT \"a\" FROM \"t\"\nWHERE \"a\" > 1 AND ctid >= '(0,0)'::tid AND ctid < \
             '(8,0)'::tid\nLIMIT 5) TO STDOUT (FORMAT BINARY)"
        );
    }
}
