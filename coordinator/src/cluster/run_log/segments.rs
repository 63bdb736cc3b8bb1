//! Lines of a log, and the files in which they are.

use std::fmt;
use std::io;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use weir_connectors::Redactor;
use weir_executor::storage::Storage;

use super::lines::{Entry, Level};

/// Whose lines they are: one session's. Sessions of a leader are numbered as they begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::cluster) struct Author {
    /// Of the leader.
    pub(in crate::cluster) epoch: u64,
    #[serde(default)]
    pub(in crate::cluster) session: u64,
}

/// Where a line stands among all lines of its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::cluster) struct Position {
    #[serde(flatten)]
    pub(in crate::cluster) author: Author,
    pub(in crate::cluster) line: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.author.epoch, self.author.session, self.line)
    }
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<u64>, _> = text.split('-').map(str::parse).collect();
        let (epoch, session, line) = match numbers.as_deref() {
            Ok([epoch, session, line]) => (*epoch, *session, *line),
            // An earlier version did not tell sessions apart.
            Ok([epoch, line]) => (*epoch, 0, *line),
            _ => return Err(format!("`{text}` is not the position of a line of a log")),
        };
        Ok(Self { author: Author { epoch, session }, line })
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::cluster) struct LogLine {
    #[serde(flatten)]
    pub(in crate::cluster) position: Position,
    pub(in crate::cluster) at: DateTime<Utc>,
    pub(in crate::cluster) level: Level,
    #[serde(flatten)]
    pub(in crate::cluster) entry: Entry,
}

impl LogLine {
    pub(super) fn new(
        position: Position,
        at: DateTime<Utc>,
        entry: Entry,
        redactor: &Redactor,
    ) -> Self {
        let message = redactor.redact(&entry.message);
        Self { position, at, level: entry.level, entry: Entry { message, ..entry } }
    }
}

/// Lines that are in one file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Segment {
    /// The number of its first line, and its name.
    pub(super) first: u64,
    pub(super) lines: Vec<LogLine>,
    /// How many of them are in the file.
    pub(super) written: usize,
    bytes: usize,
}

impl Segment {
    pub(super) fn new(first: u64) -> Self {
        Self { first, lines: Vec::new(), written: 0, bytes: 0 }
    }

    /// Bytes that it takes.
    pub(super) fn push(&mut self, line: LogLine) -> usize {
        let added = json(&line).len() + 1;
        self.bytes += added;
        self.lines.push(line);
        added
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.written < self.lines.len()
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::with_capacity(self.bytes);
        for line in &self.lines {
            text.push_str(&json(line));
            text.push('\n');
        }
        text
    }
}

fn json(line: &LogLine) -> String {
    serde_json::to_string(line).expect("a line can be written as JSON")
}

/// In the run's folder.
const FOLDER: &str = "log";

/// Files are replaced whole while they grow, so that a reader sees no half of a line.
pub(super) fn file_name(author: Author, first: u64) -> String {
    let Author { epoch, session } = author;
    format!("{FOLDER}/{epoch:020}-{session:012}-{first:012}.jsonl")
}

/// In the order of their lines.
pub(super) async fn stored_files(folder: &Storage) -> io::Result<Vec<String>> {
    let mut names = folder.list(FOLDER).await?;
    names.retain(|name| first_of(name).is_some());
    names.sort_unstable();
    Ok(names)
}

/// The position of a file's first line.
fn first_of(name: &str) -> Option<Position> {
    let name = name.rsplit('/').next()?.strip_suffix(".jsonl")?;
    name.parse().ok()
}

/// The next lines behind a position: those of one file; none at the end.
pub(in crate::cluster) async fn read_after(
    folder: &Storage,
    position: Option<Position>,
) -> io::Result<Vec<LogLine>> {
    let files = stored_files(folder).await?;
    for (place, name) in files.iter().enumerate() {
        // What ends before or with the position has nothing that is behind it.
        let next = files.get(place + 1).and_then(|next| first_of(next));
        let is_over = next.zip(position).is_some_and(|(next, position)| {
            next.author == position.author && next.line <= position.line.saturating_add(1)
        });
        let is_of_before =
            position > first_of(name).map(|first| Position { line: u64::MAX, ..first });
        if is_over || is_of_before {
            continue;
        }
        let bytes = folder.get(name).await?;
        let lines: Vec<LogLine> = (bytes.split(|byte| *byte == b'\n'))
            // A line that nobody understands (of a later version) is left out.
            .filter_map(|line| serde_json::from_slice::<LogLine>(line).ok())
            .filter(|line| position.is_none_or(|position| line.position > position))
            .collect();
        if !lines.is_empty() {
            return Ok(lines);
        }
    }
    Ok(Vec::new())
}
