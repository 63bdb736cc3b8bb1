//! Where outputs are written, and where those that a task reads are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::error::{DataFusionError, Result};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use weir_plan::{ExchangeOutput, Holder, StageId};

use super::client::FlightClients;
use super::files::ExchangeCompression;
use super::files::read_stream;
use super::stored::StoredFile;
use super::ticket::FileTicket;
use crate::{RunFolder, TaskError};

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
    Elsewhere { clients: Arc<FlightClients>, holder: Holder, ticket: FileTicket },
}

impl Places {
    /// Where files of this machine get their names: in the run's folder, or in the executor's own.
    pub(crate) fn drafts(&self) -> PathBuf {
        let own = || self.keeping.as_ref().map(|(keeping, run)| keeping.root.join(run));
        let stored = self.storage.storage().local().map(Path::to_owned);
        stored.or_else(own).expect("a process that has no folder for a run has one of its own")
    }

    /// The folder of this machine that the output of a task goes to, and who has it then.
    pub(crate) fn output(&self, durable: bool) -> (PathBuf, Option<Holder>) {
        match &self.keeping {
            Some((keeping, run_folder)) if !durable => {
                (keeping.root.join(run_folder), Some(keeping.holder.clone()))
            }
            _ => (self.drafts(), None),
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
            let storage = self.storage.storage().clone();
            return Ok(ExchangeFile::Stored(StoredFile { storage, name }));
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
        Ok(ExchangeFile::Elsewhere { clients, holder: holder.clone(), ticket })
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

/// Streams files one after the other; `on_rows` sees the rows of every batch.
pub(crate) fn read_files(
    files: Vec<ExchangeFile>,
    reader: &str,
    on_rows: impl Fn(u64) + Send + Sync + 'static,
) -> BoxStream<'static, Result<RecordBatch>> {
    let reader = reader.to_owned();
    stream::iter(files)
        .then(move |file| read_file(file, reader.clone()))
        .try_flatten()
        .inspect_ok(move |rows| on_rows(rows.num_rows() as u64))
        .boxed()
}

async fn read_file(
    file: ExchangeFile,
    reader: String,
) -> Result<BoxStream<'static, Result<RecordBatch>>> {
    let (clients, holder, ticket) = match file {
        ExchangeFile::Here(path) => return Ok(read_stream(path)?.boxed()),
        ExchangeFile::Stored(file) => return read_stored(&file).await,
        ExchangeFile::Elsewhere { clients, holder, ticket } => (clients, holder, ticket),
    };
    let from = format!(
        "rows of stage {} that executor {} keeps cannot be read from {}",
        ticket.stage, holder.executor, holder.url
    );
    let lost = move |why: String| {
        let message = format!("{from}: {why}");
        let error = TaskError::InputLost { stage: reader.clone(), message };
        DataFusionError::External(Box::new(error))
    };
    let batches = clients.read(&holder.url, &ticket).await.map_err(&lost)?;
    Ok(batches.map_err(lost).boxed())
}

async fn read_stored(file: &StoredFile) -> Result<BoxStream<'static, Result<RecordBatch>>> {
    let failed = |error: TaskError| DataFusionError::External(Box::new(error));
    Ok(file.batches().await.map_err(failed)?.map_err(failed).boxed())
}
