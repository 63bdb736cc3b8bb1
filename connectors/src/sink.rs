//! The writing side of a connector: one commit protocol for every system.
//!
//! ```text
//!            write…          stage            CommitIntent         publish          CommitDone
//! rows ─▶ invisible rows ─▶ Manifest ─▶ (caller's ledger) ─▶ visible, once ─▶ (caller's ledger)
//! ```
//!
//! A batch is identified by `(run, sink, slice, sequence)`. With [`CommitMode::Batch`] `publish`
//! makes it visible; with [`CommitMode::Run`] `publish` only makes it durable in staging, and
//! [`Sink::commit_run`] shows all batches at once. After a crash the caller gives each intent
//! without a completion to [`Sink::recover`], which asks the target.

use std::fmt;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use weir_spec::CommitMode;

use crate::ConnectorError;

/// Identifies who writes, in the target's own records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrepareSink {
    /// Unique per ledger (state directory or cluster): scopes fences.
    pub ledger_id: String,
    pub pipeline: String,
    pub run: String,
    pub sink: String,
    /// Grows with every process that takes over; a writer with a smaller one is fenced off.
    pub epoch: u64,
    /// Other runs of the pipeline may be going on (those of a backfill's windows): what they have staged is
    /// not left over from them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_others_beside: bool,
}

/// What `prepare` agreed with the target; frozen in the ledger and given to every task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreparedSink {
    pub identity: PrepareSink,
    /// Opaque to the caller: column mapping, staging table or folder.
    pub payload: serde_json::Value,
    /// For people: `created table public.customers`, `added column email`.
    pub notes: Vec<String>,
}

/// One slice of a sink's input, as one attempt writes it.
#[derive(Clone, Debug)]
pub struct SinkTask {
    pub prepared: PreparedSink,
    /// Current epoch of the writer (≥ the one at `prepare`).
    pub epoch: u64,
    pub slice: u32,
    pub attempt: u32,
    pub schema: SchemaRef,
}

/// A staged batch. `payload` is opaque to everyone but its sink, and small (names and counts).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub slice: u32,
    /// 0, 1, 2 … within the slice, over all attempts.
    pub sequence: u64,
    pub rows: u64,
    /// Order-independent checksum of the rows, computed by the caller.
    pub checksum: u64,
    pub epoch: u64,
    pub payload: serde_json::Value,
}

/// What the target says about an intent without a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// It had landed, or has been finished now.
    Published,
    /// It had not, and never will: its staging is gone. The batch must be written again.
    Lost,
}

/// A batch as the target's own records know it: for `weir audit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedBatch {
    pub slice: u32,
    pub sequence: u64,
    pub rows: u64,
    /// `None` where the target keeps none (the caller then compares rows only).
    pub checksum: Option<u64>,
}

/// One opened sink node.
#[async_trait]
pub trait Sink: Send + Sync + fmt::Debug {
    fn commit_mode(&self) -> CommitMode;

    /// Checks the target against `schema`, creates or alters it as the schema policy says, makes
    /// staging, and raises the fence to `identity.epoch`. Idempotent per run: a second call returns
    /// an equivalent value. For people-only errors (wrong types, missing key columns) this is the
    /// place: before the first row.
    async fn prepare(
        &self,
        identity: &PrepareSink,
        schema: &SchemaRef,
    ) -> Result<PreparedSink, ConnectorError>;

    /// Opens a writer for one slice. Attempts at a slice are numbered in their order over all epochs:
    /// once one has published, earlier ones can no longer.
    async fn writer(&self, task: SinkTask) -> Result<Box<dyn SinkWriter>, ConnectorError>;

    /// Asks the target about a batch that `attempt` has staged and whose intent has no completion.
    /// `epoch` is the current one, and raises the fence. The attempt has been given up but may be
    /// paused rather than dead, in this epoch too: whatever the answer is, its writer can no longer
    /// change it.
    async fn recover(
        &self,
        prepared: &PreparedSink,
        manifest: &Manifest,
        attempt: u32,
        epoch: u64,
    ) -> Result<Recovery, ConnectorError>;

    /// `CommitMode::Run` only: shows all published batches at once (append, merge or swap).
    /// Idempotent: a second call after a crash finds what has been done and finishes the rest.
    async fn commit_run(
        &self,
        prepared: &PreparedSink,
        manifests: &[Manifest],
        epoch: u64,
    ) -> Result<(), ConnectorError>;

    /// What the target's own records say about a run, for the audit.
    async fn published(
        &self,
        prepared: &PreparedSink,
        manifests: &[Manifest],
    ) -> Result<Vec<PublishedBatch>, ConnectorError>;

    /// Removes staging that no intent mentions. Called after success, and when a run is abandoned.
    /// Rows that are visible stay. `epoch` is the current one: who has been replaced removes nothing, because
    /// the run may go on under his successor.
    async fn clean_up(&self, prepared: &PreparedSink, epoch: u64) -> Result<(), ConnectorError>;

    /// Connects and writes nothing: `weir connection test`. Returns a line for people.
    async fn check(&self) -> Result<String, ConnectorError>;
}

/// Writes the rows of one slice, batch by batch. Dropping it discards what was not published.
#[async_trait]
pub trait SinkWriter: Send {
    /// Adds rows to the open batch, invisibly. Holds at most about one Arrow batch in memory
    /// besides the system's own buffers.
    async fn write(&mut self, rows: RecordBatch) -> Result<(), ConnectorError>;

    /// Bytes written to the open batch so far, for target file sizes.
    fn open_bytes(&self) -> u64;

    /// Ends the open batch: everything in it is complete and can be published, by this writer
    /// (transactional targets) or by [`Sink::recover`] (staged files), or is lost with this writer.
    async fn stage(
        &mut self,
        sequence: u64,
        rows: u64,
        checksum: u64,
    ) -> Result<Manifest, ConnectorError>;

    /// Publishes the batch staged last. `Fenced` if a newer epoch or a later attempt has taken over.
    async fn publish(&mut self, manifest: &Manifest) -> Result<(), ConnectorError>;
}
