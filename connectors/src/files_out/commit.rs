//! Appending: staged files become visible by being renamed.
//!
//! ```text
//! staged ──rename──▶ final          of each file, exactly once
//!    │
//!    └─ gone with its writer ─▶ lost: what the batch had made visible is taken back
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::durable::{
    create_folder, io_error, remove_file, rename_new, sync_folder, write_atomically,
};
use super::fence;
use super::layout::{Layout, StagedBatch, StagedFile};
use crate::{ConnectorError, ErrorKind, Manifest, PrepareSink, Recovery};

/// Shows one batch. A second call finds its files renamed and does nothing.
pub(super) fn publish(
    layout: &Layout,
    identity: &PrepareSink,
    manifest: &Manifest,
    epoch: u64,
) -> Result<(), ConnectorError> {
    let _guard = fence::hold(layout, identity, epoch)?;
    let batch = StagedBatch::of(manifest)?;
    show(&layout.staging(identity), &layout.target, &batch.files)
}

/// `commit: run`: the batch is durable since it was staged; only a fenced writer must hear of it.
pub(super) fn keep_staged(
    layout: &Layout,
    identity: &PrepareSink,
    epoch: u64,
) -> Result<(), ConnectorError> {
    fence::hold(layout, identity, epoch).map(drop)
}

/// Finishes a batch whose writer was given up, or finds that it is lost. `moved_to` are folders to
/// which an interrupted commit may have moved files; the first is where a batch is shown.
///
/// The writer may be paused in the middle of [`publish`], and wake up at any moment: it renames the
/// same files to the same names, each at most once, and those of a lost batch are gone.
pub(super) fn recover(
    layout: &Layout,
    identity: &PrepareSink,
    manifest: &Manifest,
    epoch: u64,
    moved_to: &[PathBuf],
    is_shown: bool,
) -> Result<Recovery, ConnectorError> {
    let _guard = fence::join(layout, identity, epoch)?;
    let staging = layout.staging(identity);
    let files = StagedBatch::of(manifest)?.files;
    let is_complete = files.iter().all(|file| {
        has_size(&staging.join(&file.staged), file.bytes)
            || moved_to.iter().any(|folder| has_size(&folder.join(&file.target), file.bytes))
    });
    if is_complete {
        if is_shown {
            show(&staging, &layout.target, &files)?;
        }
        return Ok(Recovery::Published);
    }
    for file in &files {
        remove_file(&staging.join(&file.staged))?;
        for folder in moved_to {
            remove_file(&folder.join(&file.target))?;
        }
    }
    Ok(Recovery::Lost)
}

/// Shows all batches of a run, file by file. Any number of calls gives the same result.
pub(super) fn commit_run(
    layout: &Layout,
    identity: &PrepareSink,
    manifests: &[Manifest],
    epoch: u64,
) -> Result<(), ConnectorError> {
    let _guard = fence::raise(layout, identity, epoch)?;
    let mut files = Vec::new();
    for manifest in manifests {
        files.extend(StagedBatch::of(manifest)?.files);
    }
    let listing = serde_json::json!({
        "run": identity.run,
        "sink": identity.sink,
        "files": files.iter().map(|file| &file.target).collect::<Vec<_>>(),
    });
    let path = layout.run_manifest(identity);
    create_folder(path.parent().expect("a manifest is inside a folder"))?;
    write_atomically(&path, listing.to_string().as_bytes())?;
    show(&layout.staging(identity), &layout.target, &files)
}

/// Renames every staged file to its final name below `target`, and makes that durable.
pub(super) fn show(
    staging: &Path,
    target: &Path,
    files: &[StagedFile],
) -> Result<(), ConnectorError> {
    let mut folders = BTreeSet::new();
    for file in files {
        let to = target.join(&file.target);
        let folder = to.parent().expect("a final name is inside a folder").to_owned();
        if folders.insert(folder.clone()) {
            create_folder(&folder)?;
        }
        let from = staging.join(&file.staged);
        match rename_new(&from, &to) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !has_size(&to, file.bytes) {
                    return Err(ConnectorError::new(
                        ErrorKind::Changed,
                        format!(
                            "the staged file {} is gone and {} is not there: was the folder's \
                             `_weir` cleaned up by hand, or has another process taken over?",
                            from.display(),
                            to.display()
                        ),
                    ));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(ConnectorError::new(
                    ErrorKind::Changed,
                    format!(
                        "{} exists already and is not replaced: another state directory has \
                         written a run of the same name into this folder",
                        to.display()
                    ),
                ));
            }
            Err(error) => return Err(io_error("publish", &to, error)),
        }
    }
    for folder in folders {
        sync_folder(&folder)?;
    }
    Ok(())
}

pub(super) fn has_size(path: &Path, bytes: u64) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == bytes)
}
