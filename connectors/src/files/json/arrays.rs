//! The elements of a top-level array, found without loading the file.
//!
//! ```text
//! Start ─[─▶ First ─element─▶ After ─,─▶ Next ─element─▶ After …
//!              └────────── ] ──┴──────▶ Done
//! ```

use crate::files::compression::{self, Bytes};
use crate::files::json::reader::{
    CHUNK_BYTES, JsonRange, MAX_RECORD_BYTES, Record, Records, not_json,
};
use crate::records::Json;
use crate::{ConnectorError, ErrorKind};

/// Positions are behind an element.
pub(crate) struct ArrayRecords {
    range: JsonRange,
    bytes: Bytes,
    buffer: Vec<u8>,
    /// What is next, in `buffer`.
    start: usize,
    /// Of `buffer`, in the file.
    base: u64,
    at_end: bool,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Start,
    First,
    After,
    Next,
    Done,
}

impl ArrayRecords {
    pub(crate) fn open(range: &JsonRange) -> Result<Self, ConnectorError> {
        Ok(Self {
            bytes: compression::open(&range.file, range.codec, range.start)?,
            range: range.clone(),
            buffer: Vec::new(),
            start: 0,
            base: range.start,
            at_end: false,
            state: if range.resumed { State::After } else { State::Start },
        })
    }

    fn offset(&self) -> u64 {
        self.base + self.start as u64
    }

    fn broken(&self, what: &str) -> ConnectorError {
        ConnectorError::new(
            ErrorKind::Data,
            format!(
                "{} is broken at byte offset {}: {what}; mend the file there, or write it again",
                self.range.name,
                self.offset()
            ),
        )
    }

    fn fill(&mut self) -> Result<(), ConnectorError> {
        self.buffer.drain(..self.start);
        self.base += self.start as u64;
        self.start = 0;
        let read =
            compression::fill(&mut self.bytes, &mut self.buffer, CHUNK_BYTES).map_err(|error| {
                compression::read_error(self.range.file.path(), self.range.codec, error)
            })?;
        self.at_end = read < CHUNK_BYTES;
        Ok(())
    }

    /// The next byte that is not white space; `None` at the end of the file.
    fn peek(&mut self) -> Result<Option<u8>, ConnectorError> {
        loop {
            if self.offset() == 0 && self.buffer.starts_with(b"\xef\xbb\xbf") {
                self.start = 3;
            }
            let rest = &self.buffer[self.start..];
            match rest.iter().position(|byte| !byte.is_ascii_whitespace()) {
                Some(blank) => {
                    self.start += blank;
                    return Ok(Some(self.buffer[self.start]));
                }
                None => {
                    self.start = self.buffer.len();
                    if self.at_end {
                        return Ok(None);
                    }
                    self.fill()?;
                }
            }
        }
    }

    /// Length of the element that starts at `start`.
    fn element(&mut self) -> Result<usize, ConnectorError> {
        let mut scan = ElementScan::default();
        loop {
            if let Some(length) = scan.go_on(&self.buffer[self.start..]) {
                return Ok(length);
            }
            if self.at_end {
                return Err(self.broken("the file ends inside the array element that starts here"));
            }
            if self.buffer.len() - self.start > MAX_RECORD_BYTES {
                let limit = MAX_RECORD_BYTES >> 20;
                return Err(self.broken(&format!("an array element is longer than {limit} MiB")));
            }
            self.fill()?;
        }
    }
}

impl Records for ArrayRecords {
    fn next(&mut self) -> Result<Option<Record>, ConnectorError> {
        loop {
            let next = self.peek()?;
            match (self.state, next) {
                (State::Start, Some(b'[')) => self.state = State::First,
                (State::Start, None) => return Ok(None),
                (State::Start, Some(_)) => {
                    return Err(self.broken(
                        "the document is not an array; say with `records` where its records are, \
                         or `format: lines`",
                    ));
                }
                (State::First | State::After, Some(b']')) => self.state = State::Done,
                (State::After, Some(b',')) => self.state = State::Next,
                (State::After, Some(_)) => {
                    return Err(self.broken("`,` or `]` is expected behind an array element"));
                }
                (State::Done, None) => return Ok(None),
                (State::Done, Some(_)) => return Err(self.broken("the array has ended already")),
                (_, None) => return Err(self.broken("the file ends before the array does")),
                (State::First | State::Next, Some(_)) => {
                    let length = self.element()?;
                    let offset = self.offset();
                    let raw = &self.buffer[self.start..self.start + length];
                    let value =
                        Json::parse(raw).map_err(|error| self.broken(&not_json(&error, raw)))?;
                    let raw = String::from_utf8_lossy(raw).into_owned();
                    self.start += length;
                    self.state = State::After;
                    return Ok(Some(Record {
                        value: Ok(value),
                        raw: Some(raw),
                        place: format!("{} (byte offset {offset})", self.range.name),
                        offset: Some(offset),
                        size: length,
                        position: offset + length as u64,
                    }));
                }
            }
            self.start += 1;
        }
    }
}

/// Finds the end of a JSON value by its brackets and quotes only.
#[derive(Debug, Default)]
struct ElementScan {
    scanned: usize,
    depth: usize,
    in_string: bool,
}

impl ElementScan {
    /// `bytes` is the value's start and may have grown since the last call.
    fn go_on(&mut self, bytes: &[u8]) -> Option<usize> {
        while self.scanned < bytes.len() {
            let at = self.scanned;
            if self.in_string {
                let found = memchr::memchr2(b'"', b'\\', &bytes[at..]).map(|found| at + found);
                let Some(found) = found else {
                    self.scanned = bytes.len();
                    return None;
                };
                if bytes[found] == b'\\' {
                    if found + 1 == bytes.len() {
                        self.scanned = found;
                        return None;
                    }
                    self.scanned = found + 2;
                    continue;
                }
                self.in_string = false;
                self.scanned = found + 1;
                if self.depth == 0 {
                    return Some(found + 1);
                }
                continue;
            }
            match bytes[at] {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth > 0 => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                // A number, true, false or null ends before what follows it.
                b'}' | b']' | b',' if self.depth == 0 => return Some(at),
                byte if self.depth == 0 && byte.is_ascii_whitespace() => return Some(at),
                _ => {}
            }
            self.scanned = at + 1;
        }
        None
    }
}
