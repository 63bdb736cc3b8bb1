//! The whole pipeline: its nodes and everything around them.

use std::num::NonZeroU32;
use std::time::Duration;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::{
    ColumnType, Connection, NodeName, PipelineName, Sink, Source, TemplateText, Transform,
};

/// One valid pipeline file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PipelineSpec {
    pub pipeline: PipelineName,
    pub description: Option<String>,
    pub owner: Option<String>,
    pub docs: Option<String>,
    /// IANA name; the zone of windows and of triggers that name none. Default UTC.
    pub timezone: String,
    pub triggers: Vec<Trigger>,
    pub catch_up: CatchUp,
    pub concurrency: Concurrency,
    pub params: IndexMap<String, Param>,
    pub connections: IndexMap<String, Connection>,
    pub sources: IndexMap<NodeName, Source>,
    pub transforms: IndexMap<NodeName, Transform>,
    pub sinks: IndexMap<NodeName, Sink>,
    pub retry: RetryPolicy,
    pub checkpoint: CheckpointPolicy,
    pub checks: Vec<Check>,
    pub alerts: Vec<Alert>,
    pub tests: Vec<TestCase>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    Every(Duration),
    Cron { expression: String, timezone: Option<String> },
    After(Vec<PipelineName>),
    Webhook { hmac_header: Option<String>, hmac_secret: Option<TemplateText> },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    #[default]
    Latest,
    All,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Concurrency {
    /// Runs of this pipeline at once. Default 1.
    pub runs: NonZeroU32,
    pub on_overlap: OnOverlap,
}

impl Default for Concurrency {
    fn default() -> Self {
        Self { runs: NonZeroU32::MIN, on_overlap: OnOverlap::Queue }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnOverlap {
    #[default]
    Queue,
    Skip,
    CancelRunning,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Param {
    pub column_type: ColumnType,
    /// `None`: the caller must give a value.
    pub default: Option<serde_json::Value>,
    pub description: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Attempts of one task, the first included. Default 3.
    pub max_attempts: NonZeroU32,
    /// Before the second attempt. Default 1 s.
    pub delay: Duration,
    pub backoff: Backoff,
    /// Default: everything that a connector calls retryable.
    pub retry_on: Vec<RetryOn>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: NonZeroU32::new(3).expect("three is not zero"),
            delay: Duration::from_secs(1),
            backoff: Backoff::Exponential,
            retry_on: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backoff {
    Constant,
    Linear,
    #[default]
    Exponential,
}

/// `timeout`, `connection` or an HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryOn {
    Timeout,
    Connection,
    Status(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointPolicy {
    /// A batch is committed at the latest after this time, even if it is not full. Default 30 s.
    pub every: Duration,
    /// Of rows between the parts of a join or an aggregate, on a cluster.
    #[serde(default)]
    pub exchange: ExchangeDurability,
}

impl Default for CheckpointPolicy {
    fn default() -> Self {
        Self { every: Duration::from_secs(30), exchange: ExchangeDurability::default() }
    }
}

/// Whether rows on their way from one task to another are durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExchangeDurability {
    /// In the cluster's storage before the task that has computed them counts as done.
    #[default]
    Sync,
    /// Kept by the executor that has computed them and served at once, and taken to the storage meanwhile: computed
    /// again if it is lost before that.
    Async,
    /// Kept by the executor that has computed them, and computed again if it is lost.
    Off,
}

/// A data-quality check after the load. Parsed and kept; refused by `validate` in this version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    pub name: Option<String>,
    pub definition: serde_json::Value,
}

/// Parsed and kept; refused by `validate` in this version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    pub definition: serde_json::Value,
}

/// One test of the file: rows given to sources, rows expected of nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TestCase {
    pub name: String,
    pub given: IndexMap<NodeName, Vec<serde_json::Map<String, serde_json::Value>>>,
    /// Keys are nodes or `node.errors`. Only the columns that are written are compared; rows in
    /// any order; the number of rows must be equal.
    pub expect: IndexMap<String, Vec<serde_json::Map<String, serde_json::Value>>>,
    /// Line of the test in the file, 1-based.
    pub line: u32,
}
