//! A member's log on its own disk. One thread writes: whatever has come in since its last transaction
//! shares the next one.
//!
//! ```text
//! append ─▶ tail (readable at once) ─▶ writer: one transaction, synced ─▶ callbacks
//! ```

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use openraft::storage::{LogFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{
    AnyError, Entry, EntryPayload, LogId, RaftLogId, StorageError, StorageIOError, Vote,
};
use redb::{Database, ReadableDatabase, ReadableTable as _, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::{MemberId, Types};
use crate::surroundings::new_uuid;

/// Entries by index, as JSON.
const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
/// The values below by name, as JSON.
const VALUES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("values");
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
const DISK: &str = "disk";

/// About how many bytes of entries go to a member in one message, which has to be on its disk within a heartbeat; an
/// entry that is larger goes alone.
const MESSAGE_BYTES: usize = 2 << 20;

/// The most writes that share one transaction.
const GROUP: usize = 1024;

/// A handle; all clones mean the same log.
#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
    writes: UnboundedSender<Write>,
}

/// Tells the last entry of a log, and does not keep it open.
#[derive(Clone, Debug)]
pub(super) struct LastEntry(Weak<Shared>);

impl LastEntry {
    /// Whether it is on the disk yet or not.
    pub(super) fn get(&self) -> Option<LogId<MemberId>> {
        self.0.upgrade()?.memory().last
    }
}

#[derive(Debug)]
struct Shared {
    database: Database,
    disk: String,
    memory: Mutex<Memory>,
}

/// What readers must see before it is on the disk.
#[derive(Debug, Default)]
struct Memory {
    tail: BTreeMap<u64, Weighed>,
    last: Option<LogId<MemberId>>,
    purged: Option<LogId<MemberId>>,
    /// Goes to the disk with the next transaction: it only saves work at the next start.
    committed: Option<LogId<MemberId>>,
}

/// An entry, and how many bytes of JSON it has.
#[derive(Clone, Debug)]
struct Weighed {
    entry: Entry<Types>,
    bytes: usize,
}

enum Write {
    Append { entries: Vec<(u64, Vec<u8>)>, done: LogFlushed<Types> },
    Value { name: &'static str, json: Vec<u8>, done: oneshot::Sender<io::Result<()>> },
    Truncate { from: u64, done: oneshot::Sender<io::Result<()>> },
    Purge { through: u64, json: Vec<u8>, done: oneshot::Sender<io::Result<()>> },
}

impl Write {
    fn new_entries(&self) -> impl DoubleEndedIterator<Item = u64> {
        let entries = match self {
            Write::Append { entries, .. } => entries.as_slice(),
            Write::Value { .. } | Write::Truncate { .. } | Write::Purge { .. } => &[],
        };
        entries.iter().map(|(index, _)| *index)
    }
}

impl LogStore {
    /// The thread ends, and closes the file, when the last handle is dropped.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, JoinHandle<()>)> {
        let (log, writer) = Self::on(Database::create(path).map_err(io::Error::other)?)?;
        let thread =
            std::thread::Builder::new().name("raft-log".to_owned()).spawn(move || writer.run())?;
        Ok((log, thread))
    }

    /// Nothing is written but by the writer, which has to run somewhere.
    pub(super) fn on(database: Database) -> io::Result<(Self, Writer)> {
        let transaction = database.begin_write().map_err(io::Error::other)?;
        transaction.open_table(ENTRIES).map_err(io::Error::other)?;
        let disk = {
            let mut values = transaction.open_table(VALUES).map_err(io::Error::other)?;
            let kept = values.get(DISK).map_err(io::Error::other)?;
            let kept = kept.map(|json| from_json(json.value())).transpose()?;
            match kept {
                Some(disk) => disk,
                None => {
                    let disk = new_uuid().simple().to_string();
                    let json = to_json(&disk)?;
                    values.insert(DISK, json.as_slice()).map_err(io::Error::other)?;
                    disk
                }
            }
        };
        transaction.commit().map_err(io::Error::other)?;
        let shared = Arc::new(Shared { database, disk, memory: Mutex::default() });
        shared.step_down()?;
        let purged = shared.value(PURGED)?;
        let last = shared.read(..)?.pop().map(|entry| entry.log_id);
        {
            let mut memory = shared.memory();
            memory.committed = shared.value(COMMITTED)?;
            memory.last = last.or(purged);
            memory.purged = purged;
        }
        let (writes, received) = unbounded_channel();
        let writer = Writer { shared: Arc::clone(&shared), received };
        Ok((Self { shared, writes }, writer))
    }

    /// What this log is called: given to it when it was made, and gone with it.
    pub(super) fn disk(&self) -> String {
        self.shared.disk.clone()
    }

    pub(super) fn last_entry(&self) -> LastEntry {
        LastEntry(Arc::downgrade(&self.shared))
    }

    async fn write(
        &self,
        write: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Write,
    ) -> io::Result<()> {
        let (done, written) = oneshot::channel();
        self.writes.send(write(done)).map_err(|_| gone())?;
        written.await.map_err(|_| gone())?
    }
}

fn gone() -> io::Error {
    io::Error::other("the thread that writes the log has ended")
}

impl Shared {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn value<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        let transaction = self.database.begin_read().map_err(io::Error::other)?;
        let table = transaction.open_table(VALUES).map_err(io::Error::other)?;
        let found = table.get(name).map_err(io::Error::other)?;
        found.map(|json| from_json(json.value())).transpose()
    }

    /// A member that led when its process ended must be elected again. Openraft would let it lead on
    /// with the same vote, and answer reads before it knows that its last entries are committed.
    fn step_down(&self) -> io::Result<()> {
        let Some(mut vote) = self.value::<Vote<MemberId>>(VOTE)? else { return Ok(()) };
        if !vote.committed {
            return Ok(());
        }
        vote.committed = false;
        let transaction = self.database.begin_write().map_err(io::Error::other)?;
        {
            let mut values = transaction.open_table(VALUES).map_err(io::Error::other)?;
            values.insert(VOTE, to_json(&vote)?.as_slice()).map_err(io::Error::other)?;
        }
        transaction.commit().map_err(io::Error::other)
    }

    fn read(&self, range: impl RangeBounds<u64>) -> io::Result<Vec<Entry<Types>>> {
        self.read_within(range, usize::MAX)
    }

    /// Entries on the disk and in the tail, the first ones that together have no more bytes; one at least. The tail is looked
    /// at first: an entry that moves to the disk meanwhile is then seen twice, not lost.
    fn read_within(
        &self,
        range: impl RangeBounds<u64>,
        most_bytes: usize,
    ) -> io::Result<Vec<Entry<Types>>> {
        let bounds = (range.start_bound().cloned(), range.end_bound().cloned());
        if is_empty(bounds) {
            return Ok(Vec::new());
        }
        let tail: Vec<Weighed> =
            self.memory().tail.range(bounds).map(|(_, entry)| entry.clone()).collect();
        let (mut entries, mut left) = (BTreeMap::new(), most_bytes);
        let transaction = self.database.begin_read().map_err(io::Error::other)?;
        let table = transaction.open_table(ENTRIES).map_err(io::Error::other)?;
        for found in table.range(bounds).map_err(io::Error::other)? {
            let (index, json) = found.map_err(io::Error::other)?;
            let (index, json) = (index.value(), json.value());
            if json.len() > left && !entries.is_empty() {
                return Ok(entries.into_values().collect());
            }
            left = left.saturating_sub(json.len());
            entries.insert(index, from_json(json)?);
        }
        for Weighed { entry, bytes } in tail {
            let is_new = !entries.contains_key(&entry.log_id.index);
            if is_new && bytes > left && !entries.is_empty() {
                break;
            }
            left = left.saturating_sub(if is_new { bytes } else { 0 });
            entries.insert(entry.log_id.index, entry);
        }
        Ok(entries.into_values().collect())
    }
}

fn is_empty((start, end): (Bound<u64>, Bound<u64>)) -> bool {
    match (start, end) {
        (Bound::Included(start), Bound::Excluded(end)) => start >= end,
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (Bound::Excluded(start), Bound::Excluded(end) | Bound::Included(end)) => start >= end,
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
    }
}

/// Whatever has come in since the last transaction shares the next one.
pub(super) struct Writer {
    shared: Arc<Shared>,
    received: UnboundedReceiver<Write>,
}

impl Writer {
    /// Until every handle is dropped.
    fn run(mut self) {
        while let Some(first) = self.received.blocking_recv() {
            self.write(first);
        }
    }

    /// As [`run`](Self::run), on a disk that is ready for a transaction when `disk` says so.
    #[cfg(test)]
    pub(super) async fn run_on(mut self, mut disk: impl AsyncFnMut()) {
        while let Some(first) = self.received.recv().await {
            disk().await;
            self.write(first);
        }
    }

    fn write(&mut self, first: Write) {
        let mut group = vec![first];
        while group.len() < GROUP
            && let Ok(write) = self.received.try_recv()
        {
            group.push(write);
        }
        let result = write_group(&self.shared, &group);
        if result.is_ok() {
            let mut memory = self.shared.memory();
            for write in &group {
                if let Write::Append { entries, .. } = write {
                    for (index, _) in entries {
                        memory.tail.remove(index);
                    }
                }
            }
        }
        let copy = || match &result {
            Ok(()) => Ok(()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        for write in group {
            match write {
                Write::Append { done, .. } => done.log_io_completed(copy()),
                // Who no longer waits does not need the answer.
                Write::Value { done, .. }
                | Write::Truncate { done, .. }
                | Write::Purge { done, .. } => drop(done.send(copy())),
            }
        }
    }
}

fn write_group(shared: &Shared, group: &[Write]) -> io::Result<()> {
    let transaction = shared.database.begin_write().map_err(io::Error::other)?;
    {
        let mut entries = transaction.open_table(ENTRIES).map_err(io::Error::other)?;
        let mut values = transaction.open_table(VALUES).map_err(io::Error::other)?;
        // A majority may have entries that this disk has not: those do not count after a start.
        let committed = shared.memory().committed.filter(|committed| {
            let newest = group.iter().flat_map(Write::new_entries).next_back();
            newest.is_none_or(|newest| committed.index <= newest)
        });
        if let Some(committed) = committed {
            values.insert(COMMITTED, to_json(&committed)?.as_slice()).map_err(io::Error::other)?;
        }
        for write in group {
            match write {
                Write::Append { entries: new, .. } => {
                    for (index, json) in new {
                        entries.insert(index, json.as_slice()).map_err(io::Error::other)?;
                    }
                }
                Write::Value { name, json, .. } => {
                    values.insert(name, json.as_slice()).map_err(io::Error::other)?;
                }
                Write::Truncate { from, .. } => {
                    entries.retain_in(*from.., |_, _| false).map_err(io::Error::other)?;
                }
                Write::Purge { through, json, .. } => {
                    entries.retain_in(..=*through, |_, _| false).map_err(io::Error::other)?;
                    values.insert(PURGED, json.as_slice()).map_err(io::Error::other)?;
                }
            }
        }
    }
    transaction.commit().map_err(io::Error::other)
}

fn to_json(value: &impl Serialize) -> io::Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(io::Error::from)
}

fn from_json<T: DeserializeOwned>(json: &[u8]) -> io::Result<T> {
    serde_json::from_slice(json).map_err(io::Error::from)
}

fn read_failed(error: &io::Error) -> StorageError<MemberId> {
    StorageIOError::read_logs(AnyError::new(error)).into()
}

fn write_failed(error: &io::Error) -> StorageError<MemberId> {
    StorageIOError::write_logs(AnyError::new(error)).into()
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<Types>>, StorageError<MemberId>> {
        self.shared.read(range).map_err(|error| read_failed(&error))
    }

    /// For a message to another member.
    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry<Types>>, StorageError<MemberId>> {
        let read = self.shared.read_within(start..end, MESSAGE_BYTES);
        read.map_err(|error| read_failed(&error))
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError<MemberId>> {
        let memory = self.shared.memory();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<MemberId>) -> Result<(), StorageError<MemberId>> {
        let failed = |error| StorageIOError::write_vote(AnyError::new(&error)).into();
        let json = to_json(vote).map_err(failed)?;
        self.write(|done| Write::Value { name: VOTE, json, done }).await.map_err(failed)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<MemberId>>, StorageError<MemberId>> {
        let failed = |error| StorageIOError::read_vote(AnyError::new(&error)).into();
        self.shared.value(VOTE).map_err(failed)
    }

    async fn save_committed(
        &mut self,
        committed: Option<LogId<MemberId>>,
    ) -> Result<(), StorageError<MemberId>> {
        self.shared.memory().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId<MemberId>>, StorageError<MemberId>> {
        Ok(self.shared.memory().committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        done: LogFlushed<Types>,
    ) -> Result<(), StorageError<MemberId>>
    where
        I: IntoIterator<Item = Entry<Types>> + Send,
        I::IntoIter: Send,
    {
        let mut encoded = Vec::new();
        {
            let mut memory = self.shared.memory();
            for entry in entries {
                let json = to_json(&entry).map_err(|error| write_failed(&error))?;
                let (index, bytes) = (entry.log_id.index, json.len());
                encoded.push((index, json));
                memory.last = Some(*entry.get_log_id());
                if let EntryPayload::Normal(commands) = &entry.payload {
                    commands.is_logged.store(true, Ordering::Relaxed);
                }
                memory.tail.insert(index, Weighed { entry, bytes });
            }
        }
        self.writes
            .send(Write::Append { entries: encoded, done })
            .map_err(|_| write_failed(&gone()))
    }

    async fn truncate(&mut self, log_id: LogId<MemberId>) -> Result<(), StorageError<MemberId>> {
        let from = log_id.index;
        self.write(|done| Write::Truncate { from, done })
            .await
            .map_err(|error| write_failed(&error))?;
        // The writer has taken everything before out of the tail.
        let before = self.shared.read(from.saturating_sub(1)..from);
        let last = before.map_err(|error| read_failed(&error))?.pop().map(|entry| entry.log_id);
        let mut memory = self.shared.memory();
        memory.last = last.or(memory.purged);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId<MemberId>) -> Result<(), StorageError<MemberId>> {
        let json = to_json(&log_id).map_err(|error| write_failed(&error))?;
        self.write(|done| Write::Purge { through: log_id.index, json, done })
            .await
            .map_err(|error| write_failed(&error))?;
        let mut memory = self.shared.memory();
        memory.purged = Some(log_id);
        memory.last = memory.last.max(Some(log_id));
        Ok(())
    }
}
