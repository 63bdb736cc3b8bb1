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
        for sequence in 0..slice.next_sequence {
            let attempt = slice.attempt_of(sequence).unwrap_or_default();
            let path = RunFolder::accepted(attempt, |attempt| {
                folder.progress_file(stage, number, sequence, attempt)
            });
            let read = std::fs::read(&path).and_then(|bytes| {
                serde_json::from_slice::<Commit>(&bytes).map_err(std::io::Error::from)
            });
            let commit = read.map_err(|cause| state_error("read the checkpoint", &path, cause))?;
            manifests.push(commit.manifest);
        }
    }
    Ok(manifests)
}

#[cfg(test)]
mod tests {
    use weir_ledger::{CommittedBy, RunCommit, SliceFacts, StageOutputShape, StageShape};
    use weir_plan::RowAccount;

    use super::*;

    #[test]
    fn a_batch_is_read_as_the_attempt_has_written_it_that_has_committed_it() {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let folder = RunFolder::new(temporary.path());
        let stage = StageId(0);
        std::fs::create_dir_all(folder.progress(stage, 0)).expect("writable");
        // Batch 1 by a version whose names had no attempt; 2 also by a paused attempt, later.
        for (sequence, attempt, rows) in [(0, 1, 7), (1, 0, 8), (2, 2, 9), (2, 1, 10)] {
            let payload = serde_json::Value::Null;
            let manifest = Manifest { slice: 0, sequence, rows, checksum: 0, epoch: 1, payload };
            let commit = Commit { manifest, account: RowAccount::default(), resume_at: None };
            let json = serde_json::to_vec(&commit).expect("commits are JSON");
            std::fs::write(folder.progress_file(stage, 0, sequence, attempt), json)
                .expect("writable");
        }
        let facts = StageFacts {
            shape: StageShape {
                name: "kept".into(),
                slices: 1,
                streaming: true,
                inputs: vec![],
                nodes: vec![],
                output: StageOutputShape::Exchange,
            },
            slices: vec![SliceFacts {
                next_sequence: 3,
                committed_by: vec![
                    CommittedBy { from: 0, attempt: 1 },
                    CommittedBy { from: 2, attempt: 2 },
                ],
                ..SliceFacts::default()
            }],
            finished_slices: 0,
            run_commit: RunCommit::Open,
        };
        let manifests = read_manifests(&folder, stage, &facts).expect("all are there");
        let rows: Vec<u64> = manifests.iter().map(|manifest| manifest.rows).collect();
        assert_eq!(rows, [7, 8, 9]);
    }
}
