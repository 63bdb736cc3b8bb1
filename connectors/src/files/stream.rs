//! A blocking reader as a stream of batches.

use futures::stream;
use tokio::sync::mpsc;

use crate::{ConnectorError, SourceBatch, SourceStream};

/// Batches that are read ahead.
const READ_AHEAD: usize = 2;

/// Where a blocking reader puts its batches.
pub(crate) struct Emitter {
    sender: mpsc::Sender<SourceBatch>,
    rows_wanted: Option<u64>,
}

/// The stream was dropped or has all the rows it wants: stop reading.
pub(crate) struct Enough;

/// Why a reader ended before its data.
pub(crate) enum Stop {
    Enough,
    Failed(ConnectorError),
}

impl From<Enough> for Stop {
    fn from(_: Enough) -> Self {
        Stop::Enough
    }
}

impl From<ConnectorError> for Stop {
    fn from(error: ConnectorError) -> Self {
        Stop::Failed(error)
    }
}

impl Emitter {
    /// Blocks while the stream holds enough.
    pub(crate) fn emit(&mut self, batch: SourceBatch) -> Result<(), Enough> {
        let rows = batch.rows.num_rows() as u64;
        self.sender.blocking_send(batch).map_err(|_| Enough)?;
        match &mut self.rows_wanted {
            None => Ok(()),
            Some(wanted) => {
                *wanted = wanted.saturating_sub(rows);
                if *wanted == 0 { Err(Enough) } else { Ok(()) }
            }
        }
    }
}

/// Runs `read` on a blocking thread. It stops when the stream is dropped, or after the batch that
/// reaches `limit` rows.
pub(crate) fn read_blocking(
    limit: Option<u64>,
    read: impl FnOnce(&mut Emitter) -> Result<(), Stop> + Send + 'static,
) -> SourceStream {
    if limit == Some(0) {
        return Box::pin(stream::empty());
    }
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    let reader =
        tokio::task::spawn_blocking(move || read(&mut Emitter { sender, rows_wanted: limit }));
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
