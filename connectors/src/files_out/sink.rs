//! The sink itself: checks and prepares the folder, and hands out writers.

use std::fs;
use std::io;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use weir_spec::{self as spec, CommitMode, WriteMode};

use super::durable::{blocking, create_folder, io_error, remove_folder};
use super::encode::Format;
use super::layout::{Layout, safe};
use super::partition::Partitioning;
use super::writer::FileWriter;
use super::{audit, commit, fence, replace};
use crate::{
    ConnectorContext, ConnectorError, Manifest, PrepareSink, PreparedSink, PublishedBatch,
    Recovery, Sink, SinkTask, SinkWriter,
};

/// A folder of files, opened as a sink.
#[derive(Debug)]
pub(super) struct FileSink {
    core: Arc<FileSinkCore>,
}

/// What writers and file tasks share.
#[derive(Debug)]
pub(super) struct FileSinkCore {
    pub layout: Layout,
    pub format: Format,
    pub commit_mode: CommitMode,
    pub target_file_size_bytes: u64,
    partition_by: Vec<String>,
    is_replacing: bool,
}

impl FileSink {
    pub(super) fn new(
        name: &str,
        sink: &spec::Sink,
        target: &spec::FileTarget,
        context: &ConnectorContext,
    ) -> Result<Self, ConnectorError> {
        let in_node = |error: ConnectorError| ConnectorError {
            message: format!("sink `{name}`: {}", error.message),
            ..error
        };
        if sink.mode == WriteMode::Upsert {
            return Err(ConnectorError::config(format!(
                "sink `{name}`: files cannot be upserted: use `mode: append` or `mode: replace`, or \
                 a table"
            )));
        }
        let is_replacing = sink.mode == WriteMode::Replace;
        let path = context.path(&context.resolve(&target.path).map_err(in_node)?);
        let layout = if is_replacing {
            Layout::beside(path).map_err(in_node)?
        } else {
            Layout::inside(path)
        };
        let core = FileSinkCore {
            layout,
            format: Format::new(target.format.clone(), target.compression).map_err(in_node)?,
            commit_mode: if is_replacing { CommitMode::Run } else { sink.commit },
            target_file_size_bytes: target.target_file_size_bytes.get(),
            partition_by: target.partition_by.clone(),
            is_replacing,
        };
        Ok(Self { core: Arc::new(core) })
    }
}

impl FileSinkCore {
    fn prepare(
        &self,
        identity: &PrepareSink,
        schema: &SchemaRef,
    ) -> Result<PreparedSink, ConnectorError> {
        Partitioning::new(schema, &self.partition_by)?;
        let target = &self.layout.target;
        let mut notes = Vec::new();
        if self.is_replacing {
            replace::refuse_foreign(&self.layout)?;
            if !target.exists() {
                notes.push(format!("will create the folder {}", target.display()));
            }
        } else {
            if create_folder(target)? {
                notes.push(format!("created the folder {}", target.display()));
            }
            if is_empty(target)? {
                replace::mark(target, None)?;
            }
        }
        create_folder(&self.layout.control)?;
        create_folder(&self.layout.staging(identity))?;
        // Writers of other runs of this epoch may hold it.
        drop(fence::join(&self.layout, identity, identity.epoch)?);
        Ok(PreparedSink { identity: identity.clone(), payload: serde_json::Value::Null, notes })
    }

    /// Removes what the run keeps besides visible rows.
    fn clean_up(&self, identity: &PrepareSink, epoch: u64) -> Result<(), ConnectorError> {
        if !self.layout.control.exists() {
            return Ok(());
        }
        let _fence = fence::join(&self.layout, identity, epoch)?;
        let staging = self.layout.staging(identity);
        remove_folder(&staging)?;
        // Other runs or sinks may still use these.
        for folder in staging.ancestors().skip(1).take(2) {
            let _ = fs::remove_dir(folder);
        }
        if self.is_replacing { replace::abandon(&self.layout, identity) } else { Ok(()) }
    }

    fn check(&self) -> Result<String, ConnectorError> {
        let target = &self.layout.target;
        let existing = target.ancestors().find(|ancestor| ancestor.exists());
        let Some(existing) = existing else {
            return Err(io_error("find", target, io::ErrorKind::NotFound.into()));
        };
        if !existing.is_dir() {
            return Err(io_error("write to", existing, io::ErrorKind::NotADirectory.into()));
        }
        rustix::fs::access(existing, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
            .map_err(|error| io_error("write to", existing, error.into()))?;
        if self.is_replacing {
            replace::refuse_foreign(&self.layout)?;
        }
        let state = if existing == target { "can be written" } else { "will be created" };
        Ok(format!("folder {} {state}", target.display()))
    }
}

fn is_empty(folder: &std::path::Path) -> Result<bool, ConnectorError> {
    let mut entries =
        fs::read_dir(folder).map_err(|error| io_error("list the folder", folder, error))?;
    Ok(entries.next().is_none())
}

#[async_trait]
impl Sink for FileSink {
    fn commit_mode(&self) -> CommitMode {
        self.core.commit_mode
    }

    async fn prepare(
        &self,
        identity: &PrepareSink,
        schema: &SchemaRef,
    ) -> Result<PreparedSink, ConnectorError> {
        let (core, identity, schema) = (self.core.clone(), identity.clone(), schema.clone());
        blocking(move || core.prepare(&identity, &schema)).await
    }

    async fn writer(&self, task: SinkTask) -> Result<Box<dyn SinkWriter>, ConnectorError> {
        let core = self.core.clone();
        blocking(move || {
            let identity = &task.prepared.identity;
            let partitioning = Partitioning::new(&task.schema, &core.partition_by)?;
            // No two writers ever share a folder, whatever their attempts are numbered.
            let folder_name = format!(
                "{}-{}-{}-{}",
                task.slice,
                task.epoch,
                task.attempt,
                safe(&uuid::Uuid::new_v4().simple().to_string()[..8])
            );
            let folder = core.layout.staging(identity).join(&folder_name);
            create_folder(&folder)?;
            drop(fence::join(&core.layout, identity, task.epoch)?);
            let writer = FileWriter::new(core.clone(), task, partitioning, folder, folder_name);
            Ok(Box::new(writer) as Box<dyn SinkWriter>)
        })
        .await
    }

    async fn recover(
        &self,
        prepared: &PreparedSink,
        manifest: &Manifest,
        _attempt: u32,
        epoch: u64,
    ) -> Result<Recovery, ConnectorError> {
        let core = self.core.clone();
        let (identity, manifest) = (prepared.identity.clone(), manifest.clone());
        blocking(move || {
            let layout = &core.layout;
            let mut moved_to = vec![layout.target.clone()];
            if core.is_replacing {
                moved_to = vec![layout.next(&identity)];
                if replace::is_replaced_by(layout, &identity) {
                    moved_to.push(layout.target.clone());
                }
            }
            let is_shown = core.commit_mode == CommitMode::Batch;
            commit::recover(layout, &identity, &manifest, epoch, &moved_to, is_shown)
        })
        .await
    }

    async fn commit_run(
        &self,
        prepared: &PreparedSink,
        manifests: &[Manifest],
        epoch: u64,
    ) -> Result<(), ConnectorError> {
        let core = self.core.clone();
        let (identity, manifests) = (prepared.identity.clone(), manifests.to_vec());
        blocking(move || match (core.is_replacing, core.commit_mode) {
            (true, _) => replace::commit_run(&core.layout, &identity, &manifests, epoch),
            (false, CommitMode::Run) => {
                commit::commit_run(&core.layout, &identity, &manifests, epoch)
            }
            (false, CommitMode::Batch) => Ok(()),
        })
        .await
    }

    async fn published(
        &self,
        prepared: &PreparedSink,
        manifests: &[Manifest],
    ) -> Result<Vec<PublishedBatch>, ConnectorError> {
        let core = self.core.clone();
        let identity = prepared.identity.clone();
        let empty: Vec<_> =
            manifests.iter().filter(|manifest| manifest.rows == 0).cloned().collect();
        blocking(move || {
            if core.is_replacing && !replace::is_replaced_by(&core.layout, &identity) {
                return Err(replace::replaced_since(&core.layout, &identity));
            }
            let mut batches = audit::published(&core.layout, &identity, &core.format)?;
            // A batch without rows has no file that could be missing.
            for manifest in empty {
                let is_listed = batches.iter().any(|batch| {
                    (batch.slice, batch.sequence) == (manifest.slice, manifest.sequence)
                });
                if !is_listed {
                    batches.push(PublishedBatch {
                        slice: manifest.slice,
                        sequence: manifest.sequence,
                        rows: 0,
                        checksum: None,
                    });
                }
            }
            batches.sort_by_key(|batch| (batch.slice, batch.sequence));
            Ok(batches)
        })
        .await
    }

    async fn clean_up(&self, prepared: &PreparedSink, epoch: u64) -> Result<(), ConnectorError> {
        let core = self.core.clone();
        let identity = prepared.identity.clone();
        blocking(move || core.clean_up(&identity, epoch)).await
    }

    async fn check(&self) -> Result<String, ConnectorError> {
        let core = self.core.clone();
        blocking(move || core.check()).await
    }
}
