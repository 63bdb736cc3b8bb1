//! Reads the checkpoints of committed batches, which hold their manifests.

use weir_connectors::Manifest;
use weir_executor::{Commit, RunFolder};
use weir_ledger::StageFacts;
use weir_plan::StageId;

use crate::EngineError;
use crate::state_dir::state_error;

/// The manifests of a stage's committed batches, by slice and sequence.
pub(crate) fn read_manifests(
    folder: &RunFolder,
    stage: StageId,
    facts: &StageFacts,
) -> Result<Vec<Manifest>, EngineError> {
    let mut manifests = Vec::new();
    for (slice, number) in facts.slices.iter().zip(0..) {
        let folder = folder.progress(stage, number);
        for sequence in 0..slice.next_sequence {
            let path = folder.join(format!("{sequence}.json"));
            let read = std::fs::read(&path).and_then(|bytes| {
                serde_json::from_slice::<Commit>(&bytes).map_err(std::io::Error::from)
            });
            let commit = read.map_err(|cause| state_error("read the checkpoint", &path, cause))?;
            manifests.push(commit.manifest);
        }
    }
    Ok(manifests)
}
