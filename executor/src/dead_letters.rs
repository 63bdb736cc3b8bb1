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
//! again without a trace of the first time. Until then it is on this machine's disk: in the run's folder,
//! or, where that is in an object store, in the executor's own.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use weir_connectors::durable::create_dir_all_durable;
use weir_connectors::records::Json;
use weir_plan::{Rejection, StageId};
use weir_spec::NodeName;

use crate::durable::{off_thread, state_error, storage_error};
use crate::folder::is_left_over;
use crate::storage::{Storage, remove_if_present};
use crate::{RunFolder, Task, TaskError};

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
    /// On this machine; laid out as a run's folder.
    drafts: PathBuf,
    run: String,
    stage: StageId,
    slice: u32,
    attempt: u32,
    open: IndexMap<NodeName, OpenFile>,
}

/// Removed when it is dropped, unless it has got another name. What cannot be removed then is removed by
/// the next attempt.
#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    /// Until it is closed.
    writer: Option<BufWriter<File>>,
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        drop(self.writer.take());
        let _ = remove_if_present(&self.path);
    }
}

/// The rejected rows of a batch, before they have its name.
#[derive(Debug)]
pub(crate) struct Draft {
    name: String,
    file: OpenFile,
}

impl DeadLetterBox {
    pub(crate) fn new(drafts: PathBuf, task: &Task) -> Self {
        Self {
            drafts,
            run: task.run.clone(),
            stage: task.stage.id,
            slice: task.slice,
            attempt: task.attempt,
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
            let writer = file.writer.as_mut().expect("files in the box are open");
            serde_json::to_writer(&mut *writer, &line)
                .map_err(io::Error::from)
                .and_then(|()| writer.write_all(b"\n"))
                .map_err(|cause| state_error("write dead letters to", &file.path, cause))?;
        }
        Ok(())
    }

    /// Ends the open batch, which has this sequence.
    pub(crate) fn take(&mut self, sequence: u64) -> Vec<Draft> {
        let (stage, slice, attempt) = (self.stage, self.slice, self.attempt);
        let open = std::mem::take(&mut self.open).into_iter();
        open.map(|(node, file)| {
            let name = RunFolder::dead_letter_file(&node, stage, slice, sequence, attempt);
            Draft { name, file }
        })
        .collect()
    }

    fn create(&mut self, node: &NodeName) -> Result<OpenFile, TaskError> {
        let folder = self.drafts.join(RunFolder::dead_letters_of(node));
        create_dir_all_durable(&folder).map_err(|cause| state_error("create", &folder, cause))?;
        let path = folder.join(format!("{}-{}.{}.tmp", self.stage, self.slice, self.attempt));
        let file = File::create(&path).map_err(|cause| state_error("create", &path, cause))?;
        Ok(OpenFile { path, writer: Some(BufWriter::with_capacity(64 * 1024, file)) })
    }
}

impl Draft {
    /// Makes the rows durable under their name.
    pub(crate) async fn publish(self, storage: &Storage) -> Result<(), TaskError> {
        let Self { name, mut file } = self;
        let file = off_thread(move || {
            let writer = file.writer.take().expect("it is closed once");
            let closed = writer.into_inner().map_err(io::IntoInnerError::into_error);
            closed.map_err(|cause| state_error("write dead letters to", &file.path, cause))?;
            Ok(file)
        })
        .await?;
        (storage.adopt(file.path.clone(), &name).await)
            .map_err(|cause| storage_error("write dead letters to", storage, &name, cause))
    }
}

/// Removes what earlier attempts have left for batches that are not committed.
pub(crate) async fn remove_uncommitted(storage: &Storage, task: &Task) -> Result<(), TaskError> {
    let Task { stage, slice, attempt, .. } = task;
    let start = (*attempt, task.start.next_sequence);
    for node in &stage.nodes {
        let folder = RunFolder::dead_letters_of(node);
        let prefix = format!("{}-{slice}-", stage.id);
        let unfinished = format!("{}-{slice}.", stage.id);
        let is_meant = move |name: &str| {
            let earlier = (name.strip_prefix(&unfinished))
                .and_then(|rest| rest.strip_suffix(".tmp")?.parse::<u32>().ok());
            earlier.is_some_and(|attempt| attempt < start.0)
                || is_left_over(name, &prefix, "jsonl", start)
        };
        let removed = storage.delete_in(&folder, is_meant).await;
        removed
            .map_err(|cause| storage_error("remove dead letters in", storage, &folder, cause))?;
    }
    Ok(())
}
