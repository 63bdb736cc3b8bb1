//! A blocking reader as a stream of batches.

use futures::stream;
use tokio::sync::mpsc;

use crate::files::split::FileWatch;
use crate::{ConnectorError, SourceBatch, SourceStream};

/// Batches that are read ahead.
const READ_AHEAD: usize = 2;

/// Where a blocking reader puts its batches.
pub(crate) struct Emitter {
    watch: FileWatch,
    sender: mpsc::Sender<SourceBatch>,
    rows_wanted: Option<u64>,
}

/// Why a reader ended before its data.
pub(crate) enum Stop {
    /// The stream was dropped or has all the rows it wants.
    Enough,
    Failed(ConnectorError),
}

impl From<ConnectorError> for Stop {
    fn from(error: ConnectorError) -> Self {
        Stop::Failed(error)
    }
}

impl Emitter {
    /// Blocks while the stream holds enough. Nothing that was read of a changed file goes on.
    pub(crate) fn emit(&mut self, batch: SourceBatch) -> Result<(), Stop> {
        self.watch.check()?;
        let rows = batch.rows.num_rows() as u64;
        self.sender.blocking_send(batch).map_err(|_| Stop::Enough)?;
        match &mut self.rows_wanted {
            None => Ok(()),
            Some(wanted) => {
                *wanted = wanted.saturating_sub(rows);
                if *wanted == 0 { Err(Stop::Enough) } else { Ok(()) }
            }
        }
    }
}

/// Runs `read` on a blocking thread. It stops when the stream is dropped, or after the batch that
/// reaches `limit` rows. It fails as soon as `watch` sees that the file has changed, whatever became
/// of the reading then.
pub(crate) fn read_blocking(
    limit: Option<u64>,
    watch: FileWatch,
    read: impl FnOnce(&mut Emitter) -> Result<(), Stop> + Send + 'static,
) -> SourceStream {
    if limit == Some(0) {
        return Box::pin(stream::empty());
    }
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    let reader = tokio::task::spawn_blocking(move || {
        let mut emitter = Emitter { watch, sender, rows_wanted: limit };
        match read(&mut emitter) {
            Err(Stop::Enough) => Err(Stop::Enough),
            ended => emitter.watch.check().map_err(Stop::Failed).and(ended),
        }
    });
    Box::pin(stream::unfold(Some((receiver, reader)), |state| async move {
        let (mut receiver, reader) = state?;
        if let Some(batch) = receiver.recv().await {
            return Some((Ok(batch), Some((receiver, reader))));
        }
        match reader.await {
            Ok(Ok(()) | Err(Stop::Enough)) => None,
            Ok(Err(Stop::Failed(error))) => Some((Err(error), None)),
            Err(error) => {
                let message = format!("a reader of files has crashed: {error}");
                Some((Err(ConnectorError::internal(message)), None))
            }
        }
    }))
}

/// Runs blocking work of a connector.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ConnectorError> + Send + 'static,
) -> Result<T, ConnectorError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(ConnectorError::internal(format!("a reader of files has crashed: {error}")))
    })
}
