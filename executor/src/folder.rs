//! Where the files of a run are. One place knows the names.

use std::path::{Path, PathBuf};

use weir_plan::StageId;
use weir_spec::NodeName;

/// The folder of one run.
///
/// ```text
/// progress/<stage>/<slice>/<sequence>.json         a Commit, written before its intent
/// dead-letters/<node>/<stage>-<slice>-<sequence>.jsonl
/// exchange/<stage>/<file id>/<partition>.arrow     Arrow IPC files, LZ4
/// spill/                                           of running operators
/// ```
///
/// Names that end in `.tmp` belong to a running or dead task and mean nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFolder {
    root: PathBuf,
}

impl RunFolder {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The checkpoints of a slice.
    pub fn progress(&self, stage: StageId, slice: u32) -> PathBuf {
        self.root.join("progress").join(stage.to_string()).join(slice.to_string())
    }

    /// The rejected rows of all nodes.
    pub fn dead_letters(&self) -> PathBuf {
        self.root.join("dead-letters")
    }

    /// The rows that a node has rejected in one batch. Whole stages have one batch, 0.
    pub fn dead_letter_file(
        &self,
        node: &NodeName,
        stage: StageId,
        slice: u32,
        sequence: u64,
    ) -> PathBuf {
        self.dead_letters().join(node.as_str()).join(format!("{stage}-{slice}-{sequence}.jsonl"))
    }

    /// All outputs of a whole stage, one folder for each attempt that finished.
    pub fn exchange(&self, stage: StageId) -> PathBuf {
        self.root.join("exchange").join(stage.to_string())
    }

    /// One partition of an attempt's output.
    pub fn exchange_file(&self, stage: StageId, file_id: &str, partition: usize) -> PathBuf {
        self.exchange(stage).join(file_id).join(format!("{partition}.arrow"))
    }

    pub fn spill(&self) -> PathBuf {
        self.root.join("spill")
    }
}
