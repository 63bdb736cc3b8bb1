//! Where a sink keeps what: the names of files and folders.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{ConnectorError, ErrorKind, Manifest, PrepareSink};

/// The places of one sink. See the module for the picture.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// The folder that readers read.
    pub target: PathBuf,
    /// Staging, fences and locks.
    pub control: PathBuf,
}

impl Layout {
    /// Control inside the target: for appending.
    pub(super) fn inside(target: PathBuf) -> Self {
        let control = target.join("_weir");
        Self { target, control }
    }

    /// Control beside the target: for replacing it as a whole. Links are followed, so that the
    /// folder is exchanged and not the link.
    pub(super) fn beside(target: PathBuf) -> Result<Self, ConnectorError> {
        let target = target.canonicalize().unwrap_or(target);
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(ConnectorError::config(format!(
                "{} cannot be replaced: it is no folder inside another one",
                target.display()
            )));
        };
        let control = parent.join(format!("_weir-{}", name.to_string_lossy()));
        Ok(Self { control, target })
    }

    pub(super) fn staging(&self, identity: &PrepareSink) -> PathBuf {
        self.control.join("staging").join(safe(&identity.run)).join(safe(&identity.sink))
    }

    /// The folder that is to become the target.
    pub(super) fn next(&self, identity: &PrepareSink) -> PathBuf {
        self.control.join(format!("next-{}", batch_prefix(identity)))
    }

    /// Where the old target goes on file systems that cannot exchange folders.
    pub(super) fn old(&self, identity: &PrepareSink) -> PathBuf {
        self.control.join(format!("old-{}", batch_prefix(identity)))
    }

    pub(super) fn run_manifest(&self, identity: &PrepareSink) -> PathBuf {
        self.control.join("manifests").join(format!("{}.json", batch_prefix(identity)))
    }

    pub(super) fn fence(&self, identity: &PrepareSink) -> PathBuf {
        self.control.join(format!(
            "fence-{}-{}-{}",
            safe(&identity.ledger_id),
            safe(&identity.pipeline),
            safe(&identity.sink)
        ))
    }
}

/// Says who wrote the folder: present only where Weir found it empty or made it.
pub(super) fn owner_file_in(folder: &Path) -> PathBuf {
    folder.join("_weir").join("folder.json")
}

/// What every data file's name of one run and sink starts with.
pub(super) fn batch_prefix(identity: &PrepareSink) -> String {
    format!("{}-{}", safe(&identity.run), safe(&identity.sink))
}

/// The final name of the `number`th file of a batch.
pub(super) fn final_name(
    identity: &PrepareSink,
    slice: u32,
    sequence: u64,
    number: u64,
    suffix: &str,
) -> String {
    format!("{}-{slice}-{sequence}-{number}.{suffix}", batch_prefix(identity))
}

/// Slice and sequence of a data file, when this run and sink wrote it.
pub(super) fn parse_final_name(identity: &PrepareSink, name: &str) -> Option<(u32, u64)> {
    let rest = name.strip_prefix(&batch_prefix(identity))?.strip_prefix('-')?;
    let numbers = rest.split('.').next()?;
    let mut parts = numbers.split('-');
    let slice = parts.next()?.parse().ok()?;
    let sequence = parts.next()?.parse().ok()?;
    let _number: u64 = parts.next()?.parse().ok()?;
    parts.next().is_none().then_some((slice, sequence))
}

/// A name as a part of a file name: other bytes, and a first character that would hide the file,
/// become `%XX`.
pub(super) fn safe(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for (index, byte) in name.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric()
            || byte == b'-'
            || (index > 0 && matches!(byte, b'.' | b'_'));
        if plain {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// One file of a staged batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StagedFile {
    /// Relative to the staging folder of the run and sink.
    pub staged: String,
    /// Relative to the target folder.
    pub target: String,
    pub rows: u64,
    pub bytes: u64,
}

/// What a manifest of this sink holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StagedBatch {
    pub files: Vec<StagedFile>,
}

impl StagedBatch {
    pub(super) fn of(manifest: &Manifest) -> Result<Self, ConnectorError> {
        serde_json::from_value(manifest.payload.clone()).map_err(|error| {
            ConnectorError::caused(
                ErrorKind::Internal,
                format!(
                    "the manifest of slice {} batch {} is not one of a file sink",
                    manifest.slice, manifest.sequence
                ),
                error,
            )
        })
    }
}
