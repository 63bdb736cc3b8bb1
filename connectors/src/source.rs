//! The reading side of a connector.

use std::collections::BTreeMap;
use std::fmt;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::{ConnectorError, ScanRequest};

/// How far a split has been read: opaque to everyone but the source that made it. Reading on from
/// here yields exactly the rows that follow.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(pub String);

/// A unit of reading, frozen at planning. `payload` is opaque to everyone but its source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// For people: `orders.csv bytes 0–1048576`, `ctid blocks 0–511`.
    pub label: String,
    pub payload: serde_json::Value,
    /// Expected size, for balancing; unit: bytes where known, else 1.
    pub weight: u64,
    /// Expected rows, for progress.
    pub estimated_rows: Option<u64>,
}

/// What a source is, found out once when a run is planned.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceDescription {
    /// All columns. Top-level columns are always marked nullable unless the system guarantees it.
    pub schema: SchemaRef,
    /// Whether batches carry positions from which a later attempt reads exactly the rest. Sources
    /// without (an arbitrary query) are read whole into a durable exchange first.
    pub resumable: bool,
    /// Columns on which predicates are applied exactly by the source.
    pub exact_predicates: Vec<String>,
    /// Whether a split may be read again and again within a run, and yields the same rows each time, all of
    /// them readable. What one query reads several times is then read again; else it is read once and kept.
    pub repeatable: bool,
    /// For people, in `weir plan`: what is pushed down, how it is split.
    pub notes: Vec<String>,
}

/// Between what all values of a column lie; there are nulls besides.
#[derive(Clone, Debug)]
pub struct ColumnBounds {
    /// One value of the column's type.
    pub least: ArrayRef,
    /// One value of the column's type.
    pub greatest: ArrayRef,
    pub nulls: u64,
}

impl PartialEq for ColumnBounds {
    fn eq(&self, other: &Self) -> bool {
        *self.least == *other.least
            && *self.greatest == *other.greatest
            && self.nulls == other.nulls
    }
}

/// A row that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedRow {
    /// The raw line or record, as text (invalid UTF-8 escaped as `\xNN`).
    pub raw: String,
    /// What is wrong and where: `orders.csv line 3 (byte offset 210): column amount: "x" is not a
    /// decimal(10,2)`.
    pub reason: String,
    /// Byte offset in the (uncompressed) file, where there is one.
    pub offset: Option<u64>,
}

/// Some rows of a split, in order.
#[derive(Clone, Debug)]
pub struct SourceBatch {
    /// Schema: the requested columns.
    pub rows: RecordBatch,
    pub rejected: Vec<RejectedRow>,
    /// Reading on from here yields what follows this batch. `None` while no safe point has been
    /// reached, and always for sources that are not resumable. The last batch of a resumable split
    /// must carry one.
    pub position: Option<Position>,
}

/// Batches of one split. A batch has at most about 8,192 rows, and the stream holds at most a few
/// batches in memory. Dropping it stops the reading.
pub type SourceStream = BoxStream<'static, Result<SourceBatch, ConnectorError>>;

/// One opened source node. Cheap to clone behind an `Arc`; opens connections lazily.
#[async_trait]
pub trait Source: Send + Sync + fmt::Debug {
    /// Schema and abilities. Does I/O (reads a header, a footer, a catalogue).
    async fn describe(&self) -> Result<SourceDescription, ConnectorError>;

    /// Cuts one reading into splits: at least one unless there is nothing to read, about
    /// `parallelism` when the system can be read in parallel; deterministic for an unchanged system.
    async fn splits(
        &self,
        request: &ScanRequest,
        parallelism: usize,
    ) -> Result<Vec<Split>, ConnectorError>;

    /// Bounds of columns in the rows of these splits, where they are known without reading any. They are for estimates,
    /// but the planner believes them: a value outside of its column's bounds may make wrong results.
    async fn bounds(
        &self,
        _splits: &[Split],
    ) -> Result<BTreeMap<String, ColumnBounds>, ConnectorError> {
        Ok(BTreeMap::new())
    }

    /// Reads a split from a position, or from its start.
    async fn open(
        &self,
        split: &Split,
        request: &ScanRequest,
        from: Option<&Position>,
    ) -> Result<SourceStream, ConnectorError>;

    /// Connects and reads nothing: `weir connection test`. Returns a line for people.
    async fn check(&self) -> Result<String, ConnectorError>;
}
