//! Work on files of this machine.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::TaskError;
use crate::storage::{self, Storage};

/// Makes a created, renamed or removed name durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

pub(crate) fn state_error(attempt: &'static str, path: &Path, source: io::Error) -> TaskError {
    TaskError::State { attempt: attempt.into(), path: path.display().to_string(), source }
}

pub(crate) fn storage_error(
    attempt: &'static str,
    storage: &Storage,
    name: &str,
    source: io::Error,
) -> TaskError {
    TaskError::State { attempt: attempt.into(), path: storage.shown(name), source }
}

/// Runs file work that waits for the disk off the async threads.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TaskError> + Send + 'static,
) -> Result<T, TaskError> {
    let done = storage::off_thread(|| Ok(work())).await;
    done.unwrap_or_else(|source| {
        Err(TaskError::State {
            attempt: "finish writing".into(),
            path: "the run's folder".to_owned(),
            source,
        })
    })
}

/// Makes the folder, without anything in it.
pub(crate) fn empty_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
        _ => {}
    }
    fs::create_dir_all(path)
}
