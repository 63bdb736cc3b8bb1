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
/// first is 0 and takes the header with it. With `multiline` the file is read up to the last start, since
/// only that tells which line breaks are quoted; without, every line break ends a record. Blocking.
pub(crate) fn range_starts(
    path: &Path,
    dialect: &Dialect,
    data_start: u64,
    size: u64,
    count: u64,
) -> Result<Vec<u64>, ConnectorError> {
    if !dialect.multiline {
        let mut starts = line_ranges(path, size, count)?;
        starts.retain(|start| *start == 0 || *start > data_start);
        return Ok(starts);
    }
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

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;
    use crate::files::csv::header::RecordCutter;
    use crate::files::csv::tests::csv_source;

    const COUNT: u64 = 5;

    fn dialect() -> Dialect {
        Dialect::new(&csv_source("x")).expect("a dialect")
    }

    fn starts_of(text: &[u8]) -> Vec<u64> {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(text).expect("written");
        range_starts(file.path(), &dialect(), 0, text.len() as u64, COUNT).expect("readable")
    }

    /// Where each record starts, by the parser that cuts records one by one.
    fn record_starts(text: &[u8]) -> Vec<u64> {
        let mut cutter = RecordCutter::new(&dialect());
        let mut starts = vec![0];
        let mut at = 0;
        while let Some(length) = cutter.next(&text[at..], false) {
            at += length;
            starts.push(at as u64);
        }
        starts
    }

    /// `rows` over and over, at least `bytes` of them.
    fn repeated(rows: &[&str], bytes: usize) -> String {
        let rows = rows.concat();
        rows.repeat(bytes.div_ceil(rows.len()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn every_range_begins_with_a_record(
            plain in 0..1_500_000_usize,
            quoted in 0..1_500_000_usize,
            rows in prop::collection::vec(
                prop::sample::select(vec![
                    "1,x\n", "2,\"a\nb\"\r\n", "3,\"é\n\"\"ü\"\"\n\"\n", "4,y\"z\n", "\"5\n\n\",\"\"\n",
                    "6,long enough to push the others about\r\n",
                ]),
                1..12,
            ),
        ) {
            let text = repeated(&["10,ö\r\n", "9,plain\n"], plain) + &repeated(&rows, quoted);
            let starts = starts_of(text.as_bytes());
            let records = record_starts(text.as_bytes());
            prop_assert!(starts.is_sorted_by(|one, other| one < other), "{starts:?}");
            for start in &starts {
                prop_assert!(records.binary_search(start).is_ok(), "{start} of {starts:?}");
            }
            // The scan goes by chunks, so small files have fewer cuts.
            if text.len() > 2_000_000 {
                prop_assert_eq!(starts.len() as u64, COUNT);
            }
        }
    }
}
