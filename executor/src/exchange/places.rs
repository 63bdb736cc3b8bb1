//! Where outputs are written, and where those that a task reads are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::error::{DataFusionError, Result};
use weir_plan::{ExchangeOutput, Holder, InStorage, StageId};
use weir_proto::internal::{StoredOutput, TaskId};
use weir_spec::ExchangeDurability;

use super::client::FlightClients;
use super::files::ExchangeCompression;
use super::store_job::StoreJob;
use super::stored::StoredFile;
use super::ticket::FileTicket;
use crate::RunFolder;

/// What a process needs to keep outputs itself, and to read those of others.
#[derive(Clone, Debug)]
pub(crate) struct Keeping {
    /// Below it are the folders of runs.
    pub(crate) root: PathBuf,
    /// This process.
    pub(crate) holder: Holder,
    pub(crate) clients: Arc<FlightClients>,
    /// Of what this process writes.
    pub(crate) compression: ExchangeCompression,
}

/// Of one run.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) storage: RunFolder,
    /// With the run's folder in it; `None`: everything is in the storage.
    pub(crate) keeping: Option<(Keeping, String)>,
}

/// Where one file of a partition is.
#[derive(Clone, Debug)]
pub(crate) enum ExchangeFile {
    Here(PathBuf),
    Stored(StoredFile),
    Elsewhere {
        clients: Arc<FlightClients>,
        holder: Holder,
        ticket: FileTicket,
        /// The same file in the storage, which has it or is about to get it.
        stored: Option<StoredFile>,
    },
}

impl Places {
    /// Where files of this machine get their names: in the run's folder, or in the executor's own.
    pub(crate) fn drafts(&self) -> PathBuf {
        let own = || self.keeping.as_ref().map(|(keeping, run)| keeping.root.join(run));
        let stored = self.storage.storage().local().map(Path::to_owned);
        stored.or_else(own).expect("a process that has no folder for a run has one of its own")
    }

    /// The folder of this machine that the output of a task goes to, who has it then, and whether it stays there.
    pub(crate) fn output(
        &self,
        durability: ExchangeDurability,
    ) -> (PathBuf, Option<Holder>, InStorage) {
        let in_storage = match durability {
            ExchangeDurability::Async => InStorage::Coming,
            ExchangeDurability::Sync | ExchangeDurability::Off => InStorage::No,
        };
        match &self.keeping {
            Some((keeping, run_folder)) if durability != ExchangeDurability::Sync => {
                (keeping.root.join(run_folder), Some(keeping.holder.clone()), in_storage)
            }
            _ => (self.drafts(), None, InStorage::No),
        }
    }

    /// Of the outputs of this process.
    pub(crate) fn compression(&self) -> ExchangeCompression {
        self.keeping.as_ref().map(|(keeping, _)| keeping.compression).unwrap_or_default()
    }

    /// Whether files are durable in the place where [`Self::drafts`] makes them; otherwise they have to be
    /// taken to the storage first.
    pub(crate) fn is_storage_here(&self) -> bool {
        self.storage.storage().local().is_some()
    }

    /// Where a partition of an exchange is: in one file, or in one of each slice that has dealt rows out
    /// to it, in the order of the slices.
    pub(crate) fn files_of(
        &self,
        inputs: &BTreeMap<StageId, Vec<ExchangeOutput>>,
        stage: StageId,
        partition: u32,
    ) -> Result<Vec<ExchangeFile>> {
        let outputs = inputs.get(&stage).ok_or_else(|| {
            DataFusionError::Internal(format!(
                "the task reads the exchange of stage {stage}, which it was not given"
            ))
        })?;
        let files: Vec<ExchangeFile> = (outputs.iter())
            .filter(|output| output.holds(partition))
            .map(|output| self.file(output, stage, partition))
            .collect::<Result<_>>()?;
        if files.is_empty() {
            return Err(DataFusionError::Internal(format!(
                "the exchange of stage {stage} has no partition {partition}"
            )));
        }
        Ok(files)
    }

    fn file(
        &self,
        output: &ExchangeOutput,
        stage: StageId,
        partition: u32,
    ) -> Result<ExchangeFile> {
        let name = RunFolder::exchange_file(stage, &output.file_id, partition as usize);
        let Some(holder) = &output.holder else {
            let path = self.drafts().join(&name);
            // Of an object store this is what this process has put there itself; it never changes.
            if self.is_storage_here() || path.exists() {
                return Ok(ExchangeFile::Here(path));
            }
            return Ok(ExchangeFile::Stored(self.stored(name)));
        };
        let Some((keeping, run_folder)) = &self.keeping else {
            return Err(DataFusionError::Internal(format!(
                "rows of stage {stage} are kept by executor {}, and this process reads from none",
                holder.executor
            )));
        };
        let is_own =
            keeping.holder.executor == holder.executor && keeping.holder.boot_id == holder.boot_id;
        if is_own {
            return Ok(ExchangeFile::Here(keeping.root.join(run_folder).join(name)));
        }
        let ticket = FileTicket {
            run_folder: run_folder.clone(),
            stage,
            file_id: output.file_id.clone(),
            partition,
        };
        let clients = Arc::clone(&keeping.clients);
        let stored = (output.in_storage != InStorage::No).then(|| self.stored(name));
        Ok(ExchangeFile::Elsewhere { clients, holder: holder.clone(), ticket, stored })
    }

    fn stored(&self, name: String) -> StoredFile {
        StoredFile { storage: self.storage.storage().clone(), name }
    }

    /// What has to be done so that an output which this process keeps outlives it.
    pub(crate) fn to_store(&self, task: &TaskId, output: &ExchangeOutput) -> Option<StoreJob> {
        let (keeping, run_folder) = self.keeping.as_ref()?;
        output.holder.as_ref()?;
        Some(StoreJob {
            run_folder: run_folder.clone(),
            output: StoredOutput {
                run: task.run.clone(),
                stage: task.stage,
                slice: task.slice,
                file_id: output.file_id.clone(),
            },
            partitions: output.first..output.first + output.partitions,
            own: keeping.root.join(run_folder),
            storage: self.storage.storage().clone(),
        })
    }
}

/// Files that are all in the storage: what is read by position must not change.
pub(crate) fn durable_files(files: Vec<ExchangeFile>) -> Result<Vec<ExchangeFile>> {
    for file in &files {
        if let ExchangeFile::Elsewhere { ticket, .. } = file {
            return Err(DataFusionError::Internal(format!(
                "rows of stage {} are read by position, and are not durable",
                ticket.stage
            )));
        }
    }
    Ok(files)
}
