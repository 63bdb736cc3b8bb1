//! The ledger with the right to append to it: its log is on a local disk, one SQLite file for each
//! pipeline, one writer, any readers; or it is replicated.
//!
//! ```text
//! append ─▶ writer task: coalesce ─▶ apply ─▶ one transaction, synced ─▶ reply
//!                              └───▶ one entry of the replicated log ───▶ reply
//! ```

mod log;
mod replicated;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::SqliteConnection;
use tokio::sync::{RwLock, RwLockReadGuard, mpsc, oneshot};
use weir_ledger::{Command, Ledger, Rejection, Response, apply};

use crate::lock::PipelineLock;
use crate::raft::RaftMember;
use log::{Log, LogState};

/// The most appends that share one transaction.
const GROUP: usize = 512;

/// Why the ledger could not be read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("failed to open {path}: {message}")]
    Open { path: String, message: String },
    /// Nothing of what was to be appended is in the ledger.
    #[error(
        "failed to write {path}: {message}; if its disk is full, make room there or choose another \
         folder with --state"
    )]
    Write { path: String, message: String },
    #[error(
        "{path} is damaged at entry {index}: {message}; restore the file from a backup, or move the \
         pipeline's folder away to start without history"
    )]
    Damaged { path: String, index: u64, message: String },
    #[error(
        "{path} was written by a newer version of Weir (format {found}, this version reads {known})"
    )]
    Newer { path: String, found: i64, known: i64 },
    /// This member does not lead, and nothing of what was to be appended is in the ledger.
    #[error("{0}")]
    NotLeader(String),
    /// It may be in the ledger: only the next leader's ledger tells.
    #[error("{0}")]
    Unknown(String),
    /// Nothing of it is in the ledger, and never can be.
    #[error(
        "what is to be noted has {bytes} bytes, and the ledger takes {most} at once: parameters, names, and what a \
         target says of a batch must be smaller"
    )]
    TooLarge { bytes: usize, most: usize },
    /// The command was refused: a defect, or the right to write is lost.
    #[error("the ledger refuses: {0}")]
    Rejected(Rejection),
}

/// A ledger with the right to append to it.
#[derive(Debug)]
pub(crate) struct LedgerStore {
    ledger: Arc<RwLock<Ledger>>,
    appends: mpsc::Sender<Append>,
    writer: tokio::task::JoinHandle<()>,
    path: PathBuf,
}

#[derive(Debug)]
struct Append {
    command: Command,
    reply: oneshot::Sender<Result<Response, StoreError>>,
}

impl LedgerStore {
    /// Opens or creates the ledger at `path` and replays it. Must be called inside a Tokio runtime.
    pub(crate) async fn open_writer(path: &Path, lock: PipelineLock) -> Result<Self, StoreError> {
        let mut log = Log::open_or_create(path).await?;
        let state = log.load().await?;
        let ledger = Arc::new(RwLock::new(state.ledger.clone()));
        let (appends, receiver) = mpsc::channel(GROUP);
        let writer = Writer { log, state: state.tail, ledger: Arc::clone(&ledger), _lock: lock };
        Ok(Self {
            ledger,
            appends,
            writer: tokio::spawn(writer.run(receiver)),
            path: path.to_owned(),
        })
    }

    /// The replicated ledger, as its leader appends to it. Must be called inside a Tokio runtime.
    pub(crate) fn replicated(member: Arc<RaftMember>) -> Self {
        let (appends, receiver) = mpsc::channel(replicated::GROUP);
        Self {
            ledger: member.facts(),
            appends,
            path: PathBuf::from("the replicated ledger"),
            writer: tokio::spawn(replicated::write(member, receiver)),
        }
    }

    /// The ledger as it is now, without the right to write; another process may be writing.
    pub(crate) async fn open_reader(path: &Path) -> Result<Ledger, StoreError> {
        let Some(mut log) = Log::open_existing(path).await? else { return Ok(Ledger::default()) };
        let loaded = log.load().await;
        log.close().await;
        Ok(loaded?.ledger)
    }

    /// Applies a command and returns once it is durable. Rejected commands are errors; whether an
    /// accepted one changed anything is the answer.
    pub(crate) async fn append(&self, command: Command) -> Result<bool, StoreError> {
        let (reply, answer) = oneshot::channel();
        let gone = || StoreError::Write {
            path: self.path.display().to_string(),
            message: "its writer has stopped".to_owned(),
        };
        self.appends.send(Append { command, reply }).await.map_err(|_| gone())?;
        match answer.await.map_err(|_| gone())?? {
            Response::Accepted { changed } => Ok(changed),
            Response::Rejected(rejection) => Err(StoreError::Rejected(rejection)),
        }
    }

    /// The durable facts. Hold the guard shortly: appends wait for it.
    pub(crate) async fn ledger(&self) -> RwLockReadGuard<'_, Ledger> {
        self.ledger.read().await
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for everything appended, closes the file and gives the lock back.
    pub(crate) async fn close(self) {
        let Self { appends, writer, .. } = self;
        drop(appends);
        // A writer that has panicked holds nothing any more.
        let _ = writer.await;
    }
}

/// Owns the file.
struct Writer {
    log: Log,
    state: LogState,
    ledger: Arc<RwLock<Ledger>>,
    _lock: PipelineLock,
}

impl Writer {
    async fn run(mut self, mut appends: mpsc::Receiver<Append>) {
        let mut group = Vec::new();
        while appends.recv_many(&mut group, GROUP).await > 0 {
            self.append(std::mem::take(&mut group)).await;
        }
        self.log.close().await;
    }

    /// Readers see the group only once it is durable: they wait for the lock.
    async fn append(&mut self, group: Vec<Append>) {
        let ledger = Arc::clone(&self.ledger);
        let mut ledger = ledger.write().await;
        let mut tail = self.state.clone();
        let mut entries = Vec::new();
        let mut replies = Vec::new();
        for Append { command, reply } in group {
            let response = apply(&mut ledger, tail.next_index(), &command);
            if response == (Response::Accepted { changed: true }) {
                entries.push(tail.entry(&command));
            }
            replies.push((reply, response));
        }
        let written = match entries.is_empty() {
            true => Ok(()),
            false => self.log.write(&entries, &mut tail, &ledger).await,
        };
        match written {
            Ok(()) => {
                self.state = tail;
                for (reply, response) in replies {
                    let _ = reply.send(Ok(response));
                }
            }
            Err(error) => {
                self.forget(&mut ledger).await;
                for (reply, _) in replies {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }

    /// Back to what is on the disk. If even that cannot be read, the tail stays behind the ledger in
    /// memory and the next write fails as well.
    async fn forget(&mut self, ledger: &mut Ledger) {
        if let Ok(loaded) = self.log.load().await {
            *ledger = loaded.ledger;
            self.state = loaded.tail;
        }
    }
}

/// A ledger with the end of its log.
struct Loaded {
    ledger: Ledger,
    tail: LogState,
}

type Connection = SqliteConnection;
