//! Writes the rows of one slice: into a file, and from there in one transaction.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array as _, RecordBatch};
use async_trait::async_trait;
use weir_spec::CommitMode;

use super::commit::{self, BatchState};
use super::insert::Insert;
use super::sink::{SinkCore, SinkPlan};
use super::spill::{Spill, SpilledRows};
use crate::{ConnectorError, Manifest, SinkTask, SinkWriter};

pub(super) struct SqliteWriter {
    pub(super) core: Arc<SinkCore>,
    pub(super) task: SinkTask,
    pub(super) plan: SinkPlan,
    pub(super) folder: PathBuf,
    pub(super) open: Open,
}

#[expect(clippy::large_enum_variant, reason = "one a writer, and a batch most of the time")]
pub(super) enum Open {
    Nothing,
    Batch(Spill),
    Staged {
        sequence: u64,
        rows: Option<SpilledRows>,
    },
    /// A write has failed: part of its rows is lost, so the batch can only be given up.
    Failed,
}

#[async_trait]
impl SinkWriter for SqliteWriter {
    async fn write(&mut self, rows: RecordBatch) -> Result<(), ConnectorError> {
        let mut spill = match std::mem::replace(&mut self.open, Open::Failed) {
            Open::Batch(spill) => spill,
            Open::Nothing => Spill::create(&self.folder, &self.task.schema)?,
            Open::Staged { .. } | Open::Failed => return Err(self.misused()),
        };
        // Under the sink's own schema: batches may come without its metadata.
        let rows = RecordBatch::try_new(self.task.schema.clone(), rows.columns().to_vec())?;
        for column in &self.core.key {
            if rows.column_by_name(column).is_some_and(|array| array.logical_null_count() > 0) {
                return Err(ConnectorError::data(format!(
                    "a row has no value in the key column `{column}`, and cannot be upserted into \
                     table `{}`: reject such rows with `validate: [{{ column: {column}, not_null: \
                     true }}]`",
                    self.core.table
                )));
            }
        }
        spill.write(&rows)?;
        self.open = Open::Batch(spill);
        Ok(())
    }

    fn open_bytes(&self) -> u64 {
        match &self.open {
            Open::Batch(spill) => spill.bytes,
            _ => 0,
        }
    }

    async fn stage(
        &mut self,
        sequence: u64,
        rows: u64,
        checksum: u64,
    ) -> Result<Manifest, ConnectorError> {
        let staged = match std::mem::replace(&mut self.open, Open::Failed) {
            Open::Batch(spill) => Some(spill.finish()?),
            Open::Nothing => None,
            Open::Staged { .. } | Open::Failed => return Err(self.misused()),
        };
        let written = staged.as_ref().map_or(0, |staged| staged.rows);
        if written != rows {
            return Err(ConnectorError::internal(format!(
                "slice {} batch {sequence}: {written} rows were written, {rows} were counted",
                self.task.slice
            )));
        }
        self.open = Open::Staged { sequence, rows: staged };
        Ok(Manifest {
            slice: self.task.slice,
            sequence,
            rows,
            checksum,
            epoch: self.task.epoch,
            payload: serde_json::Value::Null,
        })
    }

    async fn publish(&mut self, manifest: &Manifest) -> Result<(), ConnectorError> {
        let (sequence, staged) = match &self.open {
            Open::Staged { sequence, rows } => (*sequence, rows),
            _ => return Err(self.misused()),
        };
        if sequence != manifest.sequence {
            return Err(self.misused());
        }
        let identity = &self.task.prepared.identity;
        let is_batchwise = self.core.commit_mode == CommitMode::Batch;
        let mut transaction = self.core.database.begin().await?;
        let session = &mut transaction.session;
        commit::fence(session, identity, self.task.epoch).await?;
        commit::fence_attempt(session, identity, self.task.slice, self.task.attempt).await?;
        if commit::batch_state(session, identity, manifest).await? == BatchState::Unknown {
            if let Some(staged) = staged {
                let insert = Insert {
                    table: self.plan.insert_table(&self.core.table).to_owned(),
                    columns: self.plan.columns.clone(),
                    key: if is_batchwise { self.core.key.clone() } else { Vec::new() },
                    constants: self.plan.constants(manifest),
                };
                for rows in staged.open()? {
                    insert.run(session, &rows?).await?;
                }
            }
            commit::record(session, identity, manifest, self.task.epoch, is_batchwise).await?;
        }
        transaction.commit().await?;
        self.open = Open::Nothing;
        Ok(())
    }
}

impl SqliteWriter {
    fn misused(&self) -> ConnectorError {
        ConnectorError::internal(format!(
            "the writer of slice {} was used out of turn or after an error",
            self.task.slice
        ))
    }
}
