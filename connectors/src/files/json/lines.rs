//! One JSON value a line.

use memchr::memchr;

use crate::ConnectorError;
use crate::files::compression::{self, Bytes};
use crate::files::csv::reader::escape_invalid;
use crate::files::json::reader::{
    CHUNK_BYTES, JsonRange, MAX_RECORD_BYTES, Record, Records, not_json,
};
use crate::records::Json;

/// What is kept of a rejected line.
const MAX_RAW_BYTES: usize = 1024 * 1024;

/// Non-blank lines. A line that is no JSON is a record with an error.
pub(crate) struct LineRecords {
    range: JsonRange,
    bytes: Bytes,
    buffer: Vec<u8>,
    /// Of the next line, in `buffer`.
    start: usize,
    /// Of `buffer`, in the file.
    base: u64,
    line: u64,
    at_end: bool,
}

impl LineRecords {
    pub(crate) fn open(range: &JsonRange) -> Result<Self, ConnectorError> {
        Ok(Self {
            bytes: compression::open(&range.file, range.codec, range.start)?,
            line: compression::count_lines_before(&range.file, range.codec, range.start)?,
            range: range.clone(),
            buffer: Vec::new(),
            start: 0,
            base: range.start,
            at_end: false,
        })
    }

    /// Makes room for what was read and reads another chunk.
    fn fill(&mut self) -> Result<(), ConnectorError> {
        self.buffer.drain(..self.start);
        self.base += self.start as u64;
        self.start = 0;
        let left = match self.range.end {
            None => u64::MAX,
            Some(end) => end.saturating_sub(self.base + self.buffer.len() as u64),
        };
        let wanted = CHUNK_BYTES.min(usize::try_from(left).unwrap_or(usize::MAX));
        let read =
            compression::fill(&mut self.bytes, &mut self.buffer, wanted).map_err(|error| {
                compression::read_error(self.range.file.path(), self.range.codec, error)
            })?;
        self.at_end = read < CHUNK_BYTES;
        Ok(())
    }

    /// The rest of a line that is too long is skipped; its start is kept.
    fn skip_long_line(&mut self) -> Result<Record, ConnectorError> {
        let offset = self.base + self.start as u64;
        let raw = escape_invalid(&self.buffer[self.start..self.start + MAX_RAW_BYTES]);
        loop {
            match memchr(b'\n', &self.buffer[self.start..]) {
                Some(end) => {
                    self.start += end + 1;
                    break;
                }
                None => {
                    self.start = self.buffer.len();
                    if self.at_end {
                        break;
                    }
                    self.fill()?;
                }
            }
        }
        let reason = format!("the record is longer than {} MiB", MAX_RECORD_BYTES >> 20);
        Ok(self.record(Err(reason), raw, offset, MAX_RAW_BYTES))
    }

    fn record(
        &mut self,
        value: Result<Json, String>,
        raw: String,
        offset: u64,
        size: usize,
    ) -> Record {
        self.line += 1;
        Record {
            value,
            raw: Some(raw),
            place: format!("{} line {} (byte offset {offset})", self.range.name, self.line),
            offset: Some(offset),
            size,
            position: self.base + self.start as u64,
        }
    }
}

impl Records for LineRecords {
    fn next(&mut self) -> Result<Option<Record>, ConnectorError> {
        let mut searched = self.start;
        loop {
            let found = memchr(b'\n', &self.buffer[searched..]).map(|at| searched + at + 1);
            let end = match found {
                Some(end) => end,
                None if self.at_end && self.start == self.buffer.len() => return Ok(None),
                None if self.at_end => self.buffer.len(),
                None if self.buffer.len() - self.start > MAX_RECORD_BYTES => {
                    return self.skip_long_line().map(Some);
                }
                None => {
                    searched = self.buffer.len() - self.start;
                    self.fill()?;
                    continue;
                }
            };
            let offset = self.base + self.start as u64;
            let mut line = self.buffer[self.start..end].trim_ascii();
            if offset == 0 {
                line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line).trim_ascii();
            }
            if line.is_empty() {
                self.line += 1;
                self.start = end;
                searched = end;
                continue;
            }
            let value = Json::parse(line).map_err(|error| not_json(&error, line));
            let (raw, size) = (escape_invalid(line), line.len());
            self.start = end;
            return Ok(Some(self.record(value, raw, offset, size)));
        }
    }
}
