//! Reads the checkpoints of committed batches, which hold their manifests.

use futures::{FutureExt as _, StreamExt, TryStreamExt, stream};
use weir_connectors::Manifest;
use weir_executor::{Commit, RunFolder};
use weir_ledger::StageFacts;
use weir_plan::StageId;

use crate::EngineError;
use crate::pipeline_files::storage_error;

/// Checkpoints that are read at the same time.
const READ_AT_ONCE: usize = 16;

/// The manifests of a stage's committed batches, by slice and sequence.
pub(crate) async fn read_manifests(
    folder: &RunFolder,
    stage: StageId,
    facts: &StageFacts,
) -> Result<Vec<Manifest>, EngineError> {
    let batches = facts.slices.iter().zip(0..).flat_map(|(slice, number)| {
        let attempt = |sequence| slice.attempt_of(sequence).unwrap_or_default();
        (0..slice.next_sequence).map(move |sequence| (number, sequence, attempt(sequence)))
    });
    let read = stream::iter(batches.collect::<Vec<_>>()).map(|(slice, sequence, attempt)| {
        read_manifest(folder, stage, slice, sequence, attempt).boxed()
    });
    read.buffered(READ_AT_ONCE).try_collect().await
}

async fn read_manifest(
    folder: &RunFolder,
    stage: StageId,
    slice: u32,
    sequence: u64,
    attempt: u32,
) -> Result<Manifest, EngineError> {
    let name = |attempt| RunFolder::progress_file(stage, slice, sequence, attempt);
    let read = folder.get_accepted(attempt, name).await;
    let commit =
        read.and_then(|bytes| serde_json::from_slice::<Commit>(&bytes).map_err(Into::into));
    match commit {
        Ok(commit) => Ok(commit.manifest),
        Err(cause) => {
            Err(storage_error("read the checkpoint", folder.storage(), &name(attempt), cause))
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_executor::storage::Storage;
    use weir_ledger::{CommittedBy, RunCommit, SliceFacts, StageOutputShape, StageShape};
    use weir_plan::RowAccount;

    use super::*;

    #[tokio::test]
    async fn a_batch_is_read_as_the_attempt_has_written_it_that_has_committed_it() {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let folder = RunFolder::new(Storage::folder(temporary.path()));
        let stage = StageId(0);
        // Batch 1 by a version whose names had no attempt; 2 also by a paused attempt, later.
        for (sequence, attempt, rows) in [(0, 1, 7), (1, 0, 8), (2, 2, 9), (2, 1, 10)] {
            let payload = serde_json::Value::Null;
            let manifest = Manifest { slice: 0, sequence, rows, checksum: 0, epoch: 1, payload };
            let commit = Commit { manifest, account: RowAccount::default(), resume_at: None };
            let json = serde_json::to_vec(&commit).expect("commits are JSON");
            let name = RunFolder::progress_file(stage, 0, sequence, attempt);
            folder.storage().create(&name, json).await.expect("writable");
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
                ]
                .into(),
                ..SliceFacts::default()
            }]
            .into(),
            finished_slices: 0,
            run_commit: RunCommit::Open,
        };
        let manifests = read_manifests(&folder, stage, &facts).await.expect("all are there");
        let rows: Vec<u64> = manifests.iter().map(|manifest| manifest.rows).collect();
        assert_eq!(rows, [7, 8, 9]);
    }
}
