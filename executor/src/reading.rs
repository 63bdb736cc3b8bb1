//! Reads the splits of a slice in order, ahead of the operators, in a task of its own.

use std::path::PathBuf;
use std::sync::Arc;

use datafusion::error::{DataFusionError, Result};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;
use weir_connectors::{ConnectorError, Position, ScanRequest, Source, SourceBatch, Split};
use weir_plan::SlicePosition;
use weir_plan::operators::NodeFailure;
use weir_spec::NodeName;

use crate::TaskError;
use crate::exchange;

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
    pub(crate) fn of_exchange(files: Vec<PathBuf>, start: SlicePosition) -> Self {
        Self::spawn(move |steps| async move {
            let last_words = steps.clone();
            let reading = move || read_partition(&files, start, &steps);
            let result = match tokio::task::spawn_blocking(reading).await {
                Ok(result) => result,
                Err(stopped) => Err(DataFusionError::ExecutionJoin(Box::new(stopped))),
            };
            if let Err(error) = result {
                let _ = last_words.send(Err(error)).await;
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

fn read_partition(files: &[PathBuf], start: SlicePosition, steps: &Steps) -> Result<()> {
    let failed = |error: TaskError| DataFusionError::External(Box::new(error));
    let first = match &start.inner {
        None => 0,
        Some(Position(index)) => index.parse::<usize>().map_err(|_| {
            DataFusionError::Internal(format!("`{index}` is not a position in an exchange"))
        })?,
    };
    // Batches of the files before.
    let mut before = 0;
    for path in files {
        let skipped =
            exchange::batch_count(path).map_err(failed)?.min(first.saturating_sub(before));
        let reader = exchange::open(path, skipped).map_err(failed)?;
        before += skipped;
        for rows in reader {
            let rows = rows.map_err(|cause| failed(exchange::read_error(path, cause)))?;
            before += 1;
            let position = Some(Position(before.to_string()));
            let batch = SourceBatch { rows, rejected: Vec::new(), position };
            if steps.blocking_send(Ok(ReadStep::Batch { split: 0, batch })).is_err() {
                return Ok(());
            }
        }
    }
    // The slice has been dropped if this fails; then nobody waits for its end.
    let _ = steps.blocking_send(Ok(ReadStep::SplitEnd { split: 0 }));
    Ok(())
}
