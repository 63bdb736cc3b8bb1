//! What callers (the command line, later the gRPC API) ask of the engine, and what they get.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use weir_connectors::{ConnectorContext, PublishedBatch};
use weir_executor::{ProgressEvent, RowAccount, storage};
use weir_plan::StageGraph;
use weir_spec::{NodeName, PipelineSpec};

/// Where and within which bounds the engine works.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Default `.weir` beside the pipeline file.
    pub state_dir: PathBuf,
    /// Bound on operators' memory; beyond it sorts, joins and aggregates spill to the state
    /// directory. Default 512 MiB.
    pub memory_bytes: u64,
    /// Tasks at once. Default: the number of cores.
    pub slots: NonZeroUsize,
    pub context: ConnectorContext,
}

/// One execution that is asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunRequest {
    pub params: BTreeMap<String, serde_json::Value>,
    /// `[start, end)`.
    pub window: Option<(DateTime<Utc>, DateTime<Utc>)>,
    /// Abandon an unfinished run instead of resuming it.
    pub fresh: bool,
    /// Resume exactly this run (`weir retry`).
    pub resume: Option<String>,
    /// Rows given instead of reading these sources (replay of dead letters): JSON lines files.
    pub given: IndexMap<NodeName, PathBuf>,
    /// The run whose dead letters the pipeline replays.
    #[serde(default)]
    pub replay_of: Option<String>,
    /// The version of the pipeline that is registered with a cluster; `None`: none is.
    #[serde(default)]
    pub version: Option<u32>,
    /// Chosen by a client of a cluster: the same one starts no second run.
    #[serde(default)]
    pub request_id: Option<String>,
}

/// What a run is doing, for people. Never the only copy of a fact.
#[derive(Clone, Debug)]
pub enum RunEvent {
    /// Another run of the pipeline is going on; this one waits for it.
    Waiting {
        holder: String,
    },
    Planned {
        run: String,
        graph: std::sync::Arc<StageGraph>,
    },
    Resumed {
        run: String,
        slices_done: u32,
        slices: u32,
        rows_committed: u64,
    },
    StageStarted {
        run: String,
        stage: u32,
        name: String,
        slices: u32,
    },
    StageFinished {
        run: String,
        stage: u32,
        name: String,
        account: RowAccount,
    },
    Progress(ProgressEvent),
    /// On a cluster: an executor has been given a slice.
    AttemptStarted {
        run: String,
        stage: String,
        slice: u32,
        attempt: u32,
        executor: String,
    },
    /// On a cluster: an executor has said how an attempt has ended, or was lost with it.
    AttemptEnded {
        run: String,
        stage: String,
        slice: u32,
        attempt: u32,
        executor: String,
        /// Why it is not done.
        error: Option<String>,
    },
    Retrying {
        run: String,
        stage: String,
        slice: u32,
        attempt: u32,
        delay: Duration,
        error: String,
    },
    /// A note of a sink: `created table public.customers`.
    Note {
        run: String,
        node: NodeName,
        text: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// On a cluster: it waits until another run of its pipeline has ended.
    Queued,
    Running,
    /// Its process ended before it did; `weir run` or `weir retry` goes on.
    Interrupted,
    Succeeded,
    Failed,
    /// Given up for a fresh run.
    Abandoned,
    /// `concurrency.on_overlap: skip` while another run was going on.
    Skipped,
}

/// One run, as listings and reports show it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    pub run: String,
    pub pipeline: String,
    pub status: RunStatus,
    pub started_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
    pub params: BTreeMap<String, serde_json::Value>,
    pub window: Option<(DateTime<Utc>, DateTime<Utc>)>,
    /// The version of the pipeline that is registered with a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Rows read by sources.
    pub rows_read: u64,
    /// Rows written, by sink.
    pub rows_written: IndexMap<NodeName, u64>,
    pub dead_letters: u64,
    /// Processes that have worked on it.
    pub sessions: u32,
    pub error: Option<String>,
}

/// A run with its stages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunDetail {
    pub summary: RunSummary,
    pub stages: Vec<StageDetail>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageDetail {
    pub stage: u32,
    pub name: String,
    pub slices: u32,
    pub slices_done: u32,
    pub attempts: u32,
    pub account: RowAccount,
}

/// `weir audit RUN`: does the ledger add up, and does the target agree?
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditReport {
    pub run: String,
    pub clean: bool,
    pub nodes: Vec<NodeAudit>,
    pub sinks: Vec<SinkAudit>,
    /// What differs, each naming stage and slice. Empty when clean.
    pub findings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeAudit {
    pub node: NodeName,
    pub rows_in: u64,
    pub rows_out: u64,
    pub filtered: u64,
    pub dead_lettered: u64,
    pub dropped: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SinkAudit {
    pub sink: NodeName,
    pub batches: u64,
    pub rows_in_ledger: u64,
    pub rows_in_target: u64,
    /// False while a `commit: run` has not been shown: the target is not asked then.
    pub is_shown: bool,
    /// Hex, order-independent.
    pub checksum: String,
    /// Batches that the target knows differently.
    pub differing: Vec<PublishedBatch>,
}

/// One rejected row, for `weir dead-letters`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// `<run>/<node>/<stage>-<slice>-<sequence>/<n>`
    pub id: String,
    pub run: String,
    pub pipeline: String,
    pub node: NodeName,
    pub attempt: u32,
    pub at: DateTime<Utc>,
    pub reasons: Vec<String>,
    pub row: weir_connectors::records::Json,
    pub offset: Option<u64>,
}

/// What a run was started with; kept with it, so that it can be finished as it was started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Frozen {
    pub run: String,
    pub pipeline: String,
    /// `env` and `secret` templates unrendered.
    pub spec: PipelineSpec,
    pub spec_text: String,
    /// Where relative paths of the pipeline start.
    pub base_dir: PathBuf,
    /// With all parameters, defaults included.
    pub request: RunRequest,
}

/// What the next attempt at a failed run does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Again {
    /// The same `weir run` goes on with it.
    GoesOn,
    /// Nothing was committed: `weir run` starts another run.
    StartsAnew,
    /// Everything was committed, and it failed all the same (too many rejected rows).
    WroteAll,
    /// It replays dead letters of this run: only `weir retry` goes on with it.
    Replays(String),
}

/// Why the engine could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The file, the parameters or the command are wrong. Exit code 2.
    #[error("{0}")]
    Invalid(String),
    /// The run failed; its state is kept. Exit code 1.
    #[error("run {run} failed: {message}")]
    RunFailed { run: String, message: String, again: Again },
    /// Stopped by the caller at a committed batch; can be resumed. Exit code 1.
    #[error("run {run} was stopped")]
    Stopped { run: String },
    #[error("{0} does not exist")]
    NotFound(String),
    /// What the ledger knows does not allow it: the run is over, or another one is going on. Exit code 2.
    #[error("{0}")]
    Refused(String),
    /// A system has not said what has to be known first; later it may. Exit code 2.
    #[error("{0}")]
    NoAnswer(String),
    /// Another process holds the pipeline, and waiting was not wanted.
    #[error("{0}")]
    Busy(String),
    #[error("failed to {attempt} {path}: {source}")]
    State {
        attempt: &'static str,
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the ledger {path} cannot be used: {message}")]
    Ledger { path: String, message: String },
}

impl EngineError {
    /// Whether a target or the storage has not answered; later it may.
    pub(crate) fn is_unavailable(&self) -> bool {
        match self {
            EngineError::NoAnswer(_) => true,
            EngineError::State { source, .. } => storage::is_unavailable(source),
            _ => false,
        }
    }
}
