//! Outputs of whole stages: Arrow IPC files, one for each slice and partition.
//!
//! ```text
//! .<file id>.tmp/<partition>.arrow   while an attempt writes
//! <file id>/<partition>.arrow        once all partitions are on the disk
//! ```

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::BatchCoalescer;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::ipc::CompressionType;
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use weir_connectors::durable::create_dir_all_durable;
use weir_plan::StageId;

use crate::durable::{state_error, sync_parent};
use crate::{RunFolder, TaskError};

/// Rows of a batch in a file; a batch is what a streaming stage behind the exchange resumes at.
const BATCH_ROWS: usize = 8192;
/// Of rows that are large a batch has fewer: it is one message on its way to others, and in memory as a whole.
const BATCH_BYTES: usize = 16 << 20;
/// Batches that are read ahead of whoever consumes them.
const READ_AHEAD: usize = 2;

/// What files of rows between stages cost: time to compress, or room and time on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExchangeCompression {
    #[default]
    Lz4,
    None,
}

impl ExchangeCompression {
    fn codec(self) -> Option<CompressionType> {
        match self {
            ExchangeCompression::Lz4 => Some(CompressionType::LZ4_FRAME),
            ExchangeCompression::None => None,
        }
    }
}

/// The output folder of one attempt. Dropped without [`ExchangeFolder::publish`], it vanishes.
#[derive(Debug)]
pub(crate) struct ExchangeFolder {
    temporary: PathBuf,
    published: PathBuf,
    is_durable: bool,
    compression: ExchangeCompression,
    is_published: bool,
}

impl ExchangeFolder {
    /// In the folder of a run on this machine.
    pub(crate) fn create(
        run: &Path,
        stage: StageId,
        file_id: &str,
        is_durable: bool,
    ) -> Result<Self, TaskError> {
        let parent = run.join(RunFolder::exchange(stage));
        let temporary = parent.join(format!(".{file_id}.tmp"));
        let failed = |cause| state_error("create", &temporary, cause);
        match fs::remove_dir_all(&temporary) {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(cause));
            }
            _ => {}
        }
        create_dir_all_durable(&temporary).map_err(failed)?;
        let (published, compression) = (parent.join(file_id), ExchangeCompression::default());
        Ok(Self { temporary, published, is_durable, compression, is_published: false })
    }

    pub(crate) fn compressed(mut self, compression: ExchangeCompression) -> Self {
        self.compression = compression;
        self
    }

    pub(crate) fn writer(
        &self,
        partition: usize,
        schema: &SchemaRef,
    ) -> Result<ExchangeWriter, TaskError> {
        let codec = self.compression.codec();
        ExchangeWriter::create(self.file(partition), schema, codec, self.is_durable)
    }

    fn file(&self, partition: usize) -> PathBuf {
        self.temporary.join(format!("{partition}.arrow"))
    }

    /// Shows the folder under its name. All files must be finished.
    pub(crate) fn publish(mut self) -> Result<(), TaskError> {
        let failed = |cause| state_error("finish the exchange", &self.published, cause);
        if self.is_durable {
            sync_parent(&self.file(0)).map_err(failed)?;
        }
        fs::rename(&self.temporary, &self.published).map_err(failed)?;
        if self.is_durable {
            sync_parent(&self.published).map_err(failed)?;
        }
        self.is_published = true;
        Ok(())
    }
}

impl Drop for ExchangeFolder {
    fn drop(&mut self) {
        if !self.is_published {
            // What cannot be removed now is removed with the run.
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

/// Writes one partition, in batches of equal size.
pub(crate) struct ExchangeWriter {
    path: PathBuf,
    is_durable: bool,
    coalescer: BatchCoalescer,
    /// About what the batch has that is not complete yet.
    buffered_bytes: usize,
    writer: FileWriter<BufWriter<File>>,
}

impl ExchangeWriter {
    fn create(
        path: PathBuf,
        schema: &SchemaRef,
        codec: Option<CompressionType>,
        is_durable: bool,
    ) -> Result<Self, TaskError> {
        let file = File::create(&path).map_err(|cause| state_error("create", &path, cause))?;
        let writer = IpcWriteOptions::default()
            .try_with_compression(codec)
            .and_then(|options| {
                let file = BufWriter::with_capacity(256 * 1024, file);
                FileWriter::try_new_with_options(file, schema, options)
            })
            .map_err(|cause| write_error(&path, cause))?;
        let coalescer = BatchCoalescer::new(SchemaRef::clone(schema), BATCH_ROWS);
        Ok(Self { path, is_durable, coalescer, buffered_bytes: 0, writer })
    }

    pub(crate) fn write(&mut self, rows: RecordBatch) -> Result<(), TaskError> {
        let bytes = bytes_of(&rows).map_err(|cause| write_error(&self.path, cause))?;
        let pieces = bytes.div_ceil(BATCH_BYTES).max(1);
        let most_rows = rows.num_rows().div_ceil(pieces).max(1);
        for first in (0..rows.num_rows()).step_by(most_rows) {
            let piece = rows.slice(first, most_rows.min(rows.num_rows() - first));
            if self.buffered_bytes > 0 && self.buffered_bytes + bytes / pieces > BATCH_BYTES {
                let finished = self.coalescer.finish_buffered_batch();
                finished.map_err(|cause| write_error(&self.path, cause))?;
                self.write_completed()?;
            }
            self.coalescer.push_batch(piece).map_err(|cause| write_error(&self.path, cause))?;
            self.buffered_bytes += bytes / pieces;
            self.write_completed()?;
        }
        Ok(())
    }

    /// Returns once all rows are on the disk, if they are to be durable. Waits for it: call it off the async threads.
    pub(crate) fn finish(mut self) -> Result<(), TaskError> {
        self.coalescer.finish_buffered_batch().map_err(|cause| write_error(&self.path, cause))?;
        self.write_completed()?;
        let buffered = self.writer.into_inner().map_err(|cause| write_error(&self.path, cause))?;
        let failed = |cause| state_error("write", &self.path, cause);
        let file = buffered.into_inner().map_err(|error| failed(error.into_error()))?;
        if self.is_durable { file.sync_all().map_err(failed) } else { Ok(()) }
    }

    fn write_completed(&mut self) -> Result<(), TaskError> {
        while let Some(rows) = self.coalescer.next_completed_batch() {
            self.writer.write(&rows).map_err(|cause| write_error(&self.path, cause))?;
            self.buffered_bytes = 0;
        }
        Ok(())
    }
}

/// Of these rows alone, whatever else their buffers hold.
fn bytes_of(rows: &RecordBatch) -> std::result::Result<usize, arrow::error::ArrowError> {
    let bytes = rows.columns().iter().map(|column| {
        let in_buffers = match column.data_type() {
            DataType::Utf8View => column.as_string_view().total_buffer_bytes_used(),
            DataType::BinaryView => column.as_binary_view().total_buffer_bytes_used(),
            _ => 0,
        };
        Ok(column.to_data().get_slice_memory_size()? + in_buffers)
    });
    bytes.sum()
}

/// Reads batches of a partition from `first_batch` on. Blocks on the disk.
pub(crate) fn open(path: &Path, first_batch: usize) -> Result<FileReader<File>, TaskError> {
    let file = File::open(path).map_err(|cause| state_error("open", path, cause))?;
    let mut reader = FileReader::try_new(file, None).map_err(|cause| read_error(path, cause))?;
    if let Some(last_read) = first_batch.checked_sub(1) {
        // `set_index` refuses the end of the file, which the batch before reaches.
        reader.set_index(last_read).map_err(|cause| read_error(path, cause))?;
        reader.next().transpose().map_err(|cause| read_error(path, cause))?;
    }
    Ok(reader)
}

/// How many batches a file holds.
pub(crate) fn batch_count(path: &Path) -> Result<usize, TaskError> {
    Ok(open(path, 0)?.num_batches())
}

/// Streams a whole file.
pub(crate) fn read_stream(path: PathBuf) -> Result<SendableRecordBatchStream> {
    let failed = |error| DataFusionError::External(Box::new(error));
    let reader = open(&path, 0).map_err(failed)?;
    let mut builder = RecordBatchReceiverStreamBuilder::new(reader.schema(), READ_AHEAD);
    let sender = builder.tx();
    builder.spawn(async move {
        let next = |reader: &mut FileReader<File>| reader.next().transpose();
        let read = read_ahead(reader, next, |rows| {
            let sender = sender.clone();
            async move { sender.send(Ok(rows)).await.is_ok() }
        });
        read.await.map_err(|cause| failed(read_error(&path, cause)))
    });
    Ok(builder.build())
}

/// Hands on what a file has, piece by piece, until nobody takes it any more. Only to read a piece takes a thread: a merge has
/// many files open, and of most of them it reads nothing for long.
pub(super) async fn read_ahead<F, T, E, Handed>(
    mut file: F,
    next: impl Fn(&mut F) -> std::result::Result<Option<T>, E> + Copy + Send + 'static,
    hand_on: impl Fn(T) -> Handed,
) -> std::result::Result<(), E>
where
    F: Send + 'static,
    T: Send + 'static,
    E: From<std::io::Error> + Send + 'static,
    Handed: Future<Output = bool>,
{
    loop {
        let reading = tokio::task::spawn_blocking(move || {
            let read = next(&mut file);
            (file, read)
        });
        let read = match reading.await {
            Ok((open, read)) => {
                file = open;
                read?
            }
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The process ends, and this is not the end of the file.
                Err(_) => return Err(std::io::Error::from(std::io::ErrorKind::Interrupted).into()),
            },
        };
        let Some(piece) = read else { return Ok(()) };
        if !hand_on(piece).await {
            return Ok(());
        }
    }
}

pub(crate) fn read_error(path: &Path, cause: arrow::error::ArrowError) -> TaskError {
    state_error("read", path, io_error(cause))
}

fn write_error(path: &Path, cause: arrow::error::ArrowError) -> TaskError {
    state_error("write", path, io_error(cause))
}

fn io_error(cause: arrow::error::ArrowError) -> std::io::Error {
    match cause {
        arrow::error::ArrowError::IoError(_, source) => source,
        other => std::io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, StringArray, StringViewArray};
    use arrow::datatypes::{Field, Schema};

    use super::*;

    /// How many rows the batches of a file have that is written in pieces of so many rows.
    fn batches(texts: ArrayRef, piece: usize) -> Vec<usize> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (rows, data_type) = (texts.len(), texts.data_type().clone());
        let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("text", data_type, false)]));
        let path = folder.path().join("0.arrow");
        let mut writer =
            ExchangeWriter::create(path.clone(), &schema, None, false).expect("writable");
        let all = RecordBatch::try_new(schema, vec![texts]).expect("it fits");
        for first in (0..rows).step_by(piece) {
            writer.write(all.slice(first, piece.min(rows - first))).expect("written");
        }
        writer.finish().expect("finished");
        open(&path, 0).expect("readable").map(|rows| rows.expect("whole").num_rows()).collect()
    }

    #[test]
    fn batches_have_as_many_rows_as_their_bytes_allow() {
        let short: StringArray = (0..2 * BATCH_ROWS + 7).map(|_| Some("short")).collect();
        assert_eq!(batches(Arc::new(short), 1_000), [BATCH_ROWS, BATCH_ROWS, 7]);
        let long = "x".repeat(1 << 20);
        let texts = || (0..40).map(|_| Some(long.as_str()));
        let (plain, views): (StringArray, StringViewArray) = (texts().collect(), texts().collect());
        for (texts, piece) in [1, 7, 40].into_iter().flat_map(|piece| {
            let both: [ArrayRef; 2] = [Arc::new(plain.clone()), Arc::new(views.clone())];
            both.map(|texts| (texts, piece))
        }) {
            let found = batches(texts, piece);
            assert_eq!(found.iter().sum::<usize>(), 40, "{piece}: {found:?}");
            assert!(found.iter().all(|rows| (1..=16).contains(rows)), "{piece}: {found:?}");
        }
    }

    #[test]
    fn a_read_that_is_cancelled_is_no_end_of_the_file() {
        let ending = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let threads = ending.handle().clone();
        ending.shutdown_background();
        let _threads = threads.enter();
        let next = |left: &mut u32| Ok::<_, std::io::Error>(left.checked_sub(1));
        let read = read_ahead(7u32, next, |_| std::future::ready(true));
        let ended = futures::executor::block_on(read);
        let interrupted = std::io::ErrorKind::Interrupted;
        assert_eq!(ended.expect_err("rows are missing").kind(), interrupted);
    }
}
