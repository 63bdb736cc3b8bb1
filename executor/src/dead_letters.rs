//! Rejected rows on their way to the run's dead letters.
//!
//! ```text
//! reject ─▶ <node>/<stage>-<slice>.<attempt>.tmp
//!                 │ publish(sequence)
//!                 ▼
//!           <node>/<stage>-<slice>-<sequence>-<attempt>.jsonl
//! ```
//!
//! Rows go to the disk as they come, through a small buffer. A file gets its name only together with
//! the batch that its rows belong to, so that rows of a batch that is lost are read, and rejected,
//! again without a trace of the first time.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use weir_connectors::durable::create_dir_all_durable;
use weir_connectors::records::Json;
use weir_plan::{Rejection, StageId};
use weir_spec::NodeName;

use crate::durable::{remove_files, state_error, sync_parent};
use crate::folder::is_left_over;
use crate::{RunFolder, TaskError};

/// One line of a dead-letter file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeadLetterLine {
    pub run: String,
    pub node: NodeName,
    pub stage: StageId,
    pub slice: u32,
    pub attempt: u32,
    pub at: DateTime<Utc>,
    pub reasons: Vec<String>,
    pub row: Json,
    pub offset: Option<u64>,
}

/// The dead letters of one task.
#[derive(Debug)]
pub(crate) struct DeadLetterBox {
    folder: RunFolder,
    run: String,
    stage: StageId,
    slice: u32,
    attempt: u32,
    /// Every node of the stage, rejecting or not.
    nodes: Vec<NodeName>,
    open: IndexMap<NodeName, OpenFile>,
}

#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    writer: BufWriter<File>,
}

impl DeadLetterBox {
    pub(crate) fn new(folder: RunFolder, task: &crate::Task) -> Self {
        Self {
            folder,
            run: task.run.clone(),
            stage: task.stage.id,
            slice: task.slice,
            attempt: task.attempt,
            nodes: task.stage.nodes.clone(),
            open: IndexMap::new(),
        }
    }

    /// Adds rows to the open batch.
    pub(crate) fn put(&mut self, node: &NodeName, rows: Vec<Rejection>) -> Result<(), TaskError> {
        if rows.is_empty() {
            return Ok(());
        }
        if !self.open.contains_key(node) {
            let file = self.create(node)?;
            self.open.insert(node.clone(), file);
        }
        let file = self.open.get_mut(node).expect("it has been inserted above");
        let at = Utc::now();
        for rejection in rows {
            let line = DeadLetterLine {
                run: self.run.clone(),
                node: node.clone(),
                stage: self.stage,
                slice: self.slice,
                attempt: self.attempt,
                at,
                reasons: rejection.reasons,
                row: rejection.row,
                offset: rejection.offset,
            };
            serde_json::to_writer(&mut file.writer, &line)
                .map_err(std::io::Error::from)
                .and_then(|()| file.writer.write_all(b"\n"))
                .map_err(|cause| state_error("write dead letters to", &file.path, cause))?;
        }
        Ok(())
    }

    /// Ends the open batch: its files are durable under the names of `sequence`.
    pub(crate) fn publish(&mut self, sequence: u64) -> Result<(), TaskError> {
        for (node, file) in std::mem::take(&mut self.open) {
            let (stage, slice) = (self.stage, self.slice);
            let path = self.folder.dead_letter_file(&node, stage, slice, sequence, self.attempt);
            let failed = |cause| state_error("write dead letters to", &path, cause);
            let handle = file.writer.into_inner().map_err(|error| failed(error.into_error()))?;
            handle.sync_all().map_err(failed)?;
            fs::rename(&file.path, &path).map_err(failed)?;
            sync_parent(&path).map_err(failed)?;
        }
        Ok(())
    }

    /// Removes what earlier attempts have left for batches that are not committed.
    pub(crate) fn remove_uncommitted(&self, next_sequence: u64) -> Result<(), TaskError> {
        let prefix = format!("{}-{}-", self.stage, self.slice);
        let unfinished = format!("{}-{}.", self.stage, self.slice);
        let start = (self.attempt, next_sequence);
        let is_meant = |name: &str| {
            let earlier = (name.strip_prefix(&unfinished))
                .and_then(|rest| rest.strip_suffix(".tmp")?.parse::<u32>().ok());
            earlier.is_some_and(|attempt| attempt < self.attempt)
                || is_left_over(name, &prefix, "jsonl", start)
        };
        for node in &self.nodes {
            let folder = self.folder.dead_letters().join(node.as_str());
            remove_files(&folder, is_meant)
                .map_err(|cause| state_error("remove dead letters in", &folder, cause))?;
        }
        Ok(())
    }

    fn create(&mut self, node: &NodeName) -> Result<OpenFile, TaskError> {
        let folder = self.folder.dead_letters().join(node.as_str());
        create_dir_all_durable(&folder).map_err(|cause| state_error("create", &folder, cause))?;
        let path = folder.join(format!("{}-{}.{}.tmp", self.stage, self.slice, self.attempt));
        let file = File::create(&path).map_err(|cause| state_error("create", &path, cause))?;
        Ok(OpenFile { path, writer: BufWriter::with_capacity(64 * 1024, file) })
    }
}

impl Drop for DeadLetterBox {
    fn drop(&mut self) {
        for file in self.open.values() {
            // What cannot be removed now is removed by the next attempt.
            let _ = fs::remove_file(&file.path);
        }
    }
}
