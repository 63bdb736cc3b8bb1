//! Cuts a large uncompressed file into byte ranges that start and end with a record.

use std::path::Path;

use memchr::memchr;

use crate::ConnectorError;
use crate::files::compression::{self, Codec};
use crate::files::csv::boundary::{BoundaryScanner, Scan};
use crate::files::csv::dialect::Dialect;
use crate::files::csv::reader::MAX_RECORD_BYTES;
use crate::files::opened::OpenFile;

const CHUNK_BYTES: usize = 256 * 1024;

/// The starts of about `count` equal ranges of a file whose records begin at `data_start`; the
/// first is 0 and takes the header with it. With `multiline` the file is read once. Blocking.
pub(crate) fn range_starts(
    path: &Path,
    dialect: &Dialect,
    data_start: u64,
    size: u64,
    count: u64,
) -> Result<Vec<u64>, ConnectorError> {
    let targets =
        (1..count).map(|index| size / count * index).filter(|target| *target > data_start);
    let mut starts = vec![0];
    scan_for(path, dialect, data_start, targets.collect(), &mut starts)?;
    Ok(starts)
}

/// The starts of about `count` equal ranges of a file of lines. Blocking.
pub(crate) fn line_ranges(path: &Path, size: u64, count: u64) -> Result<Vec<u64>, ConnectorError> {
    let mut starts = vec![0];
    for index in 1..count {
        match line_start_from(path, size / count * index)? {
            Some(start) if start < size => starts.push(start),
            _ => break,
        }
    }
    starts.dedup();
    Ok(starts)
}

/// The first start of a line at or behind `offset`.
fn line_start_from(path: &Path, offset: u64) -> Result<Option<u64>, ConnectorError> {
    let mut at = offset.saturating_sub(1);
    let mut bytes = compression::open(&OpenFile::open(path)?, Codec::None, at)?;
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        let read = compression::fill(&mut bytes, &mut buffer, CHUNK_BYTES)
            .map_err(|error| ConnectorError::io("read", path, error))?;
        if let Some(line_break) = memchr(b'\n', &buffer) {
            return Ok(Some(at + line_break as u64 + 1));
        }
        if read < CHUNK_BYTES {
            return Ok(None);
        }
        at += read as u64;
    }
}

/// Record starts behind each target, from one pass over the file. A record without an end leaves
/// the rest of the file in one range.
fn scan_for(
    path: &Path,
    dialect: &Dialect,
    data_start: u64,
    targets: Vec<u64>,
    starts: &mut Vec<u64>,
) -> Result<(), ConnectorError> {
    let mut targets = targets.into_iter().peekable();
    let mut bytes = compression::open(&OpenFile::open(path)?, Codec::None, data_start)?;
    let mut scanner = BoundaryScanner::new(dialect);
    let mut buffer = Vec::new();
    let mut base = data_start;
    while let Some(target) = targets.peek().copied() {
        let read = compression::fill(&mut bytes, &mut buffer, CHUNK_BYTES)
            .map_err(|error| ConnectorError::io("read", path, error))?;
        let Scan::CompleteTo(end) = scanner.scan(&buffer, false) else { return Ok(()) };
        scanner.take(end);
        buffer.drain(..end);
        base += end as u64;
        if read < CHUNK_BYTES || buffer.len() > MAX_RECORD_BYTES {
            return Ok(());
        }
        if end > 0 && base >= target {
            starts.push(base);
            while targets.next_if(|target| *target <= base).is_some() {}
        }
    }
    Ok(())
}
