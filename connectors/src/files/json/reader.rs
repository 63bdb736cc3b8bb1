//! Records of a JSON file, one by one, and in batches.

use std::sync::Arc;

use serde_json_path::JsonPath;

use crate::files::columns::Projection;
use crate::files::compression::Codec;
use crate::files::json::arrays::ArrayRecords;
use crate::files::json::documents::DocumentRecords;
use crate::files::json::lines::LineRecords;
use crate::files::opened::OpenFile;
use crate::files::stream::{Emitter, Stop};
use crate::records::{Json, decode_slice};
use crate::{ConnectorError, Position, RejectedRow, SourceBatch};

const BATCH_ROWS: usize = 8192;
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// A longer record is rejected in lines and an error in arrays.
pub(crate) const MAX_RECORD_BYTES: usize = 16 * 1024 * 1024;
pub(crate) const CHUNK_BYTES: usize = 1024 * 1024;

/// How the records of a file are written.
#[derive(Clone, Debug)]
pub(crate) enum Layout {
    Lines,
    Array,
    Document(Arc<JsonPath>),
}

/// What to read.
#[derive(Clone, Debug)]
pub(crate) struct JsonRange {
    pub name: String,
    pub file: OpenFile,
    pub codec: Codec,
    pub layout: Layout,
    /// Uncompressed offset; for documents the number of records to skip.
    pub start: u64,
    /// Whether `start` is a position rather than the start of a split.
    pub resumed: bool,
    /// `None`: the end of the file.
    pub end: Option<u64>,
}

/// One record.
pub(crate) struct Record {
    /// Or why it is no JSON.
    pub value: Result<Json, String>,
    /// As it is written; `None` where only the value is left.
    pub raw: Option<String>,
    /// `events.json line 3 (byte offset 210)`.
    pub place: String,
    pub offset: Option<u64>,
    /// In bytes.
    pub size: usize,
    /// Behind the record.
    pub position: u64,
}

/// Yields the records of one range in order.
pub(crate) trait Records {
    /// An error ends the records.
    fn next(&mut self) -> Result<Option<Record>, ConnectorError>;
}

/// Blocking.
pub(crate) fn open_records(range: &JsonRange) -> Result<Box<dyn Records>, ConnectorError> {
    Ok(match &range.layout {
        Layout::Lines => Box::new(LineRecords::open(range)?),
        Layout::Array => Box::new(ArrayRecords::open(range)?),
        Layout::Document(path) => Box::new(DocumentRecords::open(range, path)?),
    })
}

/// Reads the range into `emitter`. What was read before an error is emitted. Blocking.
pub(crate) fn read_records(
    range: &JsonRange,
    projection: &Projection,
    emitter: &mut Emitter,
) -> Result<(), Stop> {
    let mut records = open_records(range)?;
    loop {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let ended = loop {
            if batch.len() == BATCH_ROWS || bytes > BATCH_BYTES {
                break None;
            }
            match records.next() {
                Ok(Some(record)) => {
                    bytes += record.size;
                    batch.push(record);
                }
                Ok(None) => break Some(Ok(())),
                Err(error) => break Some(Err(error)),
            }
        };
        if !batch.is_empty() {
            emitter.emit(decode(&batch, projection)?)?;
        }
        if let Some(end) = ended {
            return Ok(end?);
        }
    }
}

fn decode(batch: &[Record], projection: &Projection) -> Result<SourceBatch, ConnectorError> {
    let sound: Vec<usize> = (0..batch.len()).filter(|index| batch[*index].value.is_ok()).collect();
    let values: Vec<&Json> =
        sound.iter().filter_map(|index| batch[*index].value.as_ref().ok()).collect();
    let decoded = decode_slice(&projection.in_file, &values);
    let mut bad: Vec<(usize, &str)> =
        decoded.rejected.iter().map(|(index, reason)| (sound[*index], reason.as_str())).collect();
    bad.extend(batch.iter().enumerate().filter_map(|(index, record)| {
        record.value.as_ref().err().map(|reason| (index, reason.as_str()))
    }));
    bad.sort_unstable();
    let rejected = bad
        .into_iter()
        .map(|(index, reason)| {
            let record = &batch[index];
            RejectedRow {
                raw: match (&record.raw, &record.value) {
                    (Some(raw), _) => raw.clone(),
                    (None, Ok(value)) => value.to_string(),
                    (None, Err(_)) => String::new(),
                },
                reason: format!("{}: {reason}", record.place),
                offset: record.offset,
            }
        })
        .collect();
    Ok(SourceBatch {
        rows: projection.assemble(decoded.rows.columns(), decoded.rows.num_rows())?,
        rejected,
        position: batch.last().map(|record| Position(record.position.to_string())),
    })
}

/// Why `raw`, one record, is no JSON, and where in it.
pub(crate) fn not_json(error: &serde_json::Error, raw: &[u8]) -> String {
    if let Err(error) = std::str::from_utf8(raw) {
        return format!("not valid UTF-8, from byte {} of the record", error.valid_up_to());
    }
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    let reason = text.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&text);
    match line {
        0 => format!("not valid JSON: {reason}"),
        1 => format!("not valid JSON: {reason}, at column {column} of the record"),
        _ => format!("not valid JSON: {reason}, at line {line}, column {column} of the record"),
    }
}
