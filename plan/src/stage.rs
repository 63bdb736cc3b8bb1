//! The frozen result of planning. Serialised once, stored, never planned again.
//!
//! A pipeline is cut into stages so that **every sink is fed by a streaming stage**: one that reads
//! the slices of a single input in order, row by row, and can therefore resume behind its last
//! committed batch. What is not row-wise (joins, aggregates, sorts, unions, sources without
//! positions) and what is used more than once is a whole stage, whose output is a durable exchange.
//!
//! ```text
//! source ─▶ filter/project/validate ─▶ sink                       one streaming stage
//! sources ─▶ join ─▶ [exchange] ─▶ validate ─▶ sink               whole stage, streaming stage
//! ```

use serde::{Deserialize, Serialize};
use weir_connectors::{ScanRequest, Split};
use weir_spec::{ExchangeDurability, NodeName, Sink, Source};

/// A stage of one graph; inputs have smaller ids than what reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StageId(pub u32);

impl std::fmt::Display for StageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Everything that a run will execute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageGraph {
    /// Only this engine version executes the graph; see [`StageGraph::ENGINE_VERSION`].
    pub engine_version: String,
    /// In topological order; `stages[i].id == StageId(i)`.
    pub stages: Vec<Stage>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    pub id: StageId,
    /// For people: the name of the last node.
    pub name: String,
    /// The nodes that this stage computes, sources and sink included, in order of the data.
    pub nodes: Vec<NodeName>,
    /// Exchanges that it reads.
    pub inputs: Vec<StageId>,
    pub kind: StageKind,
    pub output: StageOutput,
    /// The DataFusion plan, for people.
    pub display: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "one per stage, built once")]
pub enum StageKind {
    /// Row-wise over one input: resumable, one task a slice.
    Streaming {
        input: StreamInput,
        /// One partition; its only leaf is the morsel operator.
        plan: EncodedPlan,
        slices: Vec<Slice>,
    },
    /// Not row-wise; a task of it restarts from its inputs.
    Whole {
        plan: EncodedPlan,
        /// Output partitions of the plan.
        partitions: u32,
        /// 1: one task computes all partitions. Otherwise each slice is one partition: of the plan, or,
        /// where its root deals rows out by hash, of what it deals out.
        #[serde(default = "one")]
        slices: u32,
        /// Whether its output is in the storage before a task counts as done, or kept by executors.
        /// Streaming stages read what is `sync`.
        #[serde(default)]
        durability: ExchangeDurability,
    },
}

/// What a streaming stage reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "one per stage, built once")]
pub enum StreamInput {
    Source {
        node: NodeName,
        source: Source,
        request: ScanRequest,
    },
    /// One slice for each partition of the exchange.
    Exchange {
        stage: StageId,
    },
}

/// What one task of a streaming stage reads: splits of the source, one after the other; or one
/// partition of an exchange.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slice {
    Splits(Vec<Split>),
    Partition(u32),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "one per stage, built once")]
pub enum StageOutput {
    /// Arrow IPC files, one a partition, durable before the stage counts as done.
    Exchange,
    Sink {
        node: NodeName,
        sink: Sink,
        schema: EncodedSchema,
    },
}

/// A DataFusion physical plan in `datafusion-proto`'s encoding with our extension codec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncodedPlan(#[serde(with = "base64_bytes")] pub Vec<u8>);

/// An Arrow schema, as an IPC message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncodedSchema(#[serde(with = "base64_bytes")] pub Vec<u8>);

impl StageGraph {
    /// Names the encoding: Weir's version and DataFusion's.
    pub const ENGINE_VERSION: &'static str =
        concat!("weir-", env!("CARGO_PKG_VERSION"), "+datafusion-55.2");
}

impl Stage {
    /// How many slices its tasks have.
    pub fn slice_count(&self) -> u32 {
        match &self.kind {
            StageKind::Streaming { slices, .. } => {
                u32::try_from(slices.len()).expect("a stage has fewer than four billion slices")
            }
            StageKind::Whole { slices, .. } => *slices,
        }
    }
}

fn one() -> u32 {
    1
}

mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}
