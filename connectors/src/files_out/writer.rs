//! Writes the rows of one slice into staged files.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use weir_spec::CommitMode;

use super::batch::OpenBatch;
use super::commit;
use super::durable::blocking;
use super::layout::{StagedBatch, StagedFile, final_name};
use super::partition::Partitioning;
use super::sink::FileSinkCore;
use crate::{ConnectorError, Manifest, SinkTask, SinkWriter};

pub(super) struct FileWriter {
    core: Arc<FileSinkCore>,
    task: SinkTask,
    partitioning: Arc<Partitioning>,
    /// This writer's own folder below the staging of the run and sink.
    folder: PathBuf,
    folder_name: String,
    open: Open,
    batches: u64,
    open_bytes: u64,
}

enum Open {
    Nothing,
    Batch(Box<OpenBatch>),
    /// A write has failed: part of its rows is lost, so the batch can only be given up.
    Failed,
}

impl FileWriter {
    /// `folder` exists and is nobody else's.
    pub(super) fn new(
        core: Arc<FileSinkCore>,
        task: SinkTask,
        partitioning: Partitioning,
        folder: PathBuf,
        folder_name: String,
    ) -> Self {
        Self {
            core,
            task,
            partitioning: Arc::new(partitioning),
            folder,
            folder_name,
            open: Open::Nothing,
            batches: 0,
            open_bytes: 0,
        }
    }

    fn take_open(&mut self) -> Result<Box<OpenBatch>, ConnectorError> {
        match std::mem::replace(&mut self.open, Open::Failed) {
            Open::Batch(batch) => Ok(batch),
            Open::Nothing => {
                self.batches += 1;
                Ok(Box::new(OpenBatch::new(
                    self.folder.clone(),
                    self.batches,
                    self.core.format.clone(),
                    self.core.target_file_size_bytes,
                )))
            }
            Open::Failed => Err(ConnectorError::internal(format!(
                "the writer of slice {} was used after an error",
                self.task.slice
            ))),
        }
    }
}

#[async_trait]
impl SinkWriter for FileWriter {
    async fn write(&mut self, rows: RecordBatch) -> Result<(), ConnectorError> {
        let mut batch = self.take_open()?;
        let partitioning = self.partitioning.clone();
        let batch = blocking(move || {
            batch.write(&partitioning, &rows)?;
            Ok(batch)
        })
        .await?;
        self.open_bytes = batch.bytes();
        self.open = Open::Batch(batch);
        Ok(())
    }

    fn open_bytes(&self) -> u64 {
        self.open_bytes
    }

    async fn stage(
        &mut self,
        sequence: u64,
        rows: u64,
        checksum: u64,
    ) -> Result<Manifest, ConnectorError> {
        let mut batch = self.take_open()?;
        let finished = blocking(move || batch.finish()).await?;
        self.open = Open::Nothing;
        self.open_bytes = 0;
        let written: u64 = finished.iter().map(|file| file.rows).sum();
        if written != rows {
            return Err(ConnectorError::internal(format!(
                "slice {} batch {sequence}: {written} rows were written, {rows} were counted",
                self.task.slice
            )));
        }
        let identity = &self.task.prepared.identity;
        let suffix = self.core.format.suffix();
        let files = finished
            .into_iter()
            .zip(0..)
            .map(|(file, number)| {
                let name = final_name(identity, self.task.slice, sequence, number, suffix);
                StagedFile {
                    staged: format!("{}/{}", self.folder_name, file.name),
                    target: match file.partition.as_str() {
                        "" => name,
                        partition => format!("{partition}/{name}"),
                    },
                    rows: file.rows,
                    bytes: file.bytes,
                }
            })
            .collect();
        let payload =
            serde_json::to_value(StagedBatch { files }).expect("names and numbers are always JSON");
        Ok(Manifest {
            slice: self.task.slice,
            sequence,
            rows,
            checksum,
            epoch: self.task.epoch,
            payload,
        })
    }

    async fn publish(&mut self, manifest: &Manifest) -> Result<(), ConnectorError> {
        let layout = self.core.layout.clone();
        let identity = self.task.prepared.identity.clone();
        let manifest = manifest.clone();
        let epoch = self.task.epoch;
        let commit_mode = self.core.commit_mode;
        blocking(move || match commit_mode {
            CommitMode::Batch => commit::publish(&layout, &identity, &manifest, epoch),
            CommitMode::Run => commit::keep_staged(&layout, &identity, epoch),
        })
        .await
    }
}
