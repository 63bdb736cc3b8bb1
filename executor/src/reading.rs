//! Reads the splits of a slice in order, ahead of the operators, in a task of its own.

use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::error::{DataFusionError, Result};
use futures::{StreamExt, TryStreamExt};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;
use weir_connectors::{ConnectorError, Position, ScanRequest, Source, SourceBatch, Split};
use weir_plan::SlicePosition;
use weir_plan::operators::NodeFailure;
use weir_spec::NodeName;

use crate::TaskError;
use crate::exchange::{self, ExchangeFile, StoredFile};

/// Batches that wait for the operators.
const READ_AHEAD: usize = 3;

/// What a slice is made of, in order.
#[derive(Debug)]
pub(crate) enum ReadStep {
    Batch { split: u32, batch: SourceBatch },
    SplitEnd { split: u32 },
}

/// The steps of a slice from a position on. Dropping it stops the reading.
#[derive(Debug)]
pub(crate) struct SliceReader {
    pub(crate) steps: mpsc::Receiver<Result<ReadStep>>,
    task: AbortOnDropHandle<()>,
}

type Steps = mpsc::Sender<Result<ReadStep>>;

impl SliceReader {
    /// Reads splits of a source, one after the other.
    pub(crate) fn of_source(
        node: NodeName,
        source: Arc<dyn Source>,
        splits: Vec<Split>,
        request: ScanRequest,
        start: SlicePosition,
    ) -> Self {
        Self::spawn(move |steps| async move {
            let reading = read_splits(source, splits, request, start, &steps).await;
            if let Err(error) = reading {
                // Nobody waits for the error when the slice has been dropped.
                let _ = steps.send(Err(NodeFailure::wrap(&node, error))).await;
            }
        })
    }

    /// Reads the files of one partition of an exchange as a single split; its position is the index of a
    /// batch.
    pub(crate) fn of_exchange(files: Vec<ExchangeFile>, start: SlicePosition) -> Self {
        Self::spawn(move |steps| async move {
            if let Err(error) = read_partition(files, start, &steps).await {
                let _ = steps.send(Err(error)).await;
            }
        })
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(read: impl FnOnce(Steps) -> F) -> Self {
        let (sender, steps) = mpsc::channel(READ_AHEAD);
        let reading = read(sender).in_current_span();
        Self { steps, task: AbortOnDropHandle::new(tokio::spawn(reading)) }
    }

    /// Why there are no more steps although the slice is not at its end.
    pub(crate) async fn failure(&mut self) -> DataFusionError {
        match (&mut self.task).await {
            Ok(()) => DataFusionError::Internal("the reader of a slice stopped early".to_owned()),
            Err(stopped) => DataFusionError::ExecutionJoin(Box::new(stopped)),
        }
    }
}

async fn read_splits(
    source: Arc<dyn Source>,
    splits: Vec<Split>,
    request: ScanRequest,
    start: SlicePosition,
    steps: &Steps,
) -> Result<(), ConnectorError> {
    for (index, split) in (0u32..).zip(&splits).skip(start.split as usize) {
        let from = start.inner.as_ref().filter(|_| index == start.split);
        let mut batches = source.open(split, &request, from).await?;
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            let rows = batch.rows.num_rows() + batch.rejected.len();
            tracing::debug!(split = index, rows, "read source batch");
            if steps.send(Ok(ReadStep::Batch { split: index, batch })).await.is_err() {
                return Ok(());
            }
        }
        if steps.send(Ok(ReadStep::SplitEnd { split: index })).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

async fn read_partition(
    files: Vec<ExchangeFile>,
    start: SlicePosition,
    steps: &Steps,
) -> Result<()> {
    let first = match &start.inner {
        None => 0,
        Some(Position(index)) => index.parse::<usize>().map_err(|_| {
            DataFusionError::Internal(format!("`{index}` is not a position in an exchange"))
        })?,
    };
    // Batches of the files before.
    let mut before = 0;
    for file in files {
        let read = match file {
            ExchangeFile::Here(path) => {
                let steps = steps.clone();
                let reading = move || read_here(&path, first, before, &steps);
                match tokio::task::spawn_blocking(reading).await {
                    Ok(read) => read?,
                    Err(stopped) => return Err(DataFusionError::ExecutionJoin(Box::new(stopped))),
                }
            }
            ExchangeFile::Stored(file) => read_stored(&file, first, before, steps).await?,
            ExchangeFile::Elsewhere { .. } => {
                let message = "rows that are read by position are not durable";
                return Err(DataFusionError::Internal(message.to_owned()));
            }
        };
        match read {
            Some(read) => before = read,
            None => return Ok(()),
        }
    }
    // The slice has been dropped if this fails; then nobody waits for its end.
    let _ = steps.send(Ok(ReadStep::SplitEnd { split: 0 })).await;
    Ok(())
}

/// Batches up to the end of the file; `None`: nobody wants them any more.
fn read_here(path: &Path, first: usize, mut before: usize, steps: &Steps) -> Result<Option<usize>> {
    let failed = |error: TaskError| DataFusionError::External(Box::new(error));
    let skipped = exchange::batch_count(path).map_err(failed)?.min(first.saturating_sub(before));
    let reader = exchange::open(path, skipped).map_err(failed)?;
    before += skipped;
    for rows in reader {
        let rows = rows.map_err(|cause| failed(exchange::read_error(path, cause)))?;
        before += 1;
        if steps.blocking_send(Ok(step(rows, before))).is_err() {
            return Ok(None);
        }
    }
    Ok(Some(before))
}

async fn read_stored(
    file: &StoredFile,
    first: usize,
    mut before: usize,
    steps: &Steps,
) -> Result<Option<usize>> {
    let failed = |error: TaskError| DataFusionError::External(Box::new(error));
    let mut batches = std::pin::pin!(file.batches().await.map_err(failed)?);
    while let Some(rows) = batches.try_next().await.map_err(failed)? {
        before += 1;
        // Where they begin only the footer knows; those before are read once more.
        if before > first && steps.send(Ok(step(rows, before))).await.is_err() {
            return Ok(None);
        }
    }
    Ok(Some(before))
}

/// The position is behind the batch.
fn step(rows: RecordBatch, position: usize) -> ReadStep {
    let position = Some(Position(position.to_string()));
    ReadStep::Batch { split: 0, batch: SourceBatch { rows, rejected: Vec::new(), position } }
}
