//! The log of a run, for people: what its sessions, tasks and executors have noted. Never the only copy of a
//! fact.
//!
//! ```text
//! RunEvent ─lines─▶ RunLog (a segment in memory) ─every second─▶ <run>/log/<author>-<first line>.jsonl ─▶ readers
//! ```
//!
//! Each session of each leader writes segments of its own, so that two never write the same file; the leader's epoch and the
//! session's number order them. What a leader has noted in its last second may be lost with it.

mod lines;
mod segments;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use weir_connectors::Redactor;
use weir_executor::storage::Storage;

pub(super) use lines::{Entry, Level, Lines};
pub(super) use segments::{Author, LogLine, Position, read_after};
use segments::{Segment, file_name, stored_files};

use crate::surroundings::now;

/// Between two writes of what is new.
pub(super) const WRITE_EVERY: Duration = Duration::from_secs(1);

/// A segment that has more is written for the last time.
const SEGMENT_BYTES: usize = 256 << 10;

/// Of one run. When it has more, only how it ends is added.
const LOG_BYTES: u64 = 16 << 20;

/// Full segments that wait for a storage that does not take them.
const MOST_WAITING: usize = 8;

/// The log of one run, as one session writes it.
#[derive(Debug)]
pub(super) struct RunLog {
    folder: Storage,
    author: Author,
    redactor: Redactor,
    state: Mutex<State>,
    /// Lines so far.
    count: watch::Sender<u64>,
    /// One write at a time.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    /// The last one grows; those before it wait to be written for the last time.
    segments: VecDeque<Segment>,
    next_line: u64,
    /// Of this session's lines, and once they are counted of all that were there before.
    bytes: u64,
    is_counted: bool,
    is_full: bool,
}

impl RunLog {
    pub(super) fn new(folder: Storage, author: Author, redactor: Redactor) -> Self {
        let state = State {
            segments: VecDeque::from([Segment::new(0)]),
            next_line: 0,
            bytes: 0,
            is_counted: false,
            is_full: false,
        };
        let (count, _) = watch::channel(0);
        let writing = tokio::sync::Mutex::default();
        Self { folder, author, redactor, state: Mutex::new(state), count, writing }
    }

    /// Adds a line, unless the log is full.
    pub(super) fn add(&self, entry: Entry) {
        let mut state = self.state();
        if state.is_full {
            return;
        }
        self.push(&mut state, entry);
        if state.bytes >= LOG_BYTES {
            state.is_full = true;
            let text = format!("the log has {} MiB: further lines are left out", LOG_BYTES >> 20);
            self.push(&mut state, Entry::new(Level::Warn, text));
        }
    }

    /// How a session ends is in every log.
    pub(super) fn add_end(&self, entry: Entry) {
        self.push(&mut self.state(), entry);
    }

    fn push(&self, state: &mut State, entry: Entry) {
        let position = Position { author: self.author, line: state.next_line };
        let line = LogLine::new(position, now(), entry, &self.redactor);
        state.next_line += 1;
        let segment = state.segments.back_mut().expect("one segment grows");
        let added = segment.push(line);
        let is_complete = segment.bytes() >= SEGMENT_BYTES;
        state.bytes += added as u64;
        if is_complete {
            let next = Segment::new(state.next_line);
            state.segments.push_back(next);
            // A storage that takes nothing for so long has other worries.
            if state.segments.len() > MOST_WAITING + 1 {
                state.segments.pop_front();
            }
        }
        self.count.send_replace(state.next_line);
    }

    /// Writes what is new. A log that cannot be written is no reason to stop a run. Who stops waiting stops
    /// no write half-way: the next one begins when it is over.
    pub(super) async fn write(self: &Arc<Self>) {
        let log = Arc::clone(self);
        if let Err(error) = tokio::spawn(async move { log.write_new().await }).await {
            tracing::warn!(%error, "the log of a run is not written");
        }
    }

    async fn write_new(&self) {
        let _writing = self.writing.lock().await;
        self.count_earlier().await;
        loop {
            let Some((first, text, lines, is_last)) = self.next_to_write() else { return };
            let name = file_name(self.author, first);
            match self.folder.put(&name, text).await {
                Ok(()) => self.written(first, lines, is_last),
                Err(error) => {
                    let path = self.folder.shown(&name);
                    return tracing::warn!(path, %error, "the log of a run is not written");
                }
            }
        }
    }

    /// What earlier sessions have written counts. A folder that cannot be read has nothing.
    async fn count_earlier(&self) {
        if self.state().is_counted {
            return;
        }
        let files = stored_files(&self.folder).await.unwrap_or_default();
        let mut state = self.state();
        state.is_counted = true;
        // As if each were full.
        state.bytes += files.len() as u64 * SEGMENT_BYTES as u64;
        state.is_full |= state.bytes >= LOG_BYTES;
    }

    /// The first segment with lines that are not written: its name, its text, how many lines that is, and
    /// whether it grows no more.
    fn next_to_write(&self) -> Option<(u64, String, usize, bool)> {
        let state = self.state();
        let last = state.segments.len() - 1;
        let mut segments = state.segments.iter().enumerate();
        let (place, segment) =
            segments.find(|(place, segment)| *place < last || segment.is_dirty())?;
        Some((segment.first, segment.text(), segment.lines.len(), place < last))
    }

    fn written(&self, first: u64, lines: usize, is_last: bool) {
        let mut state = self.state();
        if is_last {
            state.segments.retain(|segment| segment.first != first);
        } else if let Some(segment) =
            state.segments.iter_mut().find(|segment| segment.first == first)
        {
            segment.written = lines;
        }
    }

    /// Lines behind a position that are in memory, and whether these are all that there are. (Others are in the
    /// storage by then: those of earlier sessions, and full segments.)
    pub(super) fn after(&self, position: Option<Position>) -> (Vec<LogLine>, bool) {
        let state = self.state();
        let lines = state.segments.iter().flat_map(|segment| &segment.lines);
        let first = lines.clone().next().map_or(state.next_line, |line| line.position.line);
        let is_all = position.is_some_and(|position| {
            position.author > self.author
                || (position.author == self.author && position.line.saturating_add(1) >= first)
        });
        let behind = lines.filter(|line| position.is_none_or(|position| line.position > position));
        (behind.cloned().collect(), is_all)
    }

    /// Changes when there are more lines.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.count.subscribe()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
