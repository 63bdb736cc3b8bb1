//! Systems that rows come from and go to: the [`Source`] and [`Sink`] traits, one folder per
//! system, and the [`registry`] that opens them from a pipeline's nodes.
//!
//! ```text
//! source split ─▶ SourceBatch{rows, rejected, position} ─▶ operators ─▶ SinkWriter ─▶ stage ─▶ publish
//! ```
//!
//! A connector knows its system and Arrow. It deliberately does not know plans, tasks, the ledger or
//! who calls it: positions and manifests are values that the caller keeps and gives back.

pub mod conformance;
pub mod context;
pub mod durable;
pub mod error;
pub mod files;
mod files_out;
pub mod http;
pub mod postgres;
pub mod probe;
pub mod records;
pub mod registry;
pub mod scan;
pub mod sink;
pub mod sink_conformance;
pub mod source;
mod sqlite;
pub mod types;

pub use context::{ConnectorContext, Redactor, Secrets};
pub use error::{ConnectorError, ErrorKind};
pub use scan::{Comparison, Literal, Predicate, ScanRequest};
pub use sink::{
    Manifest, PrepareSink, PreparedSink, PublishedBatch, Recovery, Sink, SinkTask, SinkWriter,
};
pub use source::{
    ColumnBounds, Position, RejectedRow, Source, SourceBatch, SourceDescription, SourceStream,
    Split,
};
