//! Files that are either complete and on the disk, or not there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::TaskError;

/// Writes a file so that a reader, even after a power cut, sees all of it or what was there before.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_parent(path)
}

/// Makes a created, renamed or removed name durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Removes a file that may be missing; whether there was one.
pub(crate) fn remove_if_present(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(cause),
    }
}

/// Removes the files of a folder that may be missing, by name.
pub(crate) fn remove_files(folder: &Path, is_meant: impl Fn(&str) -> bool) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&is_meant) {
            remove_if_present(&entry.path())?;
        }
    }
    Ok(())
}

pub(crate) fn state_error(attempt: &'static str, path: &Path, source: io::Error) -> TaskError {
    TaskError::State { attempt: attempt.into(), path: path.display().to_string(), source }
}

/// Runs file work that waits for the disk off the async threads.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TaskError> + Send + 'static,
) -> Result<T, TaskError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(stopped) => Err(TaskError::State {
            attempt: "finish writing".into(),
            path: "the run's folder".to_owned(),
            source: io::Error::other(stopped),
        }),
    }
}

/// Makes the folder, without anything in it.
pub(crate) fn empty_folder(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => return Err(cause),
        _ => {}
    }
    std::fs::create_dir_all(path)
}
