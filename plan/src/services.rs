//! What operators need of the task that executes them. Set as an extension of the DataFusion session
//! config (`SessionConfig::with_extension(Arc<dyn TaskServices>)` wrapped in [`TaskExtension`]).

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::error::Result;
use datafusion::execution::SendableRecordBatchStream;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use weir_connectors::records::Json;
use weir_connectors::{ConnectorError, Source, SourceBatch};
use weir_spec::NodeName;

use crate::StageId;

/// Rows that went through one node in one task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCounts {
    /// Rows that entered the node. For a source: rows it read, rejected ones included.
    pub rows_in: u64,
    /// Rows that left it by its accepted side.
    pub rows_out: u64,
    /// Rows that became dead letters.
    pub dead_lettered: u64,
    /// Rows dropped by `on_error: drop`.
    pub dropped: u64,
}

impl std::ops::AddAssign for NodeCounts {
    fn add_assign(&mut self, other: Self) {
        self.rows_in += other.rows_in;
        self.rows_out += other.rows_out;
        self.dead_lettered += other.dead_lettered;
        self.dropped += other.dropped;
    }
}

/// A row that a node has rejected, on its way to the dead letters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rejection {
    /// The row as JSON, or the raw text that could not be read.
    pub row: Json,
    /// Every reason, in the order of the rules.
    pub reasons: Vec<String>,
    /// Byte offset of the record in its file, where there is one.
    pub offset: Option<u64>,
}

/// Implemented by the executor (and by in-memory tests of pipelines).
pub trait TaskServices: Send + Sync + std::fmt::Debug {
    /// Opens a source node. Readings are reported by the operator through [`Self::on_source_batch`].
    fn open_source(
        &self,
        node: &NodeName,
        source: &weir_spec::Source,
    ) -> Result<Arc<dyn Source>, ConnectorError>;

    /// Called once for each batch that a source yields, before it goes on: counts rows, keeps
    /// rejected rows, observes the incremental cursor. Fails when the node says `on_error: fail`.
    fn on_source_batch(&self, node: &NodeName, batch: &SourceBatch) -> Result<()>;

    /// Streams one partition of an exchange that an earlier stage has written.
    fn read_exchange(
        &self,
        stage: StageId,
        partition: usize,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>>;

    /// The rows of the morsel that is being executed: the leaf of a streaming stage.
    fn morsel(&self) -> Result<SendableRecordBatchStream>;

    /// Adds to a node's row account.
    fn count(&self, node: &NodeName, counts: NodeCounts);

    /// Keeps rejected rows. They are published together with the task's batch.
    fn reject(&self, node: &NodeName, rows: Vec<Rejection>) -> Result<()>;
}

/// The wrapper under which services travel in a session config's extensions.
#[derive(Clone, Debug)]
pub struct TaskExtension(pub Arc<dyn TaskServices>);
