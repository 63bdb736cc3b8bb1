//! What is kept of a pipeline's runs and backfills: in a state directory, or in a cluster's storage. One
//! place knows the names.

use std::io;

use weir_executor::RunFolder;
use weir_executor::storage::Storage;
use weir_ledger::{BackfillId, RunId};
use weir_spec::PipelineName;

use crate::EngineError;

/// Of one pipeline:
///
/// ```text
/// runs/<run>/spec.json             the pipeline, `env` and `secret` templates unrendered
/// runs/<run>/plan/<hash>.json      the frozen stage graph
/// runs/<run>/ended.json            of a backfill's window: its facts, which the ledger forgets
/// runs/<run>/log/<epoch>-<session>-<line>.jsonl   what happened, for people; clusters only
/// runs/<run>/progress/ dead-letters/ exchange/     see weir_executor::RunFolder
/// backfills/<id>.json              what a backfill was created with; clusters only
/// replay/<run>-<time>/<node>.jsonl rows that a run replays; a cluster's in a folder only
/// versions/<hash>-<random>.json    what was registered, each time that it was; clusters only
/// ```
///
/// Beside the pipelines' folders a cluster's storage has `.ledger-id` (`cluster::founding`), `.ended/`, the facts of
/// runs that have left the ledger (`cluster::ended_runs`), and `.to-remove/`, rows that stages kept (`cluster::removal`).
#[derive(Clone, Debug)]
pub(crate) struct PipelineFiles(Storage);

impl PipelineFiles {
    /// The pipeline's own part of a storage.
    pub(crate) fn new(storage: Storage) -> Self {
        Self(storage)
    }

    /// In a storage that all pipelines share.
    pub(crate) fn of(storage: &Storage, pipeline: &PipelineName) -> Self {
        Self(storage.within(&pipeline.0))
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.0
    }

    pub(crate) fn run(&self, run: &RunId) -> RunFolder {
        RunFolder::new(self.0.within(&format!("runs/{run}")))
    }

    pub(crate) fn backfill_file(backfill: &BackfillId) -> String {
        format!("backfills/{backfill}.json")
    }

    /// A version as it was registered.
    pub(crate) fn version_file(file: &str) -> String {
        format!("versions/{file}.json")
    }
}

pub(crate) fn storage_error(
    attempt: &'static str,
    storage: &Storage,
    name: &str,
    source: io::Error,
) -> EngineError {
    EngineError::State { attempt, path: storage.shown(name), source }
}
