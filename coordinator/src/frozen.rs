//! What a run keeps of its start: the pipeline as it was written, and the plan.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use weir_executor::RunFolder;
use weir_executor::storage::Storage;
use weir_ledger::{BackfillId, RunFacts, RunId};
use weir_plan::StageGraph;
use weir_spec::PipelineSpec;

use crate::pipeline_files::{PipelineFiles, storage_error};
use crate::state_dir::state_error;
use crate::surroundings::beside;
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

const FROZEN: &str = "spec.json";
const ENDED: &str = "ended.json";

pub(crate) async fn write_frozen(
    files: &PipelineFiles,
    frozen: &Frozen,
) -> Result<(), EngineError> {
    write(files.run(&RunId(frozen.run.clone())).storage(), FROZEN, frozen).await
}

/// Of a run that the ledger has refused. What cannot be removed is left.
pub(crate) async fn remove_frozen(files: &PipelineFiles, run: &RunId) {
    let folder = format!("runs/{run}");
    if let Err(error) = files.storage().delete_all(&folder).await {
        let path = files.storage().shown(&folder);
        tracing::warn!(path, %error, "the folder of a refused run is left");
    }
}

pub(crate) async fn read_frozen(files: &PipelineFiles, run: &RunId) -> Result<Frozen, EngineError> {
    read(files.run(run).storage(), FROZEN).await
}

/// Writes the graph under its hash, durably, and returns the hash.
pub(crate) async fn write_graph(
    files: &PipelineFiles,
    run: &RunId,
    graph: &Arc<StageGraph>,
) -> Result<String, EngineError> {
    let graph = Arc::clone(graph);
    let (bytes, hash) = beside(move || {
        let bytes = to_json(graph.as_ref());
        let hash = blake3::hash(&bytes).to_hex().to_string();
        (bytes, hash)
    })
    .await;
    let (folder, name) = (files.run(run), RunFolder::graph_file(&hash));
    let storage = folder.storage();
    let written = storage.put(&name, bytes).await;
    written.map_err(|cause| storage_error("write", storage, &name, cause))?;
    Ok(hash)
}

/// Reads the graph that the ledger names; `None` for a run without a plan.
pub(crate) async fn read_graph(
    files: &PipelineFiles,
    run: &RunId,
    facts: &RunFacts,
) -> Result<Option<StageGraph>, EngineError> {
    let Some(hash) = &facts.graph_hash else { return Ok(None) };
    let folder = files.run(run);
    let name = RunFolder::graph_file(hash);
    let failed = |cause| storage_error("read", folder.storage(), &name, cause);
    // To wait for a store takes no thread; to decode a large plan does.
    let bytes = folder.storage().get(&name).await.map_err(failed)?;
    let hash = hash.clone();
    let graph = beside(move || RunFolder::graph_in(&bytes, &hash)).await;
    graph.map(Some).map_err(failed)
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

pub(crate) async fn write_backfill(
    files: &PipelineFiles,
    frozen: &FrozenBackfill,
) -> Result<(), EngineError> {
    write(files.storage(), &PipelineFiles::backfill_file(&frozen.backfill), frozen).await
}

pub(crate) async fn read_backfill(
    files: &PipelineFiles,
    backfill: &BackfillId,
) -> Result<FrozenBackfill, EngineError> {
    read(files.storage(), &PipelineFiles::backfill_file(backfill)).await
}

/// A pipeline as it was registered with a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registered {
    pub(crate) text: String,
    /// The text of `weir.yaml`; empty: there was none.
    pub(crate) workspace: String,
    /// What messages call the file. Another name is no other pipeline.
    pub(crate) file_name: String,
    /// Where relative paths of the pipeline start.
    pub(crate) base_dir: PathBuf,
}

impl Registered {
    /// Of what decides about a run, hex.
    pub(crate) fn content_hash(&self) -> String {
        let Self { text, workspace, base_dir, file_name: _ } = self;
        blake3::hash(&to_json(&(text, workspace, base_dir))).to_hex()[..32].to_owned()
    }
}

/// Under a name that nothing else has had.
pub(crate) async fn write_registered(
    files: &PipelineFiles,
    file: &str,
    registered: &Registered,
) -> Result<(), EngineError> {
    let name = PipelineFiles::version_file(file);
    write(files.storage(), &name, registered).await
}

pub(crate) async fn read_registered(
    files: &PipelineFiles,
    file: &str,
) -> Result<Registered, EngineError> {
    read(files.storage(), &PipelineFiles::version_file(file)).await
}

/// A version that the ledger has forgotten. What cannot be removed is left.
pub(crate) async fn remove_registered(files: &PipelineFiles, file: &str) {
    let name = PipelineFiles::version_file(file);
    if let Err(error) = files.storage().delete(&name).await {
        let path = files.storage().shown(&name);
        tracing::warn!(path, %error, "a forgotten version is left");
    }
}

/// Keeps the facts of a run that the ledger is about to forget.
pub(crate) async fn write_ended(
    files: &PipelineFiles,
    run: &RunId,
    facts: &RunFacts,
) -> Result<(), EngineError> {
    write(files.run(run).storage(), ENDED, facts).await
}

pub(crate) async fn read_ended(
    files: &PipelineFiles,
    run: &RunId,
) -> Result<RunFacts, EngineError> {
    read(files.run(run).storage(), ENDED).await
}

async fn write<T: Serialize>(storage: &Storage, name: &str, value: &T) -> Result<(), EngineError> {
    let written = storage.put(name, to_json(value)).await;
    written.map_err(|cause| storage_error("write", storage, name, cause))
}

async fn read<T: DeserializeOwned>(storage: &Storage, name: &str) -> Result<T, EngineError> {
    let read = storage.get(name).await.and_then(|bytes| {
        serde_json::from_slice(&bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
    });
    read.map_err(|cause| storage_error("read", storage, name, cause))
}

fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("specs and plans can be written as JSON")
}
