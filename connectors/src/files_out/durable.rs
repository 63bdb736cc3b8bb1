//! File operations that survive a power cut, and errors that say how to mend them.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::durable::create_dir_all_durable;
use crate::{ConnectorError, ErrorKind};

/// Of a folder whose parents others remove at the same time.
const TRIES: u32 = 100;

/// Runs blocking file work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ConnectorError> + Send + 'static,
) -> Result<T, ConnectorError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ConnectorError::caused(
            ErrorKind::Internal,
            "a task that writes files ended early",
            error,
        )),
    }
}

/// An I/O error at `path` with the remedy a person needs.
pub(super) fn io_error(attempt: &str, path: &Path, cause: io::Error) -> ConnectorError {
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            let free = match free_bytes(path) {
                Some(bytes) => format!("{} KiB are free on its file system", bytes / 1024),
                None => "its file system is full".to_owned(),
            };
            ConnectorError::caused(
                ErrorKind::Exhausted,
                format!(
                    "failed to {attempt} {} ({free}; make room there or choose another path; \
                     nothing of this batch is visible)",
                    path.display()
                ),
                cause,
            )
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            ConnectorError::caused(
                ErrorKind::Denied,
                format!(
                    "failed to {attempt} {} (allow the user who runs weir to write there, or \
                     choose another path)",
                    path.display()
                ),
                cause,
            )
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => ConnectorError::caused(
            ErrorKind::Config,
            format!("failed to {attempt} {} (a part of this path is a file)", path.display()),
            cause,
        ),
        _ => ConnectorError::io(attempt, path, cause),
    }
}

/// Free bytes on the file system of `path` or of its nearest existing parent.
fn free_bytes(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists())?;
    let status = rustix::fs::statvfs(existing).ok()?;
    Some(status.f_bavail.saturating_mul(status.f_frsize))
}

/// Makes the entries of a folder durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), ConnectorError> {
    File::open(folder)
        .and_then(|handle| handle.sync_all())
        .map_err(|error| io_error("make durable the folder", folder, error))
}

/// Creates a folder with its missing parents, durably. Returns whether it was missing.
pub(super) fn create_folder(folder: &Path) -> Result<bool, ConnectorError> {
    let mut created = create_dir_all_durable(folder);
    for _ in 0..TRIES {
        // Another run has removed a parent that was empty for a moment.
        if !matches!(&created, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            break;
        }
        created = create_dir_all_durable(folder);
    }
    created.map_err(|error| io_error("create the folder", folder, error))
}

/// Replaces a small file: readers see the old or the new content, also after a power cut.
pub(super) fn write_atomically(path: &Path, content: &[u8]) -> Result<(), ConnectorError> {
    let temporary = sibling(path, &format!(".{}.new", uuid::Uuid::new_v4().simple()));
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    });
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(io_error("write", path, error));
    }
    match path.parent() {
        Some(parent) => sync_folder(parent),
        None => Ok(()),
    }
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

/// Renames without replacing: `AlreadyExists` if `to` is there.
pub(super) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(error) if is_unsupported(error) => {
            // As the kernel does it: what has been renamed already is `NotFound`.
            from.symlink_metadata()?;
            if to.symlink_metadata().is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            fs::rename(from, to)
        }
        Err(error) => Err(error.into()),
    }
}

/// Exchanges two folders in one step. `Ok(false)`: the file system cannot.
pub(super) fn exchange(one: &Path, other: &Path) -> io::Result<bool> {
    match renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(error) if is_unsupported(error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_unsupported(error: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    matches!(error, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
}

/// Removes a folder with its content; a missing one is fine.
pub(super) fn remove_folder(folder: &Path) -> Result<(), ConnectorError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove the folder", folder, error))
        }
        _ => Ok(()),
    }
}

/// Removes a file; a missing one is fine.
pub(super) fn remove_file(path: &Path) -> Result<(), ConnectorError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path, error))
        }
        _ => Ok(()),
    }
}
