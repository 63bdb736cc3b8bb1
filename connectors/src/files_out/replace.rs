//! Replacing: a new folder is built beside the target and exchanged with it in one step.
//!
//! ```text
//! staged files ─▶ <control>/next-<run>-<sink>/ + folder.json{replaced_by} ─exchange─▶ <path>
//!                                                                            │
//!                                       the old folder, now `next-…`, is removed
//! ```
//!
//! After a crash `folder.json` inside the target says whether the exchange has happened. Where the
//! file system cannot exchange folders, the old one is renamed aside first: readers find no folder
//! for a moment, and an interruption in between is finished by the next call.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::commit::show;
use super::durable::{
    create_folder, exchange, io_error, remove_folder, rename_new, sync_folder, write_atomically,
};
use super::fence;
use super::layout::{Layout, StagedBatch, owner_file_in};
use crate::{ConnectorError, ErrorKind, Manifest, PrepareSink};

/// `_weir/folder.json`: this folder and all its content were written by Weir.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FolderOwner {
    pub written_by: String,
    /// The run that put this folder in the place of an older one.
    pub replaced_by: Option<Replacement>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Replacement {
    pub ledger_id: String,
    pub run: String,
    pub sink: String,
}

impl Replacement {
    fn of(identity: &PrepareSink) -> Self {
        Self {
            ledger_id: identity.ledger_id.clone(),
            run: identity.run.clone(),
            sink: identity.sink.clone(),
        }
    }
}

/// Marks a folder as Weir's own.
pub(super) fn mark(folder: &Path, replaced_by: Option<Replacement>) -> Result<(), ConnectorError> {
    let path = owner_file_in(folder);
    create_folder(path.parent().expect("the mark is inside a folder"))?;
    let owner = FolderOwner { written_by: "weir".to_owned(), replaced_by };
    let text = serde_json::to_vec(&owner).expect("names are always JSON");
    write_atomically(&path, &text)
}

fn owner(folder: &Path) -> Option<FolderOwner> {
    serde_json::from_slice(&fs::read(owner_file_in(folder)).ok()?).ok()
}

/// Whether `run` put the present folder in place.
pub(super) fn is_replaced_by(layout: &Layout, identity: &PrepareSink) -> bool {
    owner(&layout.target).and_then(|owner| owner.replaced_by) == Some(Replacement::of(identity))
}

/// Refuses a target whose files would be lost though Weir did not write them.
pub(super) fn refuse_foreign(layout: &Layout) -> Result<(), ConnectorError> {
    let entries = match fs::read_dir(&layout.target) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("list the folder", &layout.target, error)),
    };
    if owner(&layout.target).is_some() {
        return Ok(());
    }
    if let Some(entry) = entries.into_iter().next() {
        let entry = entry.map_err(|error| io_error("list the folder", &layout.target, error))?;
        return Err(ConnectorError::config(format!(
            "{} holds files that Weir did not write (such as {}), and `mode: replace` would delete \
             them: choose an empty folder, or empty this one",
            layout.target.display(),
            entry.file_name().to_string_lossy()
        )));
    }
    Ok(())
}

/// Puts the run's files in the place of the target. Any number of calls gives the same result.
pub(super) fn commit_run(
    layout: &Layout,
    identity: &PrepareSink,
    manifests: &[Manifest],
    epoch: u64,
) -> Result<(), ConnectorError> {
    let _guard = fence::raise(layout, identity, epoch)?;
    let (next, old) = (layout.next(identity), layout.old(identity));
    if !is_replaced_by(layout, identity) {
        build(layout, identity, manifests, &next)?;
        swap(layout, &next, &old)?;
    }
    remove_folder(&next)?;
    remove_folder(&old)
}

/// Moves all staged files into `next` and marks it. Idempotent.
fn build(
    layout: &Layout,
    identity: &PrepareSink,
    manifests: &[Manifest],
    next: &Path,
) -> Result<(), ConnectorError> {
    create_folder(next)?;
    let staging = layout.staging(identity);
    for manifest in manifests {
        show(&staging, next, &StagedBatch::of(manifest)?.files)?;
    }
    mark(next, Some(Replacement::of(identity)))?;
    if let Ok(present) = fs::metadata(&layout.target) {
        fs::set_permissions(next, present.permissions())
            .map_err(|error| io_error("set the permissions of", next, error))?;
    }
    sync_folder(next)
}

fn swap(layout: &Layout, next: &Path, old: &Path) -> Result<(), ConnectorError> {
    let target = &layout.target;
    let failed = |error| io_error("replace the folder", target, error);
    refuse_foreign(layout)?;
    if target.symlink_metadata().is_err() {
        rename_new(next, target).map_err(failed)?;
    } else if !exchange(next, target).map_err(|error| refused_exchange(target, error))? {
        rename_new(target, old).map_err(failed)?;
        rename_new(next, target).map_err(failed)?;
    }
    sync_folder(target.parent().expect("a folder that is replaced has a parent"))?;
    sync_folder(&layout.control)
}

fn refused_exchange(target: &Path, error: io::Error) -> ConnectorError {
    match error.kind() {
        io::ErrorKind::ResourceBusy | io::ErrorKind::CrossesDevices => ConnectorError::caused(
            ErrorKind::Config,
            format!(
                "{} cannot be replaced (it is a mount point: write to a folder inside it)",
                target.display()
            ),
            error,
        ),
        _ => io_error("replace the folder", target, error),
    }
}

/// Gives an abandoned run up: an old folder that was renamed aside goes back.
pub(super) fn abandon(layout: &Layout, identity: &PrepareSink) -> Result<(), ConnectorError> {
    let old = layout.old(identity);
    if old.is_dir() && layout.target.symlink_metadata().is_err() {
        rename_new(&old, &layout.target)
            .map_err(|error| io_error("restore the folder", &layout.target, error))?;
    }
    remove_folder(&layout.next(identity))?;
    remove_folder(&old)
}

/// For `ErrorKind::Changed` of an audit.
pub(super) fn replaced_since(layout: &Layout, identity: &PrepareSink) -> ConnectorError {
    let by = owner(&layout.target).and_then(|owner| owner.replaced_by);
    ConnectorError::new(
        ErrorKind::Changed,
        match by {
            Some(by) => format!(
                "{} no longer holds the rows of run {}: run {} has replaced it",
                layout.target.display(),
                identity.run,
                by.run
            ),
            None => format!(
                "{} does not hold the rows of run {}: it has been removed or made anew",
                layout.target.display(),
                identity.run
            ),
        },
    )
}
