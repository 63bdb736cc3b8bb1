//! Reads a byte range of a CSV file: whole chunks at the speed of Arrow's decoder, and record by
//! record where that fails.
//!
//! ```text
//! bytes ─▶ buffer ─scanner─▶ complete records ─decoder─▶ batch ──────────────▶ emit
//!                                                └─ failed ─▶ record by record ─▶ emit with rejects
//! ```

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::csv::ReaderBuilder;
use arrow::csv::reader::Decoder;
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type, Schema, SchemaRef};
use memchr::memchr;

use crate::files::columns::Projection;
use crate::files::compression::{self, Bytes, Codec, count_lines};
use crate::files::csv::boundary::{BoundaryScanner, Scan};
use crate::files::csv::cells::{is_read_as_text, misfit};
use crate::files::csv::dialect::Dialect;
use crate::files::csv::header::RecordCutter;
use crate::files::opened::OpenFile;
use crate::files::stream::{Emitter, Stop};
use crate::records::column_from_text;
use crate::{ConnectorError, Position, RejectedRow, SourceBatch};

const BATCH_ROWS: usize = 8192;
const CHUNK_BYTES: usize = 2 * 1024 * 1024;
/// A longer record is rejected: something is wrong with its quotes or line breaks.
pub(crate) const MAX_RECORD_BYTES: usize = 16 * 1024 * 1024;
/// What is kept of a rejected record.
const MAX_RAW_BYTES: usize = 1024 * 1024;

/// What to read, and how.
#[derive(Clone, Debug)]
pub(crate) struct CsvRange {
    pub name: String,
    pub file: OpenFile,
    pub codec: Codec,
    pub dialect: Dialect,
    /// Uncompressed offsets; `start` is where a record starts.
    pub start: u64,
    /// `None`: the end of the file.
    pub end: Option<u64>,
    /// One field for every cell of a record, in order.
    pub file_schema: SchemaRef,
    /// Cells that are wanted, in the order of `projection.in_file`.
    pub indices: Vec<usize>,
    pub projection: Projection,
}

/// Reads the range into `emitter`. Blocking.
pub(crate) fn read_range(range: CsvRange, emitter: &mut Emitter) -> Result<(), Stop> {
    let bytes = compression::open(&range.file, range.codec, range.start)?;
    let decode_schema = decode_schema(&range.file_schema);
    let mut reader = RangeReader {
        decoder: build_decoder(&range, &decode_schema),
        decode_schema,
        scanner: BoundaryScanner::new(&range.dialect),
        cutter: RecordCutter::new(&range.dialect),
        bytes,
        buffer: Vec::new(),
        base: range.start,
        lines: 0,
        lines_before: None,
        at_end: false,
        range,
    };
    reader.run(emitter)
}

struct RangeReader {
    range: CsvRange,
    /// `file_schema` with strings where a conversion follows.
    decode_schema: SchemaRef,
    decoder: Decoder,
    scanner: BoundaryScanner,
    cutter: RecordCutter,
    bytes: Bytes,
    /// Starts at a record.
    buffer: Vec<u8>,
    /// Offset of `buffer` in the file.
    base: u64,
    /// Line breaks between the start of the range and `buffer`.
    lines: u64,
    /// Line breaks before the range, counted when a message first needs them.
    lines_before: Option<u64>,
    at_end: bool,
}

impl RangeReader {
    fn run(&mut self, emitter: &mut Emitter) -> Result<(), Stop> {
        loop {
            self.fill()?;
            match self.scanner.scan(&self.buffer, self.at_end) {
                Scan::CompleteTo(end) => {
                    self.decode(end, emitter)?;
                    self.scanner.take(end);
                    if self.at_end {
                        return Ok(());
                    }
                    if self.buffer.len() > MAX_RECORD_BYTES {
                        self.reject_unfinished(emitter)?;
                    }
                }
                Scan::Unclosed(end) => {
                    self.decode(end, emitter)?;
                    self.reject_unfinished(emitter)?;
                }
            }
        }
    }

    /// Reads another chunk, unless the file has ended.
    fn fill(&mut self) -> Result<(), ConnectorError> {
        if self.at_end {
            return Ok(());
        }
        let read_to = self.base + self.buffer.len() as u64;
        let left = self.range.end.map_or(u64::MAX, |end| end.saturating_sub(read_to));
        let wanted = CHUNK_BYTES.min(usize::try_from(left).unwrap_or(usize::MAX));
        let read =
            compression::fill(&mut self.bytes, &mut self.buffer, wanted).map_err(|error| {
                compression::read_error(self.range.file.path(), self.range.codec, error)
            })?;
        self.at_end = read < CHUNK_BYTES;
        Ok(())
    }

    /// Emits the complete records of the first `end` bytes and removes them from the buffer.
    fn decode(&mut self, end: usize, emitter: &mut Emitter) -> Result<(), Stop> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let closing_break = end == buffer.len() && buffer.last().is_some_and(|last| *last != b'\n');
        if closing_break {
            buffer.push(b'\n');
        }
        let records = &buffer[..end + usize::from(closing_break)];
        let has_nul = memchr(0, records).is_some();
        let strays = self.scanner.strays().to_vec();
        let mut start = 0;
        while start < records.len() {
            let decoded =
                self.decode_fast(&records[start..], has_nul, false).filter(|(_, taken)| {
                    let range = start..start + taken;
                    !strays.iter().any(|stray| range.contains(stray))
                });
            let taken = match decoded {
                Some((None, taken)) => taken,
                Some((Some(rows), taken)) => {
                    let position = self.position((start + taken).min(end));
                    emitter.emit(SourceBatch { rows, rejected: Vec::new(), position })?;
                    taken
                }
                None => {
                    let (rows, rejected, taken) = self.decode_slowly(records, start)?;
                    let position = self.position((start + taken).min(end));
                    if rows.num_rows() > 0 || !rejected.is_empty() {
                        emitter.emit(SourceBatch { rows, rejected, position })?;
                    }
                    taken
                }
            };
            start += taken;
        }
        self.lines += count_lines(&buffer[..end]);
        self.base += end as u64;
        buffer.truncate(buffer.len() - usize::from(closing_break));
        buffer.drain(..end);
        self.buffer = buffer;
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "the type of SourceBatch::position")]
    fn position(&self, in_buffer: usize) -> Option<Position> {
        Some(Position((self.base + in_buffer as u64).to_string()))
    }

    /// One batch and the bytes it took; `None` when a record in it is bad. `checked`: the cells of
    /// `records` have passed [`misfit`].
    fn decode_fast(
        &mut self,
        records: &[u8],
        has_nul: bool,
        checked: bool,
    ) -> Option<(Option<RecordBatch>, usize)> {
        let mut taken = 0;
        let batch = loop {
            match self.decoder.decode(&records[taken..]) {
                Ok(bytes) => taken += bytes,
                Err(_) => break Err(()),
            }
            if self.decoder.capacity() == 0 || taken == records.len() {
                break self.decoder.flush().map_err(|_| ());
            }
        };
        if taken > 0 && records[taken - 1] == b'\r' && records.get(taken) == Some(&b'\n') {
            taken += 1;
        }
        let nul = has_nul && memchr(0, &records[..taken]).is_some();
        let assembled = match batch {
            Ok(None) if !nul => return Some((None, taken)),
            // An infinity may be written as such, or be a number too large: the slow check knows.
            Ok(Some(batch)) if !nul && (checked || !has_infinity(&batch)) => {
                self.assemble(&batch).ok()
            }
            _ => None,
        };
        if assembled.is_none() {
            // Whatever it was in the middle of is read again.
            self.decoder = build_decoder(&self.range, &self.decode_schema);
        }
        assembled.map(|batch| (Some(batch), taken))
    }

    /// Up to one batch from `records[start..]`, checking every cell; with the bytes it took.
    fn decode_slowly(
        &mut self,
        records: &[u8],
        start: usize,
    ) -> Result<(RecordBatch, Vec<RejectedRow>, usize), ConnectorError> {
        let mut rejected = Vec::new();
        let mut clean = Vec::new();
        let mut clean_records = Vec::new();
        let mut taken = start;
        // Lines up to `lines_to`, from the buffer's start.
        let (mut lines, mut lines_to) = (0, 0);
        while clean_records.len() + rejected.len() < BATCH_ROWS {
            let Some(length) = self.cutter.next(&records[taken..], true) else {
                taken = records.len();
                break;
            };
            let record = &records[taken..taken + length];
            let skipped = self.blank_before(record);
            let (record, at) = (&record[skipped..], taken + skipped);
            taken += length;
            match self.complaint(record) {
                None => {
                    clean_records.push((clean.len(), at));
                    clean.extend_from_slice(record);
                }
                Some(reason) => {
                    lines += count_lines(&records[lines_to..at]);
                    lines_to = at;
                    rejected.push(self.reject(record, at, lines, &reason)?);
                }
            }
        }
        let rows = match self.decode_fast(&clean, false, true) {
            Some((Some(rows), length))
                if length == clean.len() && rows.num_rows() == clean_records.len() =>
            {
                rows
            }
            Some((None, _)) if clean_records.is_empty() => self.empty_batch()?,
            _ => self.decode_one_by_one(records, &clean, &clean_records, &mut rejected)?,
        };
        Ok((rows, rejected, taken - start))
    }

    /// For records that pass our checks and not the decoder's.
    fn decode_one_by_one(
        &mut self,
        records: &[u8],
        clean: &[u8],
        starts: &[(usize, usize)],
        rejected: &mut Vec<RejectedRow>,
    ) -> Result<RecordBatch, ConnectorError> {
        self.decoder = build_decoder(&self.range, &self.decode_schema);
        let mut batches = Vec::new();
        for (index, (start, at)) in starts.iter().enumerate() {
            let end = starts.get(index + 1).map_or(clean.len(), |(next, _)| *next);
            let record = &clean[*start..end];
            match self.decode_fast(record, false, true) {
                Some((Some(rows), _)) => batches.push(rows),
                Some((None, _)) => {}
                None => {
                    let lines = count_lines(&records[..*at]);
                    rejected.push(self.reject(
                        record,
                        *at,
                        lines,
                        "the record cannot be decoded",
                    )?);
                }
            }
        }
        Ok(arrow::compute::concat_batches(&self.range.projection.output, &batches)?)
    }

    fn empty_batch(&self) -> Result<RecordBatch, ConnectorError> {
        let columns: Vec<ArrayRef> = self
            .range
            .projection
            .in_file
            .fields()
            .iter()
            .map(|field| arrow::array::new_empty_array(field.data_type()))
            .collect();
        self.range.projection.assemble(&columns, 0)
    }

    /// Converts what the decoder has read as text and adds the partitions.
    fn assemble(&self, batch: &RecordBatch) -> Result<RecordBatch, ConnectorError> {
        let columns = self
            .range
            .projection
            .in_file
            .fields()
            .iter()
            .zip(batch.columns())
            .map(|(field, column)| {
                if !is_read_as_text(field) {
                    return Ok(Arc::clone(column));
                }
                let cells: Vec<Option<&str>> = column.as_string::<i32>().iter().collect();
                column_from_text(&cells, field).map_err(|(_, reason)| ConnectorError::data(reason))
            })
            .collect::<Result<Vec<_>, ConnectorError>>()?;
        self.range.projection.assemble(&columns, batch.num_rows())
    }

    /// Blank lines and comments before a record.
    fn blank_before(&self, record: &[u8]) -> usize {
        let mut start = 0;
        loop {
            match record.get(start) {
                Some(b'\n' | b'\r') => start += 1,
                Some(first) if Some(*first) == self.range.dialect.comment => {
                    match memchr::memchr2(b'\n', b'\r', &record[start..]) {
                        Some(line_break) => start += line_break,
                        None => return start,
                    }
                }
                _ => return start,
            }
        }
    }

    /// Everything that is wrong with the record that the cutter has just cut.
    fn complaint(&self, record: &[u8]) -> Option<String> {
        if let Some(at) = memchr(0, record) {
            return Some(format!("it has a NUL byte, at byte {at} of the record"));
        }
        if let Err(error) = std::str::from_utf8(record) {
            return Some(format!(
                "it is not valid UTF-8, from byte {} of the record",
                error.valid_up_to()
            ));
        }
        if memchr(self.range.dialect.quote, record).is_some() {
            let mut scanner = BoundaryScanner::new(&self.range.dialect);
            scanner.scan(record, true);
            if let Some(at) = scanner.strays().first() {
                return Some(format!("text follows a closing quote, at byte {at} of the record"));
            }
        }
        let expected = self.range.file_schema.fields().len();
        let found = self.cutter.cell_count();
        if found != expected {
            let cells = if found == 1 { "cell" } else { "cells" };
            return Some(format!("it has {found} {cells} where {expected} are expected"));
        }
        let reasons: Vec<String> = self
            .range
            .indices
            .iter()
            .zip(self.range.projection.in_file.fields())
            .filter_map(|(index, field)| {
                let Ok(cell) = std::str::from_utf8(self.cutter.cell(*index)) else {
                    return Some(format!("column {}: it is not valid UTF-8", field.name()));
                };
                if self.range.dialect.is_null(cell) { None } else { misfit(field, cell) }
            })
            .collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// Rejects the first line of a record that does not end, and goes on with the next line: if the
    /// mistake is a stray quote, the lines behind it are sound.
    fn reject_unfinished(&mut self, emitter: &mut Emitter) -> Result<(), Stop> {
        let in_quotes = self.scanner.is_in_quotes();
        self.scanner.reset();
        let reason = if in_quotes && self.range.dialect.multiline {
            format!(
                "a quote opens a cell and is not closed within {} MiB or the end of the file",
                MAX_RECORD_BYTES >> 20
            )
        } else if in_quotes {
            "a quote opens a cell and is not closed on its line (multiline: false)".to_owned()
        } else {
            format!("the record is longer than {} MiB", MAX_RECORD_BYTES >> 20)
        };
        let (offset, line) = (self.base, self.line_number(0)?);
        let mut raw = Vec::new();
        loop {
            let end = memchr(b'\n', &self.buffer).map_or(self.buffer.len(), |at| at + 1);
            let room = MAX_RAW_BYTES - raw.len();
            raw.extend_from_slice(&self.buffer[..end.min(room)]);
            let ended = end > 0 && self.buffer[end - 1] == b'\n';
            self.buffer.drain(..end);
            self.base += end as u64;
            if ended || self.at_end {
                self.lines += u64::from(ended);
                break;
            }
            self.fill()?;
        }
        let rejected = vec![self.rejected_row(&raw, offset, line, &reason)];
        let position = self.position(0);
        emitter.emit(SourceBatch { rows: self.empty_batch()?, rejected, position })
    }

    /// A bad record of the buffer; `lines` are the line breaks before it in the buffer.
    fn reject(
        &mut self,
        record: &[u8],
        at: usize,
        lines: u64,
        reason: &str,
    ) -> Result<RejectedRow, ConnectorError> {
        let line = self.line_number(lines)?;
        Ok(self.rejected_row(record, self.base + at as u64, line, reason))
    }

    fn rejected_row(&self, record: &[u8], offset: u64, line: u64, reason: &str) -> RejectedRow {
        let end =
            record.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |at| at + 1);
        RejectedRow {
            raw: escape_invalid(&record[..end.min(MAX_RAW_BYTES)]),
            reason: format!("{} line {line} (byte offset {offset}): {reason}", self.range.name),
            offset: Some(offset),
        }
    }

    /// 1-based, for the line behind `lines` line breaks of the buffer.
    fn line_number(&mut self, lines: u64) -> Result<u64, ConnectorError> {
        let before = match self.lines_before {
            Some(before) => before,
            None => {
                let range = &self.range;
                compression::count_lines_before(&range.file, range.codec, range.start)?
            }
        };
        self.lines_before = Some(before);
        Ok(before + self.lines + lines + 1)
    }
}

fn has_infinity(batch: &RecordBatch) -> bool {
    batch.columns().iter().any(|column| match column.data_type() {
        DataType::Float32 => {
            column.as_primitive::<Float32Type>().values().iter().any(|value| value.is_infinite())
        }
        DataType::Float64 => {
            column.as_primitive::<Float64Type>().values().iter().any(|value| value.is_infinite())
        }
        _ => false,
    })
}

/// `file_schema` as Arrow's decoder can read it.
fn decode_schema(file_schema: &SchemaRef) -> SchemaRef {
    let fields: Vec<Field> = file_schema
        .fields()
        .iter()
        .map(|field| {
            let field = field.as_ref().clone();
            if is_read_as_text(&field) { field.with_data_type(DataType::Utf8) } else { field }
        })
        .collect();
    Arc::new(Schema::new(fields))
}

fn build_decoder(range: &CsvRange, schema: &SchemaRef) -> Decoder {
    ReaderBuilder::new(Arc::clone(schema))
        .with_format(range.dialect.format())
        .with_batch_size(BATCH_ROWS)
        .with_projection(range.indices.clone())
        .build_decoder()
}

/// Text with the bytes that are not UTF-8 as `\xNN`.
pub(crate) fn escape_invalid(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02X}"));
        }
    }
    text
}
