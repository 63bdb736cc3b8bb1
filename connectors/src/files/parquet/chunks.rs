//! The bytes of a row group's columns, read at once where they are few.
//!
//! The decoder asks for a page's header and then for its body, column by column in turn. From the file
//! that is two seeks and several small reads a page; row groups are often small enough to be read ahead.

use std::io::{BufReader, Read};

use bytes::{Buf as _, Bytes};
use parquet::arrow::ProjectionMask;
use parquet::errors::Result;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{ChunkReader, Length};

use crate::files::opened::OpenFile;

/// Compressed bytes of a row group that are read ahead at most; above, page by page.
const READ_AHEAD_BYTES: u64 = if cfg!(test) { 64 * 1024 } else { 16 * 1024 * 1024 };

/// Columns of one row group.
#[derive(Debug)]
pub(super) struct ColumnChunks {
    file: OpenFile,
    /// Offset in the file and bytes, of each column that has been read.
    read: Vec<(u64, Bytes)>,
}

impl ColumnChunks {
    pub(super) fn open(
        file: &OpenFile,
        group: &RowGroupMetaData,
        wanted: &ProjectionMask,
    ) -> std::io::Result<Self> {
        let columns = group.columns().iter().enumerate();
        let ranges: Vec<(u64, u64)> = columns
            .filter(|(index, _)| wanted.leaf_included(*index))
            .map(|(_, column)| column.byte_range())
            .collect();
        let mut chunks = Self { file: file.clone(), read: Vec::new() };
        let total = ranges.iter().fold(0_u64, |sum, (_, length)| sum.saturating_add(*length));
        if total > READ_AHEAD_BYTES {
            return Ok(chunks);
        }
        for (start, length) in ranges {
            let bytes = read_at(file, start, usize::try_from(length).unwrap_or(usize::MAX))?;
            chunks.read.push((start, bytes));
        }
        Ok(chunks)
    }

    /// What has been read from `start` on, to the end of its column.
    fn read_ahead(&self, start: u64) -> Option<Bytes> {
        self.read.iter().find_map(|(first, bytes)| {
            let skip = usize::try_from(start.checked_sub(*first)?).ok()?;
            (skip < bytes.len()).then(|| bytes.slice(skip..))
        })
    }
}

fn read_at(file: &OpenFile, start: u64, length: usize) -> std::io::Result<Bytes> {
    let mut bytes = vec![0; length];
    file.reader(start).read_exact(&mut bytes)?;
    Ok(bytes.into())
}

impl Length for ColumnChunks {
    fn len(&self) -> u64 {
        self.file.stamp().map_or(0, |(size, _)| size)
    }
}

impl ChunkReader for ColumnChunks {
    type T = Box<dyn Read + Send>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(match self.read_ahead(start) {
            Some(bytes) => Box::new(bytes.reader()),
            None => Box::new(BufReader::new(self.file.reader(start))),
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        match self.read_ahead(start) {
            Some(bytes) if length <= bytes.len() => Ok(bytes.slice(..length)),
            _ => Ok(read_at(&self.file, start, length)?),
        }
    }
}
