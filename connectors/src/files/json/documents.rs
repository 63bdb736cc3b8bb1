//! The records that a JSONPath finds in one document.

use std::vec::IntoIter;

use serde_json_path::JsonPath;

use crate::files::compression;
use crate::files::json::reader::{JsonRange, Record, Records, not_json};
use crate::records::Json;
use crate::{ConnectorError, ErrorKind};

/// A larger document is refused: it would have to be held in memory. Uncompressed.
pub(crate) const MAX_DOCUMENT_BYTES: usize = 64 * 1024 * 1024;

/// Positions are numbers of records.
pub(crate) struct DocumentRecords {
    name: String,
    values: IntoIter<Json>,
    done: u64,
}

impl DocumentRecords {
    pub(crate) fn open(range: &JsonRange, path: &JsonPath) -> Result<Self, ConnectorError> {
        let mut bytes = compression::open(&range.file, range.codec, 0)?;
        let mut text = Vec::new();
        compression::fill(&mut bytes, &mut text, MAX_DOCUMENT_BYTES + 1)
            .map_err(|error| compression::read_error(range.file.path(), range.codec, error))?;
        if text.len() > MAX_DOCUMENT_BYTES {
            return Err(ConnectorError::new(
                ErrorKind::Data,
                format!(
                    "{} is larger than {} MiB, and `records: {path}` needs the whole document in \
                     memory; write the records as lines or as a top-level array, which stream",
                    range.name,
                    MAX_DOCUMENT_BYTES >> 20
                ),
            ));
        }
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
        if text.trim_ascii().is_empty() {
            return Ok(Self { name: range.name.clone(), values: Vec::new().into_iter(), done: 0 });
        }
        let document = Json::parse(text).map_err(|error| {
            let offset = offset_of(text, error.line(), error.column());
            ConnectorError::data(format!(
                "{} is broken at byte offset {offset}: {}; mend the file there, or write it again",
                range.name,
                not_json(&error, text)
            ))
        })?;
        let mut values: Vec<Json> = document.query(path).into_iter().cloned().collect();
        if values.is_empty() && !is_place_there(path, &document) {
            return Err(ConnectorError::data(format!(
                "{}: records path {path} matches nothing: the document is {}; name the place of the \
                 records in `records`",
                range.name,
                shape_of(&document)
            )));
        }
        // A path that means the array rather than its elements.
        if let [Json::Array(_)] = values.as_slice()
            && let Some(Json::Array(items)) = values.pop()
        {
            values = items;
        }
        let done = range.start.min(values.len() as u64);
        let mut values = values.into_iter();
        values.by_ref().take(usize::try_from(done).unwrap_or(usize::MAX)).for_each(drop);
        Ok(Self { name: range.name.clone(), values, done })
    }
}

/// Whether the document has what the path goes through before its last `[*]`: it tells a document
/// without records from one that has its records elsewhere.
fn is_place_there(path: &JsonPath, document: &Json) -> bool {
    let written = path.to_string();
    let place = written.strip_suffix("[*]").and_then(|place| JsonPath::parse(place).ok());
    place.is_some_and(|place| !document.query(&place).is_empty())
}

fn shape_of(document: &Json) -> String {
    match document {
        Json::Object(fields) if fields.is_empty() => "an empty object".to_owned(),
        Json::Object(fields) => {
            let keys: Vec<&str> = fields.keys().take(20).map(String::as_str).collect();
            format!("an object with {}", keys.join(", "))
        }
        Json::Array(items) => format!("an array of {} elements", items.len()),
        _ => "a single value".to_owned(),
    }
}

impl Records for DocumentRecords {
    fn next(&mut self) -> Result<Option<Record>, ConnectorError> {
        let Some(value) = self.values.next() else { return Ok(None) };
        self.done += 1;
        Ok(Some(Record {
            value: Ok(value),
            raw: None,
            place: format!("{} record {}", self.name, self.done),
            offset: None,
            // The document is in memory already.
            size: 1,
            position: self.done,
        }))
    }
}

/// Of a 1-based line and column.
fn offset_of(text: &[u8], line: usize, column: usize) -> usize {
    let before = match line.checked_sub(2) {
        None => 0,
        Some(breaks) => memchr::memchr_iter(b'\n', text).nth(breaks).map_or(0, |at| at + 1),
    };
    (before + column.saturating_sub(1)).min(text.len())
}
