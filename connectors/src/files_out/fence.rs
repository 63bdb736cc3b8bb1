//! The fence of a folder: the greatest epoch that has written there, and a lock around its check.

use std::fs::{self, File, TryLockError};
use std::io;
use std::time::{Duration, Instant};

use super::durable::{io_error, write_atomically};
use super::layout::Layout;
use crate::{ConnectorError, ErrorKind, PrepareSink};

/// How long another process may hold the lock; it does so only while it renames files.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// Held while files are made visible. `None` inside: the file system has no locks.
#[derive(Debug)]
pub(super) struct FenceGuard {
    _lock: Option<File>,
}

/// Checks that no newer epoch has been here, raises the fence to `epoch`, and keeps everybody else
/// from publishing until the guard is dropped.
pub(super) fn raise(
    layout: &Layout,
    identity: &PrepareSink,
    epoch: u64,
) -> Result<FenceGuard, ConnectorError> {
    let guard = lock(layout, identity, false)?;
    let fence = read(layout, identity)?;
    check(identity, fence, epoch)?;
    if fence < epoch {
        write_atomically(&layout.fence(identity), epoch.to_string().as_bytes())?;
    }
    Ok(guard)
}

/// Checks that no newer epoch has been here. Several writers of one epoch may hold this at once.
pub(super) fn hold(
    layout: &Layout,
    identity: &PrepareSink,
    epoch: u64,
) -> Result<FenceGuard, ConnectorError> {
    let guard = lock(layout, identity, true)?;
    check(identity, read(layout, identity)?, epoch)?;
    Ok(guard)
}

/// As [`raise`], but does not wait for writers of the same epoch, of which one may be paused.
pub(super) fn join(
    layout: &Layout,
    identity: &PrepareSink,
    epoch: u64,
) -> Result<FenceGuard, ConnectorError> {
    let guard = hold(layout, identity, epoch)?;
    if read(layout, identity)? == epoch {
        return Ok(guard);
    }
    drop(guard);
    raise(layout, identity, epoch)
}

fn check(identity: &PrepareSink, fence: u64, epoch: u64) -> Result<(), ConnectorError> {
    if fence <= epoch {
        return Ok(());
    }
    Err(ConnectorError::new(
        ErrorKind::Fenced,
        format!(
            "sink `{}` of run {} has been taken over: this writer has epoch {epoch}, the folder \
             knows {fence}",
            identity.sink, identity.run
        ),
    ))
}

fn read(layout: &Layout, identity: &PrepareSink) -> Result<u64, ConnectorError> {
    let path = layout.fence(identity);
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|error| {
            ConnectorError::caused(
                ErrorKind::Data,
                format!("the fence {} does not hold an epoch", path.display()),
                error,
            )
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(io_error("read the fence", &path, error)),
    }
}

fn lock(
    layout: &Layout,
    identity: &PrepareSink,
    shared: bool,
) -> Result<FenceGuard, ConnectorError> {
    let path = layout.fence(identity).with_added_extension("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| io_error("open the lock", &path, error))?;
    let started = Instant::now();
    loop {
        match if shared { file.try_lock_shared() } else { file.try_lock() } {
            Ok(()) => return Ok(FenceGuard { _lock: Some(file) }),
            Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_TIMEOUT => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(ConnectorError::new(
                    ErrorKind::Locked,
                    format!(
                        "another process has held {} for {} s: is a weir process paused?",
                        path.display(),
                        LOCK_TIMEOUT.as_secs()
                    ),
                ));
            }
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                return Ok(FenceGuard { _lock: None });
            }
            Err(TryLockError::Error(error)) => {
                return Err(io_error("lock", &path, error));
            }
        }
    }
}
