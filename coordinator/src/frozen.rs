//! What a run keeps of its start: the pipeline as it was written, and the plan.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weir_executor::RunFolder;
use weir_ledger::{BackfillId, RunFacts, RunId};
use weir_plan::StageGraph;
use weir_spec::PipelineSpec;

use crate::state_dir::{PipelineDir, state_error, write_durably};
use crate::{EngineError, Frozen, RunRequest};

/// Identifies what a run does. Parts of a file that change nothing about the rows (descriptions,
/// triggers, alerts, tests, comments) do not count; rows that are given in place of a source do.
pub(crate) fn spec_hash(spec: &PipelineSpec, request: &RunRequest) -> Result<String, EngineError> {
    let mut spec = spec.clone();
    spec.description = None;
    spec.owner = None;
    spec.docs = None;
    spec.triggers.clear();
    spec.alerts.clear();
    spec.tests.clear();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&to_json(&spec));
    for (node, path) in &request.given {
        let rows = std::fs::File::open(path).map_err(|cause| state_error("open", path, cause))?;
        hasher.update(node.as_str().as_bytes());
        hasher.update_reader(rows).map_err(|cause| state_error("read", path, cause))?;
    }
    Ok(hasher.finalize().to_hex()[..32].to_owned())
}

pub(crate) fn write_frozen(dir: &PipelineDir, frozen: &Frozen) -> Result<(), EngineError> {
    write_durably(&frozen_path(dir, &RunId(frozen.run.clone())), &to_json(frozen))
}

pub(crate) fn read_frozen(dir: &PipelineDir, run: &RunId) -> Result<Frozen, EngineError> {
    let path = frozen_path(dir, run);
    let bytes = std::fs::read(&path).map_err(|cause| state_error("read", &path, cause))?;
    serde_json::from_slice(&bytes).map_err(|error| damaged(&path, error))
}

fn frozen_path(dir: &PipelineDir, run: &RunId) -> std::path::PathBuf {
    dir.run(run).join("spec.json")
}

/// Writes the graph under its hash, durably, and returns the hash.
pub(crate) fn write_graph(
    dir: &PipelineDir,
    run: &RunId,
    graph: &StageGraph,
) -> Result<String, EngineError> {
    let bytes = to_json(graph);
    let hash = blake3::hash(&bytes).to_hex().to_string();
    write_durably(&RunFolder::new(dir.run(run)).graph_file(&hash), &bytes)?;
    Ok(hash)
}

/// Reads the graph that the ledger names; `None` for a run without a plan.
pub(crate) fn read_graph(
    dir: &PipelineDir,
    run: &RunId,
    facts: &RunFacts,
) -> Result<Option<StageGraph>, EngineError> {
    let Some(hash) = &facts.graph_hash else { return Ok(None) };
    let folder = RunFolder::new(dir.run(run));
    let read = folder.read_graph(hash);
    read.map(Some).map_err(|cause| state_error("read", &folder.graph_file(hash), cause))
}

/// What a backfill keeps of its creation: each window's run is started with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FrozenBackfill {
    pub(crate) backfill: BackfillId,
    /// `env` and `secret` templates unrendered.
    pub(crate) spec: PipelineSpec,
    pub(crate) spec_text: String,
    pub(crate) base_dir: PathBuf,
    /// With all parameters, defaults included, and without a window.
    pub(crate) request: RunRequest,
}

pub(crate) fn write_backfill(
    dir: &PipelineDir,
    frozen: &FrozenBackfill,
) -> Result<(), EngineError> {
    write_durably(&dir.backfill(&frozen.backfill), &to_json(frozen))
}

pub(crate) fn read_backfill(
    dir: &PipelineDir,
    backfill: &BackfillId,
) -> Result<FrozenBackfill, EngineError> {
    let path = dir.backfill(backfill);
    let bytes = std::fs::read(&path).map_err(|cause| state_error("read", &path, cause))?;
    serde_json::from_slice(&bytes).map_err(|error| damaged(&path, error))
}

/// Keeps the facts of a run that the ledger is about to forget.
pub(crate) fn write_ended(
    dir: &PipelineDir,
    run: &RunId,
    facts: &RunFacts,
) -> Result<(), EngineError> {
    write_durably(&ended_path(dir, run), &to_json(facts))
}

pub(crate) fn read_ended(dir: &PipelineDir, run: &RunId) -> Result<RunFacts, EngineError> {
    let path = ended_path(dir, run);
    let bytes = std::fs::read(&path).map_err(|cause| state_error("read", &path, cause))?;
    serde_json::from_slice(&bytes).map_err(|error| damaged(&path, error))
}

fn ended_path(dir: &PipelineDir, run: &RunId) -> PathBuf {
    dir.run(run).join("ended.json")
}

fn to_json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("specs and plans can be written as JSON")
}

fn damaged(path: &Path, error: impl std::fmt::Display) -> EngineError {
    state_error(
        "read",
        path,
        std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string()),
    )
}
