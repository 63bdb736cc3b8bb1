//! Reads exchange files out of an object store, as their bytes come.
//!
//! ```text
//! file:  magic, zeros │ schema, batches, end │ footer, magic
//!                       a stream of messages
//! ```
//!
//! The footer, by which a file on a disk is read, comes last; what is before it can be decoded on its own.

use std::io;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::ipc::reader::StreamDecoder;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, TryStreamExt, stream};

use crate::TaskError;
use crate::durable::storage_error;
use crate::storage::Storage;

const MAGIC: &[u8] = b"ARROW1";

/// A file in the storage.
#[derive(Clone, Debug)]
pub(crate) struct StoredFile {
    pub(crate) storage: Storage,
    pub(crate) name: String,
}

impl StoredFile {
    /// Its batches, in order. A few pieces of the file are in memory, whatever its size.
    pub(crate) async fn batches(
        &self,
    ) -> Result<impl Stream<Item = Result<RecordBatch, TaskError>> + Send + use<>, TaskError> {
        let pieces = self.storage.read(&self.name).await.map_err(|cause| self.failed(cause))?;
        let file = self.clone();
        Ok(decode(pieces).map_err(move |cause| file.failed(cause)))
    }

    fn failed(&self, cause: io::Error) -> TaskError {
        storage_error("read", &self.storage, &self.name, cause)
    }
}

struct Decoding {
    pieces: BoxStream<'static, io::Result<Bytes>>,
    /// Of the present piece, what has not been decoded yet.
    rest: Buffer,
    /// Bytes of [`MAGIC`] that have been seen.
    seen: usize,
    has_begun: bool,
    decoder: StreamDecoder,
}

fn decode(
    pieces: BoxStream<'static, io::Result<Bytes>>,
) -> impl Stream<Item = io::Result<RecordBatch>> + Send {
    let rest = Buffer::from(Bytes::new());
    let decoder = StreamDecoder::new();
    let decoding = Decoding { pieces, rest, seen: 0, has_begun: false, decoder };
    stream::try_unfold(decoding, async |mut decoding| {
        let next = decoding.next().await?;
        Ok(next.map(|rows| (rows, decoding)))
    })
}

impl Decoding {
    async fn next(&mut self) -> io::Result<Option<RecordBatch>> {
        loop {
            if self.rest.is_empty() {
                let Some(piece) = self.pieces.try_next().await? else {
                    return Err(damaged("it ends too early"));
                };
                self.rest = Buffer::from(piece);
            }
            self.skip_head()?;
            match self.decoder.decode(&mut self.rest) {
                Ok(Some(rows)) => return Ok(Some(rows)),
                Ok(None) => {}
                // Behind its end there is the footer, which it takes for a mistake.
                Err(_) if self.decoder.finish().is_ok() => return Ok(None),
                Err(cause) => return Err(damaged(cause)),
            }
        }
    }

    /// Up to the first message, which does not begin with a zero.
    fn skip_head(&mut self) -> io::Result<()> {
        while !self.has_begun && !self.rest.is_empty() {
            let byte = self.rest[0];
            if self.seen < MAGIC.len() {
                if byte != MAGIC[self.seen] {
                    return Err(damaged("it is no Arrow file"));
                }
                self.seen += 1;
            } else if byte != 0 {
                self.has_begun = true;
                break;
            }
            self.rest.advance(1);
        }
        Ok(())
    }
}

fn damaged(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_string())
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use futures::StreamExt as _;

    use super::*;
    use crate::exchange::ExchangeFolder;
    use crate::tests::fakes::{row_schema, rows_of};

    fn file_of(ids: std::ops::Range<i64>) -> Vec<u8> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let stage = weir_plan::StageId(0);
        let exchange = ExchangeFolder::create(folder.path(), stage, "a", false).expect("writable");
        let mut writer = exchange.writer(0, &row_schema()).expect("writable");
        if !ids.is_empty() {
            writer.write(rows_of(ids)).expect("written");
        }
        writer.finish().expect("finished");
        exchange.publish().expect("published");
        std::fs::read(folder.path().join("exchange/0/a/0.arrow")).expect("readable")
    }

    async fn read(file: &[u8], piece: usize) -> io::Result<Vec<i64>> {
        let pieces: Vec<_> =
            file.chunks(piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let mut ids = Vec::new();
        let mut batches = std::pin::pin!(decode(stream::iter(pieces).boxed()));
        while let Some(rows) = batches.try_next().await? {
            let column = rows.column(0).as_any().downcast_ref::<Int64Array>().expect("numbers");
            ids.extend(column.values());
        }
        Ok(ids)
    }

    #[tokio::test]
    async fn files_are_read_in_pieces_of_any_size() {
        for rows in [0, 1, 20_000] {
            let file = file_of(0..rows);
            for piece in [1, 7, 1000, file.len()] {
                let ids = read(&file, piece).await.expect("readable");
                assert!(ids.into_iter().eq(0..rows), "{rows} rows in pieces of {piece}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_cut_off_or_something_else_is_an_error() {
        let file = file_of(0..20_000);
        for length in [0, 5, 60, 100, file.len() / 2] {
            read(&file[..length], 1000).await.expect_err("it is cut off");
        }
        let error = read(b"not an Arrow file", 4).await.expect_err("it is none");
        assert_eq!(error.to_string(), "it is no Arrow file");
    }
}
