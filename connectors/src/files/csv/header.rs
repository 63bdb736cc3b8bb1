//! The start of a CSV file: byte order mark, header, sample records.

use std::path::Path;

use crate::files::compression::{self, Codec};
use crate::files::csv::dialect::Dialect;
use crate::files::opened::OpenFile;
use crate::{ConnectorError, ErrorKind};

/// How much of a file is looked at to find its columns.
pub(crate) const SAMPLE_BYTES: usize = 1024 * 1024;
pub(crate) const SAMPLE_RECORDS: usize = 1000;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What the first bytes of a file say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Head {
    /// Names in the header; `None` without one.
    pub names: Option<Vec<String>>,
    /// Where the first record starts.
    pub data_start: u64,
    /// The first records, as cells, as far as they are complete and UTF-8.
    pub records: Vec<Vec<String>>,
    /// Bytes that `records` take.
    pub record_bytes: u64,
}

/// Reads the start of a file; with `sample` also its first records. Blocking.
pub(crate) fn read_head(
    file: &OpenFile,
    codec: Codec,
    dialect: &Dialect,
    sample: bool,
) -> Result<Head, ConnectorError> {
    let path = file.path();
    let mut bytes = compression::open(file, codec, 0)?;
    let mut buffer = Vec::new();
    let mut wanted = if sample { SAMPLE_BYTES } else { 16 * 1024 };
    loop {
        let missing = wanted - buffer.len();
        let read = compression::fill(&mut bytes, &mut buffer, missing)
            .map_err(|error| compression::read_error(path, codec, error))?;
        let at_end = read < missing;
        let records = if sample { SAMPLE_RECORDS } else { 0 };
        if let Some(head) = parse_head(&buffer, at_end, dialect, records, path)? {
            return Ok(head);
        }
        if buffer.len() >= SAMPLE_BYTES {
            return Err(ConnectorError::data(format!(
                "the header of {} does not end within {SAMPLE_BYTES} bytes: is this a CSV file with \
                 delimiter `{}`?",
                path.display(),
                char::from(dialect.delimiter)
            )));
        }
        wanted = SAMPLE_BYTES;
    }
}

/// `None` while the header is not complete.
fn parse_head(
    buffer: &[u8],
    at_end: bool,
    dialect: &Dialect,
    record_limit: usize,
    path: &Path,
) -> Result<Option<Head>, ConnectorError> {
    let mut start = if buffer.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
    let mut head = Head { data_start: start as u64, ..Head::default() };
    let mut cutter = RecordCutter::new(dialect);
    if dialect.header {
        match cutter.next(&buffer[start..], at_end) {
            None if at_end => return Ok(Some(head)),
            None => return Ok(None),
            Some(length) => {
                let names = cutter.cells().ok_or_else(|| {
                    ConnectorError::new(
                        ErrorKind::Data,
                        format!(
                            "the header of {} is not valid UTF-8; write the file as UTF-8",
                            path.display()
                        ),
                    )
                })?;
                head.names = Some(
                    names
                        .into_iter()
                        .enumerate()
                        .map(|(index, name)| match name.trim() {
                            "" => format!("column_{}", index + 1),
                            name => name.to_owned(),
                        })
                        .collect(),
                );
                start += length;
                head.data_start = start as u64;
            }
        }
    }
    while head.records.len() < record_limit {
        let Some(length) = cutter.next(&buffer[start..], at_end) else { break };
        if let Some(cells) = cutter.cells() {
            head.records.push(cells);
        }
        start += length;
    }
    head.record_bytes = start as u64 - head.data_start;
    Ok(Some(head))
}

/// Cuts one record after the other out of a buffer.
pub(crate) struct RecordCutter {
    parser: csv_core::Reader,
    pub text: Vec<u8>,
    pub ends: Vec<usize>,
    text_len: usize,
    cell_count: usize,
}

impl RecordCutter {
    pub(crate) fn new(dialect: &Dialect) -> Self {
        Self {
            parser: dialect.parser(),
            text: vec![0; 1024],
            ends: vec![0; 64],
            text_len: 0,
            cell_count: 0,
        }
    }

    /// Length of the first record with its line break and any blank lines and comments before it;
    /// `None` when there is no complete record. With `at_end` the last line break may be missing.
    pub(crate) fn next(&mut self, buffer: &[u8], at_end: bool) -> Option<usize> {
        use csv_core::ReadRecordResult as Outcome;
        self.parser.reset();
        self.text_len = 0;
        self.cell_count = 0;
        let mut taken = 0;
        loop {
            let (outcome, read, written, ended) = self.parser.read_record(
                &buffer[taken..],
                &mut self.text[self.text_len..],
                &mut self.ends[self.cell_count..],
            );
            taken += read;
            self.text_len += written;
            self.cell_count += ended;
            match outcome {
                Outcome::OutputFull => self.text.resize(self.text.len() * 2, 0),
                Outcome::OutputEndsFull => self.ends.resize(self.ends.len() * 2, 0),
                // At the end of the file an empty buffer ends the record.
                Outcome::InputEmpty if at_end => {}
                Outcome::InputEmpty | Outcome::End => return None,
                Outcome::Record => {
                    // The decoder ends a record at the first byte of CR LF.
                    let cut_in_line_break = taken > 0
                        && buffer[taken - 1] == b'\r'
                        && buffer.get(taken) == Some(&b'\n');
                    return Some(taken + usize::from(cut_in_line_break));
                }
            }
        }
    }

    pub(crate) fn cell_count(&self) -> usize {
        self.cell_count
    }

    /// Cell `index`, unescaped.
    pub(crate) fn cell(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.text[start..self.ends[index]]
    }

    /// `None` when a cell is not UTF-8.
    fn cells(&self) -> Option<Vec<String>> {
        (0..self.cell_count)
            .map(|index| std::str::from_utf8(self.cell(index)).ok().map(str::to_owned))
            .collect()
    }
}
