//! How far a slice has come, and what happened to its rows: the values that pass between a task
//! and the ledger.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use weir_connectors::{Manifest, Position};
use weir_spec::NodeName;

use crate::cursor::is_later_cursor;
use crate::{NodeCounts, StageId};

/// Where the slice goes on: behind its last committed batch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceStart {
    pub position: Option<SlicePosition>,
    pub next_sequence: u64,
}

/// How far a slice has been read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SlicePosition {
    /// Index into the slice's splits; all before it are finished.
    pub split: u32,
    /// Inside that split; `None` is its start.
    pub inner: Option<Position>,
}

/// What happened to the rows of one batch (streaming) or one task (whole).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowAccount {
    pub nodes: IndexMap<NodeName, NodeCounts>,
    /// Rows read from the exchanges of earlier stages. An exchange that a task reads and finds
    /// empty is listed with 0.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub exchanges_read: IndexMap<StageId, u64>,
    /// Rows that left the stage.
    pub rows_written: u64,
    /// Order-independent: wrapping sum of the rows' hashes.
    pub checksum: u64,
    /// Greatest cursor seen, by incremental source.
    pub cursors: IndexMap<NodeName, String>,
}

/// What an attempt at a slice of a whole stage has left: files of some partitions of its exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExchangeOutput {
    pub file_id: String,
    /// The first of its partitions.
    #[serde(default)]
    pub first: u32,
    pub partitions: u32,
    /// The process that has the files, and has finished them without the storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
    /// Of what a process has: whether the storage has the files, too.
    #[serde(default, skip_serializing_if = "InStorage::is_no")]
    pub in_storage: InStorage,
}

/// Whether files that an executor keeps are in the storage as well, under the same names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InStorage {
    /// And they will not be.
    #[default]
    No,
    /// The executor is about to take them there. Each is there as soon as it can be read.
    Coming,
    Yes,
}

impl InStorage {
    fn is_no(&self) -> bool {
        *self == InStorage::No
    }
}

/// A process of an executor that keeps files and serves them over Flight. They are lost with it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holder {
    pub executor: String,
    pub boot_id: String,
    pub url: String,
}

impl ExchangeOutput {
    /// Whether it outlives every executor.
    pub fn is_durable(&self) -> bool {
        self.holder.is_none() || self.in_storage == InStorage::Yes
    }

    pub fn holds(&self, partition: u32) -> bool {
        partition.checked_sub(self.first).is_some_and(|index| index < self.partitions)
    }
}

/// A batch on its way to being visible.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Commit {
    pub manifest: Manifest,
    pub account: RowAccount,
    /// Where the slice goes on once this batch is visible; `None`: the slice is finished.
    pub resume_at: Option<SlicePosition>,
}

impl RowAccount {
    /// Adds another batch or task: counts add up, cursors keep the later one.
    pub fn add(&mut self, other: &RowAccount) {
        for (node, counts) in &other.nodes {
            *self.nodes.entry(node.clone()).or_default() += *counts;
        }
        for (stage, rows) in &other.exchanges_read {
            *self.exchanges_read.entry(*stage).or_default() += rows;
        }
        self.rows_written += other.rows_written;
        self.checksum = self.checksum.wrapping_add(other.checksum);
        for (node, cursor) in &other.cursors {
            match self.cursors.get_mut(node) {
                Some(known) if !is_later_cursor(cursor, known) => {}
                Some(known) => known.clone_from(cursor),
                None => {
                    self.cursors.insert(node.clone(), cursor.clone());
                }
            }
        }
    }
}
