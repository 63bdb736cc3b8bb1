//! A disk that may lose what was written and not synced, in the middle of a transaction too.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::Rng;
use redb::{Database, StorageBackend};

/// Survives the processes that use it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// What is there after a loss of power, whatever else is.
    synced: Vec<u8>,
    /// Written since, in order.
    pending: Vec<Change>,
    /// What the process reads.
    seen: Vec<u8>,
    /// Only the process that has opened it last can use it.
    boot: u64,
    is_dead: bool,
    /// Then the power fails.
    writes_left: Option<u32>,
    /// Syncs are answered, and do nothing.
    lies: bool,
}

#[derive(Debug)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
}

impl Change {
    fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Change::Length(length) => file.resize(*length, 0),
            Change::Write { at, bytes } => {
                let end = at + bytes.len();
                if file.len() < end {
                    file.resize(end, 0);
                }
                file[*at..end].copy_from_slice(bytes);
            }
        }
    }
}

impl Disk {
    pub(crate) fn lying() -> Self {
        Self(Arc::new(Mutex::new(State { lies: true, ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By a process that has just started.
    pub(crate) fn open(&self) -> Result<Database, redb::DatabaseError> {
        let boot = {
            let mut state = self.state();
            state.boot += 1;
            state.is_dead = false;
            state.boot
        };
        let used = Used { disk: self.clone(), boot };
        Database::builder().set_cache_size(4 << 20).create_with_backend(used)
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.state().is_dead
    }

    /// After so many more writes the power fails.
    pub(crate) fn fail_after(&self, writes: u32) {
        self.state().writes_left = Some(writes);
    }

    /// The power fails now, if it has not failed already: any part of what was not synced is there.
    pub(crate) fn lose_power(&self, random: &mut impl Rng) {
        let mut state = self.state();
        state.is_dead = true;
        state.writes_left = None;
        let mut file = state.synced.clone();
        for change in std::mem::take(&mut state.pending) {
            if !state.lies && random.gen_bool(0.5) {
                change.apply(&mut file);
            }
        }
        state.synced.clone_from(&file);
        state.seen = file;
    }
}

/// The disk as one process has it.
#[derive(Debug)]
struct Used {
    disk: Disk,
    boot: u64,
}

impl Used {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.is_dead || state.boot != self.boot {
            return Err(io::Error::other("the power has failed"));
        }
        Ok(state)
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let mut state = self.state()?;
        if let Some(left) = &mut state.writes_left {
            if *left == 0 {
                state.is_dead = true;
                return Err(io::Error::other("the power has failed"));
            }
            *left -= 1;
        }
        change.apply(&mut state.seen);
        state.pending.push(change);
        Ok(())
    }
}

fn place(number: u64) -> usize {
    usize::try_from(number).expect("the file is small")
}

impl StorageBackend for Used {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state()?.seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state()?;
        let bytes = state.seen.get(place(offset)..place(offset) + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::Length(place(len)))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state()?;
        if state.lies {
            return Ok(());
        }
        let State { synced, pending, .. } = &mut *state;
        for change in pending.drain(..) {
            change.apply(synced);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Change::Write { at: place(offset), bytes: data.to_vec() })
    }
}
