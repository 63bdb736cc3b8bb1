//! Before a run is given up: which of its intended batches have landed?

use tokio_util::sync::CancellationToken;
use weir_connectors::{ConnectorError, Recovery};
use weir_executor::Systems;
use weir_ledger::{Command, CommitDone, CommitLost, OpenIntent, RunFacts, RunId, SliceAttempt};
use weir_plan::{StageId, StageOutput};
use weir_spec::PipelineSpec;

use crate::frozen::read_graph;
use crate::retry::retrying;
use crate::state_dir::PipelineDir;

/// Batches whose publication was intended and is not known to have happened.
pub(crate) fn open_intents(facts: &RunFacts) -> Vec<(StageId, u32, OpenIntent)> {
    (0u32..)
        .zip(&facts.stages)
        .flat_map(|(stage, stage_facts)| {
            (0u32..).zip(&stage_facts.slices).filter_map(move |(slice, slice_facts)| {
                Some((StageId(stage), slice, slice_facts.intent.clone()?))
            })
        })
        .collect()
}

/// Asks each batch's target, which also keeps a writer that is still alive from publishing it later.
/// Returns what the ledger is to be told.
pub(crate) async fn ask_targets(
    facts: &RunFacts,
    intents: Vec<(StageId, u32, OpenIntent)>,
    spec: &PipelineSpec,
    run: &RunId,
    epoch: u64,
    systems: &dyn Systems,
    dir: &PipelineDir,
) -> Result<Vec<Command>, String> {
    let graph = read_graph(dir, run, facts)
        .map_err(|error| error.to_string())?
        .ok_or_else(|| format!("run {run} has batches but no plan"))?;
    let mut answers = Vec::new();
    for (stage, slice, intent) in intents {
        let output = graph.stages.get(stage.0 as usize).map(|stage| &stage.output);
        let Some(StageOutput::Sink { node, sink, .. }) = output else {
            return Err(format!("stage {stage} of run {run} has batches but no sink"));
        };
        let prepared = facts.prepared.get(node).ok_or_else(|| {
            format!("sink `{node}` of run {run} has batches but was not prepared")
        })?;
        let failed = |error: ConnectorError| format!("failed to ask sink `{node}`: {error}");
        let opened = systems.open_sink(node, sink).map_err(failed)?;
        let never = CancellationToken::new();
        let manifest = &intent.commit.manifest;
        let answer =
            retrying(&spec.retry, &never, || opened.recover(prepared, manifest, epoch)).await;
        let task = SliceAttempt { epoch, run: run.clone(), stage, slice, attempt: intent.attempt };
        let sequence = manifest.sequence;
        answers.push(match answer.map_err(failed)? {
            Recovery::Published => Command::CommitDone(CommitDone { task, sequence }),
            Recovery::Lost => Command::CommitLost(CommitLost { task, sequence }),
        });
    }
    Ok(answers)
}
