//! Before a run is given up: which of its intended batches have landed, and which of its sinks may
//! show a part of their rows?

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use weir_connectors::{ConnectorError, PreparedSink, Recovery, Sink};
use weir_executor::Systems;
use weir_ledger::{
    Command, CommitDone, CommitLost, OpenIntent, RunCommit, RunCommitDone, RunFacts, RunId,
    SliceAttempt,
};
use weir_plan::{StageGraph, StageId, StageOutput};
use weir_spec::{NodeName, PipelineSpec};

use crate::EngineError;
use crate::frozen::read_graph;
use crate::pipeline_files::PipelineFiles;
use crate::progress_files::read_manifests;
use crate::retry::retrying;

/// Why it is not known what has become of a run's batches.
#[derive(Debug)]
pub(crate) struct Unsettled {
    pub(crate) message: String,
    /// Whether the same question may be answered later.
    pub(crate) may_pass: bool,
}

impl Unsettled {
    fn defect(message: String) -> Self {
        Self { message, may_pass: false }
    }

    fn at_sink(attempt: &str, node: &NodeName, error: &ConnectorError) -> Self {
        let message = format!("failed to {attempt} sink `{node}`: {error}");
        Self { message, may_pass: error.is_retryable() }
    }
}

impl From<EngineError> for Unsettled {
    fn from(error: EngineError) -> Self {
        Self { message: error.to_string(), may_pass: error.is_unavailable() }
    }
}

/// Batches whose publication was intended and is not known to have happened.
pub(crate) fn open_intents(facts: &RunFacts) -> Vec<(StageId, u32, OpenIntent)> {
    (0u32..)
        .zip(&facts.stages)
        .flat_map(|(stage, stage_facts)| {
            (0u32..).zip(&stage_facts.slices).filter_map(move |(slice, slice_facts)| {
                Some((StageId(stage), slice, *slice_facts.intent.clone()?))
            })
        })
        .collect()
}

/// Stages whose sink was about to show all its rows at once: it may show some of them.
pub(crate) fn open_run_commits(facts: &RunFacts) -> Vec<StageId> {
    (0u32..)
        .zip(&facts.stages)
        .filter(|(_, stage)| stage.run_commit == RunCommit::Intended)
        .map(|(stage, _)| StageId(stage))
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
    files: &PipelineFiles,
) -> Result<Vec<Command>, Unsettled> {
    let graph = planned(files, run, facts).await?;
    let mut answers = Vec::new();
    for (stage, slice, intent) in intents {
        let (node, sink, prepared) = sink_of(&graph, facts, run, stage, systems)?;
        let never = CancellationToken::new();
        let manifest = &intent.commit.manifest;
        let attempt = intent.attempt;
        let answer =
            retrying(&spec.retry, &never, || sink.recover(prepared, manifest, attempt, epoch))
                .await
                .map_err(|error| Unsettled::at_sink("ask", node, &error))?;
        let task = SliceAttempt { epoch, run: run.clone(), stage, slice, attempt };
        let sequence = manifest.sequence;
        answers.push(match answer {
            Recovery::Published => Command::CommitDone(CommitDone { task, sequence }),
            Recovery::Lost => Command::CommitLost(CommitLost { task, sequence }),
        });
    }
    Ok(answers)
}

/// Shows the rest of the rows of sinks that were interrupted while they showed them: a target never
/// keeps a part of a `commit: run`. Returns what the ledger is to be told.
pub(crate) async fn finish_run_commits(
    facts: &RunFacts,
    stages: Vec<StageId>,
    spec: &PipelineSpec,
    run: &RunId,
    epoch: u64,
    systems: &dyn Systems,
    files: &PipelineFiles,
) -> Result<Vec<Command>, Unsettled> {
    let graph = planned(files, run, facts).await?;
    let folder = files.run(run);
    let mut done = Vec::new();
    for stage in stages {
        let (node, sink, prepared) = sink_of(&graph, facts, run, stage, systems)?;
        let stage_facts = facts.stage(stage).expect("taken from these facts");
        let read = read_manifests(&folder, stage, stage_facts).await;
        let manifests = read.map_err(Unsettled::from)?;
        let never = CancellationToken::new();
        retrying(&spec.retry, &never, || sink.commit_run(prepared, &manifests, epoch))
            .await
            .map_err(|error| Unsettled::at_sink("show the rows of", node, &error))?;
        done.push(Command::RunCommitDone(RunCommitDone { epoch, run: run.clone(), stage }));
    }
    Ok(done)
}

async fn planned(
    files: &PipelineFiles,
    run: &RunId,
    facts: &RunFacts,
) -> Result<StageGraph, Unsettled> {
    let graph = read_graph(files, run, facts).await?;
    graph.ok_or_else(|| Unsettled::defect(format!("run {run} has batches but no plan")))
}

/// The sink that a stage feeds, opened, with what it has agreed with its target.
fn sink_of<'run>(
    graph: &'run StageGraph,
    facts: &'run RunFacts,
    run: &RunId,
    stage: StageId,
    systems: &dyn Systems,
) -> Result<(&'run NodeName, Arc<dyn Sink>, &'run PreparedSink), Unsettled> {
    let output = graph.stages.get(stage.0 as usize).map(|stage| &stage.output);
    let Some(StageOutput::Sink { node, sink, .. }) = output else {
        let message = format!("stage {stage} of run {run} has batches but no sink");
        return Err(Unsettled::defect(message));
    };
    let prepared = (facts.prepared.get(node)).ok_or_else(|| {
        Unsettled::defect(format!("sink `{node}` of run {run} has batches but was not prepared"))
    })?;
    let opened =
        systems.open_sink(node, sink).map_err(|error| Unsettled::at_sink("open", node, &error))?;
    Ok((node, opened, prepared))
}
