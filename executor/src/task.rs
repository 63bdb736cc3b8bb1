//! What an executor is asked to do, and what it reports.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use weir_connectors::{ConnectorError, PreparedSink};
use weir_plan::{Commit, ExchangeOutput, RowAccount, SliceStart, Stage, StageId};
use weir_spec::NodeName;

/// One attempt at one slice of a stage.
#[derive(Clone, Debug)]
pub struct Task {
    pub run: String,
    pub pipeline: String,
    pub stage: Arc<Stage>,
    pub slice: u32,
    /// 1, 2, 3 …
    pub attempt: u32,
    pub epoch: u64,
    pub start: SliceStart,
    /// The exchanges that the stage reads: for each of `stage.inputs` what the attempts that the ledger
    /// has accepted have left ([`TaskOutcome::Exchanged`]), by slice.
    pub inputs: BTreeMap<StageId, Vec<ExchangeOutput>>,
    /// For stages that end in a sink.
    pub prepared: Option<PreparedSink>,
}

/// The ledger, as a task sees it. Each call returns once the fact is durable, and fails when the
/// task's epoch or attempt is no longer the current one.
#[async_trait]
pub trait CommitLog: Send + Sync + std::fmt::Debug {
    async fn intent(&self, task: &Task, commit: &Commit) -> Result<(), CommitLogError>;
    async fn done(&self, task: &Task, sequence: u64) -> Result<(), CommitLogError>;
}

#[derive(Debug, thiserror::Error)]
pub enum CommitLogError {
    /// Another attempt or a newer epoch owns the slice: stop, write nothing.
    #[error("{0}")]
    Fenced(String),
    /// The batch may not be committed: the run has failed.
    #[error("{0}")]
    Refused(String),
    /// The ledger could not be written; the text says which and why.
    #[error("{0}")]
    Unavailable(String),
}

/// How a task ended well.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskOutcome {
    /// All batches of the slice are committed. Totals of this attempt.
    Committed(RowAccount),
    /// The slice's part of an exchange is durable.
    Exchanged { output: ExchangeOutput, account: RowAccount },
    /// Stopped at a committed batch because it was asked to.
    Stopped,
}

/// How a task failed.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("node `{node}`: {source}")]
    Connector {
        node: NodeName,
        #[source]
        source: ConnectorError,
    },
    /// An operator failed: bad cast, division by zero, a rule with `on_error: fail`, too little
    /// memory. Not retryable.
    #[error("stage `{stage}`: {message}")]
    Operator { stage: String, message: String },
    /// Rows that another executor keeps cannot be had from it. No fault of the task.
    #[error("stage `{stage}`: {message}")]
    InputLost { stage: String, message: String },
    /// The state directory failed: disk full, no permission. Not retryable.
    #[error("failed to {attempt} {path}: {source}")]
    State {
        attempt: Cow<'static, str>,
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    CommitLog(#[from] CommitLogError),
}

impl TaskError {
    /// Whether another attempt may succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            TaskError::Connector { source, .. } => source.is_retryable(),
            TaskError::InputLost { .. } => true,
            TaskError::Operator { .. } | TaskError::State { .. } | TaskError::CommitLog(_) => false,
        }
    }
}

/// For progress bars and logs; never for decisions. May be lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProgressEvent {
    /// Rows and bytes (of Arrow memory) that passed a node since the last event.
    Rows {
        run: String,
        node: NodeName,
        rows: u64,
        bytes: u64,
    },
    BatchCommitted {
        run: String,
        node: NodeName,
        slice: u32,
        sequence: u64,
        rows: u64,
    },
}
