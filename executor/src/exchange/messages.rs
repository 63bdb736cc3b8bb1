//! The messages of an exchange file, as they are on the disk: neither decoded nor compressed again.
//!
//! ```text
//! file:     magic, zeros │ schema, batches, end │ footer, magic
//! message:  ffffffff, length of the header │ header │ body
//! ```
//!
//! A message of the file is one of Arrow Flight, which puts header and body into fields of their own.

use std::io::{self, Read};

use arrow::ipc::root_as_message;
use arrow_flight::FlightData;
use bytes::Bytes;

const MAGIC: &[u8; 6] = b"ARROW1";
const CONTINUATION: u32 = u32::MAX;
/// Describes the buffers of a batch; more is damage.
const MOST_HEADER_BYTES: usize = 256 << 20;

/// The messages of a file in order, the schema first.
pub(super) struct FileMessages<R> {
    file: R,
    has_begun: bool,
}

impl<R: Read> FileMessages<R> {
    /// Of a file that is read from its beginning.
    pub(super) fn new(file: R) -> Self {
        Self { file, has_begun: false }
    }

    /// `None` at the end, which a file that is cut off does not have.
    pub(super) fn next(&mut self) -> io::Result<Option<FlightData>> {
        if !self.has_begun {
            self.skip_head()?;
            self.has_begun = true;
        } else if self.number()? != CONTINUATION {
            return Err(damaged("a message begins with something else"));
        }
        let length = self.number()? as usize;
        if length == 0 {
            return Ok(None);
        }
        if length > MOST_HEADER_BYTES {
            return Err(damaged("a message's header is too long"));
        }
        let data_header = self.bytes(length)?;
        let message = root_as_message(&data_header).map_err(damaged)?;
        let length = usize::try_from(message.bodyLength()).map_err(damaged)?;
        let data_body = self.bytes(length)?;
        Ok(Some(FlightData { data_header, data_body, ..FlightData::default() }))
    }

    /// Magic, zeros, and the mark of the first message.
    fn skip_head(&mut self) -> io::Result<()> {
        let mut magic = [0; MAGIC.len()];
        self.file.read_exact(&mut magic)?;
        if magic != *MAGIC {
            return Err(damaged("it is no Arrow file"));
        }
        // Zeros follow up to a border of at least eight bytes.
        let mut two = [0; 2];
        self.file.read_exact(&mut two)?;
        loop {
            match self.number()? {
                0 => {}
                CONTINUATION => return Ok(()),
                _ => return Err(damaged("a message begins with something else")),
            }
        }
    }

    fn number(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.file.read_exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn bytes(&mut self, length: usize) -> io::Result<Bytes> {
        let mut bytes = Vec::with_capacity(length.min(MOST_HEADER_BYTES));
        let read = self.file.by_ref().take(length as u64).read_to_end(&mut bytes)?;
        match read == length {
            true => Ok(bytes.into()),
            false => Err(damaged("it ends too early")),
        }
    }
}

fn damaged(why: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(batches: usize) -> Vec<u8> {
        use crate::tests::fakes::{row_schema, rows_of};
        let mut file = Vec::new();
        let schema = row_schema();
        let mut writer =
            arrow::ipc::writer::FileWriter::try_new(&mut file, &schema).expect("a schema");
        for _ in 0..batches {
            writer.write(&rows_of(0..1_000)).expect("written");
        }
        writer.finish().expect("finished");
        drop(writer);
        file
    }

    fn count(bytes: &[u8]) -> io::Result<usize> {
        let mut messages = FileMessages::new(bytes);
        let mut count = 0;
        while messages.next()?.is_some() {
            count += 1;
        }
        Ok(count)
    }

    #[test]
    fn a_file_is_its_schema_and_its_batches() {
        for batches in [0, 1, 3] {
            assert_eq!(count(&file(batches)).expect("whole"), batches + 1);
        }
    }

    #[test]
    fn what_is_cut_off_or_something_else_is_an_error() {
        let whole = file(2);
        for length in [0, 7, 60, 200, whole.len() / 2] {
            count(&whole[..length]).expect_err("it is cut off");
        }
        count(b"not an Arrow file at all").expect_err("it is none");
        let mut other = whole;
        other[64..68].copy_from_slice(b"oops");
        count(&other).expect_err("its first message is gone");
    }
}
