//! The facts of one member: the ledger in memory, and snapshots of it on the disk.
//!
//! A snapshot is one file, JSON in a zstd frame with a checksum. After a start the ledger is the last
//! snapshot and what the log has behind it.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Cursor, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine, Snapshot, SnapshotMeta};
use openraft::{
    AnyError, Entry, EntryPayload, LogId, StorageError, StorageIOError, StoredMembership,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, RwLock, RwLockReadGuard};
use uuid::Uuid;
use weir_ledger::{Ledger, apply};

#[cfg(test)]
use super::simulation::{By, Seen};
use super::{Address, Applied, MemberId, Types};
use crate::surroundings::beside;

const SNAPSHOT: &str = "snapshot.json.zst";
const ZSTD_LEVEL: i32 = 1;

/// A handle; all clones mean the same facts.
#[derive(Clone, Debug)]
pub(crate) struct LedgerMachine {
    ledger: Arc<RwLock<Ledger>>,
    state: Arc<RwLock<State>>,
    /// What the file holds, if there is one. Held by who writes or reads it until he has done so, also when nobody
    /// waits for that any more: what is said here is true of its content.
    file: Arc<Mutex<Option<Meta>>>,
    folder: PathBuf,
}

#[derive(Debug, Default)]
struct State {
    applied: Option<LogId<MemberId>>,
    membership: StoredMembership<MemberId, Address>,
}

type Meta = SnapshotMeta<MemberId, Address>;

/// What a snapshot file holds.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    meta: Meta,
    ledger: Ledger,
}

impl LedgerMachine {
    /// With the facts of the snapshot in `folder`, if there is one.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let machine = Self {
            ledger: Arc::default(),
            state: Arc::default(),
            file: Arc::default(),
            folder: folder.to_owned(),
        };
        let path = machine.snapshot_path();
        if path.exists() {
            let kept = read_snapshot(File::open(&path)?)?;
            let Self { ledger, state, file, .. } = &machine;
            *ledger.try_write().map_err(io::Error::other)? = kept.ledger;
            *state.try_write().map_err(io::Error::other)? = State {
                applied: kept.meta.last_log_id,
                membership: kept.meta.last_membership.clone(),
            };
            *file.try_lock().map_err(io::Error::other)? = Some(kept.meta);
        }
        #[cfg(test)]
        {
            let Self { ledger, state, .. } = &machine;
            let applied = state.try_read().map_err(io::Error::other)?.applied;
            let ledger = ledger.try_read().map_err(io::Error::other)?;
            machine.is_seen(applied, &ledger, By::Start);
        }
        Ok(machine)
    }

    pub(crate) fn ledger(&self) -> &Arc<RwLock<Ledger>> {
        &self.ledger
    }

    /// The facts with the index of the last entry that they hold. Hold the guard shortly: appends wait for it.
    pub(super) async fn ledger_at(&self) -> (RwLockReadGuard<'_, Ledger>, u64) {
        let ledger = self.ledger.read().await;
        // Nothing is applied meanwhile.
        let index = self.state.read().await.applied.map_or(0, |applied| applied.index);
        (ledger, index)
    }

    /// The facts with the index of the last entry that they hold.
    #[cfg(test)]
    pub(super) async fn applied(&self) -> (u64, Ledger) {
        let ledger = self.ledger.read().await;
        let state = self.state.read().await;
        (state.applied.map_or(0, |applied| applied.index), ledger.clone())
    }

    /// What a snapshot says of itself.
    #[cfg(test)]
    pub(super) fn described(snapshot: &[u8]) -> SnapshotMeta<MemberId, Address> {
        read_snapshot(snapshot).expect("it is whole").meta
    }

    fn snapshot_path(&self) -> PathBuf {
        self.folder.join(SNAPSHOT)
    }

    async fn current_snapshot(&self) -> io::Result<Option<Snapshot<Types>>> {
        let file = Arc::clone(&self.file).lock_owned().await;
        let path = self.snapshot_path();
        beside(move || read_current(&path, &file)).await
    }

    async fn build(&self) -> io::Result<Snapshot<Types>> {
        // Nobody else replaces the file meanwhile.
        let mut file = Arc::clone(&self.file).lock_owned().await;
        let began = Instant::now();
        let (kept, held) = {
            // In this order everywhere: what is applied meanwhile waits.
            let ledger = self.ledger.read().await;
            let state = self.state.read().await;
            let copying = Instant::now();
            let index = state.applied.map_or(0, |applied| applied.index);
            let meta = SnapshotMeta {
                last_log_id: state.applied,
                last_membership: state.membership.clone(),
                snapshot_id: format!("{index}-{}", Uuid::new_v4().simple()),
            };
            (Kept { meta, ledger: ledger.clone() }, copying.elapsed())
        };
        let (folder, path) = (self.folder.clone(), self.snapshot_path());
        let current = beside(move || {
            // One that was received, and not taken over any more, may be ahead of the facts. It is what the log may
            // have been shortened for.
            let is_behind =
                file.as_ref().is_some_and(|held| held.last_log_id > kept.meta.last_log_id);
            if !is_behind {
                keep(&folder, &kept, &mut file)?;
            }
            read_current(&path, &file)
        });
        let snapshot = current.await?;
        let snapshot = snapshot.ok_or_else(|| io::Error::other("the snapshot is gone"))?;
        let index = snapshot.meta.last_log_id.map_or(0, |last| last.index);
        let bytes = snapshot.snapshot.get_ref().len();
        let (held_millis, millis) = (held.as_millis(), began.elapsed().as_millis());
        // For so long nothing was applied, and for so long it has taken.
        tracing::info!(index, bytes, held_millis, millis, "snapshot written");
        Ok(snapshot)
    }

    async fn install(&self, meta: &Meta, received: Vec<u8>) -> io::Result<()> {
        let mut file = Arc::clone(&self.file).lock_owned().await;
        let folder = self.folder.clone();
        let meta = meta.clone();
        let (kept, _file) = beside(move || {
            let ledger = read_snapshot(received.as_slice())?.ledger;
            let kept = Kept { meta, ledger };
            keep(&folder, &kept, &mut file)?;
            Ok::<_, io::Error>((kept, file))
        })
        .await?;
        let mut ledger = self.ledger.write().await;
        let mut state = self.state.write().await;
        *ledger = kept.ledger;
        state.applied = kept.meta.last_log_id;
        state.membership = kept.meta.last_membership;
        #[cfg(test)]
        self.is_seen(state.applied, &ledger, By::Snapshot);
        Ok(())
    }

    /// By whoever simulates a cluster.
    #[cfg(test)]
    fn is_seen(&self, applied: Option<LogId<MemberId>>, ledger: &Ledger, by: By<'_>) {
        let index = applied.map_or(0, |applied| applied.index);
        super::simulation::sees(&Seen { member: &self.folder, index, by, ledger });
    }
}

fn read_current(path: &Path, file: &Option<Meta>) -> io::Result<Option<Snapshot<Types>>> {
    let Some(meta) = file.clone() else { return Ok(None) };
    let snapshot = Box::new(Cursor::new(fs::read(path)?));
    Ok(Some(Snapshot { meta, snapshot }))
}

/// Durable, and never half-written, under the one name of a snapshot. `file` says what is there.
fn keep(folder: &Path, kept: &Kept, file: &mut Option<Meta>) -> io::Result<()> {
    let path = folder.join(format!("{SNAPSHOT}.tmp"));
    let mut encoder =
        zstd::stream::write::Encoder::new(BufWriter::new(File::create(&path)?), ZSTD_LEVEL)?;
    encoder.include_checksum(true)?;
    serde_json::to_writer(&mut encoder, kept)?;
    let mut written = encoder.finish()?;
    written.flush()?;
    written.get_ref().sync_all()?;
    fs::rename(&path, folder.join(SNAPSHOT))?;
    // Also if what follows fails.
    *file = Some(kept.meta.clone());
    File::open(folder)?.sync_all()
}

fn read_snapshot(bytes: impl io::Read) -> io::Result<Kept> {
    let decoder = zstd::stream::read::Decoder::new(bytes)?;
    Ok(serde_json::from_reader(BufReader::new(decoder))?)
}

fn read_failed(error: &io::Error) -> StorageError<MemberId> {
    StorageIOError::read_snapshot(None, AnyError::new(error)).into()
}

fn write_failed(error: &io::Error) -> StorageError<MemberId> {
    StorageIOError::write_snapshot(None, AnyError::new(error)).into()
}

impl RaftSnapshotBuilder<Types> for LedgerMachine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError<MemberId>> {
        self.build().await.map_err(|error| write_failed(&error))
    }
}

impl RaftStateMachine<Types> for LedgerMachine {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<
        (Option<LogId<MemberId>>, StoredMembership<MemberId, Address>),
        StorageError<MemberId>,
    > {
        let state = self.state.read().await;
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, StorageError<MemberId>>
    where
        I: IntoIterator<Item = Entry<Types>> + Send,
        I::IntoIter: Send,
    {
        let mut ledger = self.ledger.write().await;
        let mut state = self.state.write().await;
        let mut answers = Vec::new();
        for entry in entries {
            let index = entry.log_id.index;
            state.applied = Some(entry.log_id);
            let mut applied = Applied::default();
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(commands) => {
                    let responses =
                        commands.commands.iter().map(|command| apply(&mut ledger, index, command));
                    applied.responses.extend(responses);
                    #[cfg(test)]
                    self.is_seen(
                        Some(entry.log_id),
                        &ledger,
                        By::Entry { commands: &commands.commands, responses: &applied.responses },
                    );
                }
                EntryPayload::Membership(membership) => {
                    state.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
            }
            answers.push(applied);
        }
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(
        &mut self,
    ) -> Result<Box<Cursor<Vec<u8>>>, StorageError<MemberId>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<MemberId, Address>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError<MemberId>> {
        self.install(meta, snapshot.into_inner()).await.map_err(|error| write_failed(&error))
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<Snapshot<Types>>, StorageError<MemberId>> {
        self.current_snapshot().await.map_err(|error| read_failed(&error))
    }
}
