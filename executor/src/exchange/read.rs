//! Reads outputs, wherever they are.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::error::{DataFusionError, Result};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use weir_plan::Holder;

use super::client::FlightClients;
use super::files::read_stream;
use super::places::ExchangeFile;
use super::stored::StoredFile;
use super::ticket::FileTicket;
use crate::TaskError;

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
    match file {
        ExchangeFile::Here(path) => Ok(read_stream(path)?.boxed()),
        ExchangeFile::Stored(file) => read_stored(&file).await,
        ExchangeFile::Elsewhere { clients, holder, ticket, stored } => {
            let batches = read_kept(&clients, &holder, &ticket).await;
            let kept = Kept { batches, rows: 0, holder, ticket, stored, reader };
            Ok(stream::try_unfold(kept, Kept::next).boxed())
        }
    }
}

async fn read_stored(file: &StoredFile) -> Result<BoxStream<'static, Result<RecordBatch>>> {
    let failed = |error: TaskError| DataFusionError::External(Box::new(error));
    Ok(file.batches().await.map_err(failed)?.map_err(failed).boxed())
}

async fn read_kept(
    clients: &Arc<FlightClients>,
    holder: &Holder,
    ticket: &FileTicket,
) -> BoxStream<'static, Result<RecordBatch, String>> {
    match clients.read(&holder.url, ticket).await {
        Ok(batches) => batches,
        Err(why) => stream::iter([Err(why)]).boxed(),
    }
}

/// A file that another executor keeps. When that does not give it any more, and the storage has it, too, it is read
/// from there, behind the rows that have come already: it is the same file.
struct Kept {
    batches: BoxStream<'static, Result<RecordBatch, String>>,
    /// That have been read.
    rows: usize,
    holder: Holder,
    ticket: FileTicket,
    stored: Option<StoredFile>,
    /// The stage that reads.
    reader: String,
}

impl Kept {
    async fn next(mut self) -> Result<Option<(RecordBatch, Self)>> {
        match self.batches.next().await {
            None => Ok(None),
            Some(Ok(batch)) => {
                self.rows += batch.num_rows();
                Ok(Some((batch, self)))
            }
            Some(Err(why)) => {
                self.batches = self.rest_in_storage(&why).await?;
                match self.batches.next().await {
                    None => Ok(None),
                    Some(Ok(batch)) => Ok(Some((batch, self))),
                    Some(Err(error)) => Err(self.lost(&error)),
                }
            }
        }
    }

    /// What follows the rows that have been read.
    async fn rest_in_storage(
        &mut self,
        why: &str,
    ) -> Result<BoxStream<'static, Result<RecordBatch, String>>> {
        let Some(stored) = self.stored.take() else { return Err(self.lost(why)) };
        let batches = stored.batches().await.map_err(|error| {
            // It may not have them yet, or has refused them: then they are with the holder alone.
            self.lost(&format!("{why}; nor from the storage: {error}"))
        })?;
        let Holder { executor, .. } = &self.holder;
        tracing::info!(executor, rows = self.rows, why, "kept rows are read from the storage");
        let mut behind = self.rows;
        let rest = batches.try_filter_map(move |batch| {
            let skipped = behind.min(batch.num_rows());
            behind -= skipped;
            let rest = batch.slice(skipped, batch.num_rows() - skipped);
            std::future::ready(Ok((rest.num_rows() > 0).then_some(rest)))
        });
        Ok(rest.map_err(|error| error.to_string()).boxed())
    }

    fn lost(&self, why: &str) -> DataFusionError {
        let message = format!(
            "rows of stage {} that executor {} keeps cannot be read from {}: {why}",
            self.ticket.stage, self.holder.executor, self.holder.url
        );
        let error = TaskError::InputLost { stage: self.reader.clone(), message };
        DataFusionError::External(Box::new(error))
    }
}
