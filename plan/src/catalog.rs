//! What planning is told about the world: sources as they are now, and values for templates.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde_json::Value;
use weir_connectors::{ColumnBounds, SourceDescription, Split};
use weir_spec::NodeName;

/// The sources of one run, described and split before planning.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Catalog {
    pub sources: IndexMap<NodeName, CatalogSource>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct CatalogSource {
    /// The node with its plan-time templates rendered (`env` and `secret` still as written).
    pub source: weir_spec::Source,
    pub description: SourceDescription,
    /// Of a reading of all columns and rows after `since`.
    pub splits: Vec<Split>,
    /// Of columns, in the rows of these splits.
    pub bounds: BTreeMap<String, ColumnBounds>,
    /// Incremental sources: the watermark to read from, lag subtracted.
    pub since: Option<String>,
}

/// Values that templates may use when a run is planned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlanScope {
    pub params: BTreeMap<String, Value>,
    /// `run.id`, `run.pipeline`, `run.started_at`.
    pub run: BTreeMap<String, Value>,
    /// `window.start`, `window.end`, RFC 3339; empty when the run has no window.
    pub window: BTreeMap<String, Value>,
    /// Committed watermarks by source node.
    pub state: BTreeMap<String, Value>,
    /// How many tasks may run at once; partitions of whole stages.
    pub parallelism: usize,
    /// Whether tasks run in several processes: whole stages are cut into partitions that need nothing of
    /// each other. In one process DataFusion does that itself, without files in between.
    pub distributed: bool,
}
