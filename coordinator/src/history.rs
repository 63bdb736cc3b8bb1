//! What has happened: read from the ledgers of a state directory, while runs may be going on.

use std::collections::BTreeMap;
use std::path::Path;

use chrono::Utc;
use indexmap::IndexMap;
use uuid::Uuid;
use weir_connectors::ConnectorContext;
use weir_executor::{Registry, Systems};
use weir_ledger::{
    Command, Ledger, NewEpoch, Rejection, ResetWatermark, RunFacts, RunId, SetWatermark,
};
use weir_spec::{DeclaredColumns, NodeName, PipelineName};

use crate::audit::audit_run;
use crate::choose::find_run;
use crate::frozen::{read_frozen, read_graph};
use crate::lock::{PipelineLock, is_held};
use crate::session::ledger_error;
use crate::state_dir::{PipelineDir, StateDir};
use crate::store::{LedgerStore, StoreError};
use crate::summary::{detail, summarize};
use crate::{AuditReport, DeadLetter, EngineError, Frozen, RunDetail, RunSummary, dead_letters};

/// All runs of all pipelines, by pipeline, oldest first.
pub async fn runs(state_dir: &Path) -> Result<Vec<RunSummary>, EngineError> {
    let mut runs = Vec::new();
    for dir in StateDir::new(state_dir).pipelines()? {
        // Asked first: a run that ends in between is then shown as ended, never as interrupted.
        let is_held = is_held(&dir);
        let ledger = read_ledger(&dir).await?;
        runs.extend(ledger.runs.iter().map(|(id, run)| summarize(id, run, is_held)));
    }
    Ok(runs)
}

/// One run, by its id or a unique beginning of it.
pub async fn run(state_dir: &Path, id: &str) -> Result<RunDetail, EngineError> {
    let Found { id, facts, is_held, .. } = find(state_dir, id).await?;
    Ok(detail(&id, &facts, is_held))
}

/// What a run was started with.
pub async fn frozen(state_dir: &Path, id: &str) -> Result<Frozen, EngineError> {
    let Found { dir, id, .. } = find(state_dir, id).await?;
    read_frozen(&dir.files(), &id).await
}

/// Adds up a run's rows, and asks its targets whether they agree.
pub async fn audit(
    state_dir: &Path,
    id: &str,
    context: &ConnectorContext,
) -> Result<AuditReport, EngineError> {
    audit_with(state_dir, id, context, &Registry { context: context.clone() }).await
}

/// As [`audit`], with other systems than the connectors'.
pub async fn audit_with(
    state_dir: &Path,
    id: &str,
    context: &ConnectorContext,
    systems: &dyn Systems,
) -> Result<AuditReport, EngineError> {
    let Found { dir, ledger, id, facts, .. } = find(state_dir, id).await?;
    audit_run(&dir.files(), &ledger, &id, &facts, context, systems).await
}

/// Committed watermarks, by source.
pub async fn watermarks(
    state_dir: &Path,
    pipeline: &str,
) -> Result<BTreeMap<NodeName, String>, EngineError> {
    let (_, mut ledger) = pipeline_ledger(state_dir, pipeline).await?;
    let facts = ledger.pipelines.remove(&PipelineName(pipeline.to_owned()));
    Ok(facts.map(|facts| facts.watermarks).unwrap_or_default())
}

/// Makes the next run read what follows `value`.
pub async fn set_watermark(
    state_dir: &Path,
    pipeline: &str,
    source: &NodeName,
    value: &str,
) -> Result<(), EngineError> {
    let (dir, _) = pipeline_ledger(state_dir, pipeline).await?;
    change(&dir, pipeline, |epoch| {
        vec![Command::SetWatermark(SetWatermark {
            epoch,
            pipeline: PipelineName(pipeline.to_owned()),
            source: source.clone(),
            value: value.to_owned(),
        })]
    })
    .await
}

/// Makes the next run read a source, or all sources, from the start.
pub async fn reset_watermark(
    state_dir: &Path,
    pipeline: &str,
    source: Option<&NodeName>,
) -> Result<(), EngineError> {
    let known = watermarks(state_dir, pipeline).await?;
    let sources: Vec<NodeName> = match source {
        Some(source) if !known.contains_key(source) => {
            return Err(EngineError::NotFound(format!(
                "watermark of source `{source}` of pipeline `{pipeline}`"
            )));
        }
        Some(source) => vec![source.clone()],
        None => known.into_keys().collect(),
    };
    let (dir, _) = pipeline_ledger(state_dir, pipeline).await?;
    change(&dir, pipeline, |epoch| {
        let reset = |source| {
            let pipeline = PipelineName(pipeline.to_owned());
            Command::ResetWatermark(ResetWatermark { epoch, pipeline, source })
        };
        sources.into_iter().map(reset).collect()
    })
    .await
}

/// Rejected rows of a run's committed batches, by node, in the order of stages, slices and batches: at
/// most `limit` of those that `is_wanted` chooses. With how many rows there are in all.
pub async fn dead_letters(
    state_dir: &Path,
    id: &str,
    node: Option<&NodeName>,
    limit: usize,
    is_wanted: impl Fn(&DeadLetter) -> bool + Send + 'static,
) -> Result<(Vec<DeadLetter>, u64), EngineError> {
    let Found { dir, id, facts, .. } = find(state_dir, id).await?;
    let folder = dir.files().run(&id);
    let pipeline = facts.pipeline.0.clone();
    let total = dead_letters::count_dead_letters(&facts, node);
    let mut read = dead_letters::read_dead_letters(folder, pipeline, facts, node.cloned());
    let mut letters = Vec::new();
    while letters.len() < limit
        && let Some(letter) = read.recv().await
    {
        letters.extend(Some(letter?).filter(&is_wanted));
    }
    Ok((letters, total))
}

/// The columns that came into the `validate` nodes of a run, for rows that are replayed into them.
pub async fn validated_columns(
    state_dir: &Path,
    id: &str,
) -> Result<IndexMap<NodeName, DeclaredColumns>, EngineError> {
    let Found { dir, id, facts, .. } = find(state_dir, id).await?;
    match read_graph(&dir.files(), &id, &facts).await? {
        None => Ok(IndexMap::new()),
        Some(graph) => crate::validated::validated_columns(&graph)
            .map_err(|error| EngineError::Invalid(format!("the plan of run {id}: {error}"))),
    }
}

struct Found {
    dir: PipelineDir,
    ledger: Ledger,
    id: RunId,
    facts: RunFacts,
    is_held: bool,
}

async fn find(state_dir: &Path, id: &str) -> Result<Found, EngineError> {
    let mut found: Option<Found> = None;
    for dir in StateDir::new(state_dir).pipelines()? {
        let is_held = is_held(&dir);
        let ledger = read_ledger(&dir).await?;
        let (run, facts) = match find_run(&ledger, id) {
            Ok((run, facts)) => (run.clone(), facts.clone()),
            Err(EngineError::NotFound(_)) => continue,
            Err(error) => return Err(error),
        };
        if let Some(other) = &found {
            return Err(EngineError::Invalid(format!(
                "`{id}` is the beginning of several runs, {} and {run} among them",
                other.id
            )));
        }
        found = Some(Found { dir, ledger, id: run, facts, is_held });
    }
    found.ok_or_else(|| {
        EngineError::NotFound(format!(
            "run {id} in {} (`weir runs` lists them)",
            state_dir.display()
        ))
    })
}

async fn pipeline_ledger(
    state_dir: &Path,
    pipeline: &str,
) -> Result<(PipelineDir, Ledger), EngineError> {
    let dir = StateDir::new(state_dir).pipeline(&PipelineName(pipeline.to_owned()));
    if !dir.ledger().is_file() {
        return Err(EngineError::NotFound(format!(
            "state of pipeline `{pipeline}` in {}",
            state_dir.display()
        )));
    }
    let ledger = read_ledger(&dir).await?;
    Ok((dir, ledger))
}

async fn read_ledger(dir: &PipelineDir) -> Result<Ledger, EngineError> {
    let path = dir.ledger();
    LedgerStore::open_reader(&path).await.map_err(|error| ledger_error(&path, &error))
}

/// Appends commands in an epoch of their own.
async fn change(
    dir: &PipelineDir,
    pipeline: &str,
    commands: impl FnOnce(u64) -> Vec<Command>,
) -> Result<(), EngineError> {
    let lock = PipelineLock::try_acquire(dir)?
        .map_err(|holder| EngineError::Busy(format!("{holder} runs pipeline `{pipeline}`")))?;
    let path = dir.ledger();
    let failed = |error: StoreError| match error {
        StoreError::Rejected(Rejection::RunActive { active }) => EngineError::Refused(format!(
            "run {active} is not finished and would move the watermark when it is: finish it with \
             `weir retry {active}`, or give it up with `weir run --fresh`"
        )),
        error => ledger_error(&path, &error),
    };
    let store = LedgerStore::open_writer(&path, lock).await.map_err(failed)?;
    let result = async {
        let ledger_id = store.ledger().await.ledger_id.clone();
        store
            .append(Command::NewEpoch(NewEpoch {
                ledger_id: ledger_id.unwrap_or_else(|| Uuid::new_v4().to_string()),
                boot_id: Uuid::new_v4().to_string(),
                pid: std::process::id(),
                host: crate::engine::host_name(),
                at: Utc::now(),
            }))
            .await?;
        let epoch = store.ledger().await.current_epoch();
        for command in commands(epoch) {
            store.append(command).await?;
        }
        Ok(())
    }
    .await;
    store.close().await;
    result.map_err(failed)
}
