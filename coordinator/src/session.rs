//! One process's work on one run: plan it or take up its plan, prepare its sinks, drive its tasks,
//! end it.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::FutureExt as _;
use indexmap::IndexMap;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;
use weir_connectors::{ConnectorError, PrepareSink, PreparedSink, Sink, Source};
use weir_executor::{ExecutorEnv, ExecutorOptions, Resources, RunFolder, Systems};
use weir_ledger::{
    CleanUpDone, Command, FinishRun, PlanRun, Rejection, RunFacts, RunId, RunOutcome, RunState,
};
use weir_plan::{PlanError, PlanScope, StageGraph, StageId, StageOutput};
use weir_spec::{NodeName, PipelineSpec};

use crate::cluster::Cluster;
use crate::driver::Driver;
use crate::frozen::{read_graph, write_ended, write_graph};
use crate::limits::{Moment, exceeded_limit};
use crate::pipeline_files::PipelineFiles;
use crate::render::render_nodes;
use crate::retry::retrying;
use crate::shape::stage_shapes;
use crate::sources::{SourceFailure, describe_sources, open_given};
use crate::store::{LedgerStore, StoreError};
use crate::surroundings::{computed_beside, now};
use crate::workers::{LocalWorkers, Workers};
use crate::{Again, EngineError, EngineOptions, Frozen, RunEvent, RunRequest};

/// For so long a run that is stopped waits for a target that prepares or cleans up.
const LONGEST_FAREWELL: Duration = Duration::from_secs(5);

/// Everything that the work on one run needs.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) files: PipelineFiles,
    pub(crate) store: Arc<LedgerStore>,
    pub(crate) epoch: u64,
    pub(crate) run: RunId,
    pub(crate) frozen: Frozen,
    pub(crate) options: EngineOptions,
    pub(crate) systems: Arc<dyn Systems>,
    pub(crate) events: UnboundedSender<RunEvent>,
    pub(crate) stop: CancellationToken,
    /// Whose executors carry out the tasks; `None`: this process does.
    pub(crate) cluster: Option<Cluster>,
}

/// How the work ends early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Asked to stop; the run can go on.
    Stopped,
    /// The run has failed.
    Run(String),
    /// The run has failed because of how its pipeline is written.
    Invalid(String),
    /// The engine cannot go on; the run stays as it is in the ledger.
    Engine(EngineError),
}

/// A sink that the plan feeds.
#[derive(Clone, Debug)]
pub(crate) struct OpenSink {
    pub(crate) node: NodeName,
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) prepared: PreparedSink,
}

impl Session {
    /// Works until the run has ended or is stopped, and puts down how it ended.
    pub(crate) async fn work(&self) -> Result<(), EngineError> {
        let run = self.run.0.clone();
        let redact = |message: &str| self.options.context.redactor.redact(message);
        match self.execute().await {
            Ok(()) => {
                self.finish(RunOutcome::Succeeded).await?;
                tracing::info!("run succeeded");
                Ok(())
            }
            Err(Failure::Stopped) => {
                tracing::info!("run stopped");
                Err(EngineError::Stopped { run })
            }
            Err(Failure::Run(message)) => {
                let message = redact(&message);
                self.fail(&message).await?;
                let again = self.again().await;
                Err(EngineError::RunFailed { run, message, again })
            }
            Err(Failure::Invalid(message)) => {
                let message = redact(&message);
                self.fail(&message).await?;
                Err(EngineError::Invalid(message))
            }
            Err(Failure::Engine(error)) => {
                tracing::error!(error = redact(&error.to_string()), "run interrupted");
                Err(error)
            }
        }
    }

    async fn again(&self) -> Again {
        // A window's run that has committed nothing has left the ledger.
        let facts = self.store.ledger().await.run(&self.run).cloned();
        let Some(facts) = facts else { return Again::StartsAnew };
        match &self.frozen.request.replay_of {
            Some(run) => Again::Replays(run.clone()),
            None if facts.is_complete() => Again::WroteAll,
            None if facts.may_have_committed() => Again::GoesOn,
            None => Again::StartsAnew,
        }
    }

    async fn execute(&self) -> Result<(), Failure> {
        let given = open_given(&self.frozen.spec, &self.frozen.request, self.systems.as_ref())
            .await
            .map_err(source_failure)?;
        let graph = match self.planned_graph().await? {
            Some(graph) => Arc::new(graph),
            None => self.plan(&given).await?,
        };
        self.send(RunEvent::Planned { run: self.run.0.clone(), graph: Arc::clone(&graph) });
        self.report_resumption().await;
        let sinks = self.prepare_sinks(&graph).await?;

        let workers = self.workers(given).await?;
        Driver::new(self, &graph, &sinks, workers).drive().await?;

        // Everything is visible: what cannot be removed now is removed when the next run starts.
        if let Err(error) = self.clean_up(sinks.values()).await {
            let error = self.redact(&error);
            tracing::warn!(error, "staging of the run is left");
        }
        match exceeded_limit(&self.frozen.spec, &self.facts().await, Moment::End) {
            Some(exceeded) => Err(Failure::Run(exceeded.message)),
            None => Ok(()),
        }
    }

    async fn workers(
        &self,
        given: IndexMap<NodeName, Arc<dyn Source>>,
    ) -> Result<Arc<dyn Workers>, Failure> {
        if let Some(cluster) = &self.cluster {
            let graph_hash = self.facts().await.graph_hash.expect("the run is planned");
            let events = self.events.clone();
            return Ok(cluster.workers(&self.run, &self.frozen, graph_hash, events));
        }
        let slots = self.options.slots;
        let folder = self.files.run(&self.run);
        let memory_bytes = NonZeroU64::new(self.options.memory_bytes).unwrap_or(NonZeroU64::MIN);
        // Without a cluster files are in a folder of this machine.
        let here = folder.storage().local().unwrap_or(&self.options.state_dir);
        let spill = here.join(RunFolder::SPILL);
        let resources = Resources::new(spill, memory_bytes, slots)
            .map_err(|error| Failure::Run(error.to_string()))?;
        let env = ExecutorEnv::new(ExecutorOptions {
            folder,
            systems: Arc::clone(&self.systems),
            resources: Arc::new(resources),
            checkpoint_every: self.frozen.spec.checkpoint.every,
            given,
        });
        Ok(Arc::new(LocalWorkers::new(env, slots.get())))
    }

    /// Looks at the run's facts as they are now. Appends wait meanwhile.
    pub(crate) async fn with_facts<T>(&self, look: impl FnOnce(&RunFacts) -> T) -> T {
        let ledger = self.store.ledger().await;
        look(ledger.run(&self.run).expect("the session's run is in the ledger"))
    }

    /// A copy of the run's facts as they are now.
    pub(crate) async fn facts(&self) -> RunFacts {
        let ledger = self.store.ledger().await;
        ledger.run(&self.run).cloned().expect("the session's run is in the ledger")
    }

    pub(crate) async fn append(&self, command: Command) -> Result<bool, Failure> {
        self.store.append(command).await.map_err(|error| self.store_failure(&error))
    }

    pub(crate) fn store_failure(&self, error: &StoreError) -> Failure {
        Failure::Engine(ledger_error(self.store.path(), error))
    }

    pub(crate) fn send(&self, event: RunEvent) {
        // Nobody may be watching.
        let _ = self.events.send(event);
    }

    pub(crate) fn redact(&self, text: &str) -> String {
        self.options.context.redactor.redact(text)
    }

    async fn planned_graph(&self) -> Result<Option<StageGraph>, Failure> {
        let facts = self.facts().await;
        if let Some(version) = &facts.engine_version
            && version != StageGraph::ENGINE_VERSION
        {
            return Err(Failure::Engine(EngineError::Invalid(format!(
                "run {} was planned by {version}, and this is {}: finish it with that version, or \
                 give it up and start anew with `weir run --fresh`",
                self.run,
                StageGraph::ENGINE_VERSION
            ))));
        }
        let reading = read_graph(&self.files, &self.run, &facts);
        self.unless_stopped(reading).await?.map_err(Failure::Engine)
    }

    /// Plans the run and freezes the plan.
    async fn plan(
        &self,
        given: &IndexMap<NodeName, Arc<dyn Source>>,
    ) -> Result<Arc<StageGraph>, Failure> {
        let (facts, watermarks) = {
            let ledger = self.store.ledger().await;
            let facts = ledger.run(&self.run).cloned();
            let pipeline = ledger.pipelines.get(&self.frozen.spec.pipeline);
            (
                facts.expect("the session's run is in the ledger"),
                pipeline.map(|pipeline| pipeline.watermarks.clone()).unwrap_or_default(),
            )
        };
        let run = RunIdentity { id: &self.run.0, started_at: facts.started_at };
        let planning = plan_run(
            &self.frozen.spec,
            &self.frozen.request,
            Some(run),
            &watermarks,
            given,
            self.systems.as_ref(),
            self.workplace(),
            &self.stop,
        );
        let graph = self.unless_stopped(planning).await??;
        let graph = Arc::new(graph);
        let writing = write_graph(&self.files, &self.run, &graph);
        let graph_hash = self.unless_stopped(writing).await?.map_err(Failure::Engine)?;
        self.append(Command::PlanRun(PlanRun {
            epoch: self.epoch,
            run: self.run.clone(),
            graph_hash,
            engine_version: graph.engine_version.clone(),
            stages: stage_shapes(&graph, &self.frozen.spec, &self.frozen.request),
        }))
        .await?;
        tracing::info!(stages = graph.stages.len(), "planned");
        Ok(graph)
    }

    fn workplace(&self) -> Workplace {
        Workplace { slots: self.options.slots.get(), is_distributed: self.cluster.is_some() }
    }

    async fn report_resumption(&self) {
        let facts = self.facts().await;
        if facts.sessions < 2 {
            return;
        }
        let slices_done = facts.stages.iter().map(|stage| stage.finished_slices).sum();
        let slices = facts.stages.iter().map(|stage| stage.shape.slices).sum();
        let rows_committed = facts.committed_rows();
        tracing::info!(slices_done, slices, rows_committed, "resumed");
        self.send(RunEvent::Resumed {
            run: self.run.0.clone(),
            slices_done,
            slices,
            rows_committed,
        });
    }

    /// Opens every sink of the plan, and prepares those that are not prepared yet.
    async fn prepare_sinks(
        &self,
        graph: &StageGraph,
    ) -> Result<IndexMap<StageId, OpenSink>, Failure> {
        let (mut known, is_window) =
            self.with_facts(|facts| (facts.prepared.clone(), facts.backfill.is_some())).await;
        let mut sinks = IndexMap::new();
        for stage in &graph.stages {
            let StageOutput::Sink { node, sink: spec, schema } = &stage.output else { continue };
            let at_sink = |error: ConnectorError| {
                Failure::Run(format!("failed to prepare sink `{node}`: {error}"))
            };
            let sink = self.systems.open_sink(node, spec).map_err(at_sink)?;
            let prepared = match known.remove(node) {
                Some(prepared) => prepared,
                None => {
                    if self.stop.is_cancelled() {
                        return Err(Failure::Stopped);
                    }
                    let schema = schema.decode().map_err(|error| plan_failure(&error))?;
                    let identity = PrepareSink {
                        ledger_id: self.ledger_id().await,
                        pipeline: self.frozen.pipeline.clone(),
                        run: self.run.0.clone(),
                        sink: node.to_string(),
                        epoch: self.epoch,
                        has_others_beside: is_window,
                    };
                    let preparing = retrying(&self.frozen.spec.retry, &self.stop, || {
                        sink.prepare(&identity, &schema)
                    });
                    // Half of it would leave staging that nobody knows of.
                    let prepared = match self.soon_if_stopped(preparing).await? {
                        Err(_) if self.stop.is_cancelled() => return Err(Failure::Stopped),
                        prepared => prepared.map_err(at_sink)?,
                    };
                    self.keep_prepared(node, &prepared).await?;
                    prepared
                }
            };
            sinks.insert(stage.id, OpenSink { node: node.clone(), sink, prepared });
        }
        Ok(sinks)
    }

    async fn keep_prepared(&self, node: &NodeName, prepared: &PreparedSink) -> Result<(), Failure> {
        for note in &prepared.notes {
            let text = self.redact(note);
            tracing::info!(node = %node, note = text, "prepared sink");
            self.send(RunEvent::Note { run: self.run.0.clone(), node: node.clone(), text });
        }
        self.append(Command::PrepareSink(weir_ledger::PrepareSink {
            epoch: self.epoch,
            run: self.run.clone(),
            sink: node.clone(),
            prepared: prepared.clone(),
        }))
        .await?;
        Ok(())
    }

    async fn ledger_id(&self) -> String {
        let ledger = self.store.ledger().await;
        ledger.ledger_id.clone().expect("an epoch has begun")
    }

    /// Ends early when asked to stop. What is dropped then has no effect that the ledger counts on.
    pub(crate) async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = self.stop.cancelled() => Err(Failure::Stopped),
        }
    }

    /// Once stopped, what is under way at a target that answers still comes to its end.
    async fn soon_if_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::pin!(work);
        match self.unless_stopped(&mut work).await {
            Err(_) => {
                tokio::time::timeout(LONGEST_FAREWELL, work).await.map_err(|_| Failure::Stopped)
            }
            done => done,
        }
    }

    /// Removes the staging of sinks, and what only a running run needs of its folder.
    async fn clean_up(&self, sinks: impl Iterator<Item = &OpenSink>) -> Result<(), String> {
        for OpenSink { node, sink, prepared } in sinks {
            retrying(&self.frozen.spec.retry, &self.stop, || sink.clean_up(prepared, self.epoch))
                .await
                .map_err(|error| format!("failed to clean up after sink `{node}`: {error}"))?;
        }
        let done = CleanUpDone { epoch: self.epoch, run: self.run.clone() };
        let appended = self.store.append(Command::CleanUpDone(done)).await;
        appended.map_err(|error| error.to_string())?;
        // First: they take nothing more to the storage.
        if let Some(cluster) = &self.cluster {
            cluster.run_over(&self.run, &self.frozen);
            cluster.take_kept_rows(&self.files.run(&self.run), &self.run, self.epoch).await;
        }
        remove_working_files(&self.files, &self.run, &[RunFolder::EXCHANGE, RunFolder::SPILL])
            .await;
        Ok(())
    }

    /// Before a window's run ends: the ledger forgets it. Its folder keeps what it has come to.
    async fn keep_facts(&self, outcome: &RunOutcome) -> Result<(), EngineError> {
        let mut facts = self.facts().await;
        if facts.backfill.is_none() {
            return Ok(());
        }
        let at = now();
        facts.state = match outcome {
            RunOutcome::Succeeded => RunState::Succeeded { at },
            RunOutcome::Failed { error } => RunState::Failed { at, error: error.clone() },
            RunOutcome::Abandoned => RunState::Abandoned { at, error: None },
        };
        write_ended(&self.files, &self.run, &facts).await
    }

    async fn finish(&self, outcome: RunOutcome) -> Result<(), EngineError> {
        self.keep_facts(&outcome).await?;
        let command = Command::FinishRun(FinishRun {
            epoch: self.epoch,
            run: self.run.clone(),
            outcome,
            at: now(),
        });
        let appended = self.store.append(command).await;
        appended.map(|_| ()).map_err(|error| ledger_error(self.store.path(), &error))
    }

    /// Puts the failure down. Staging of a run that has committed nothing, and will therefore not be
    /// taken up again, is removed; what cannot be removed now is removed when the next run starts.
    async fn fail(&self, message: &str) -> Result<(), EngineError> {
        tracing::error!(error = message, "run failed");
        self.finish(RunOutcome::Failed { error: message.to_owned() }).await?;
        // A window's run whose staging is gone already has left the ledger.
        let facts = self.store.ledger().await.run(&self.run).cloned();
        if let Some(facts) = facts.filter(|facts| !facts.may_have_committed()) {
            let removing = remove_staging(
                &facts,
                &self.frozen.spec,
                &self.run,
                self.epoch,
                self.systems.as_ref(),
                &self.files,
            );
            // Who wants to take up the run does not wait long for that.
            let Ok(removed) = self.soon_if_stopped(removing).await else {
                tracing::warn!("staging of the failed run is left");
                return Ok(());
            };
            match removed {
                Ok(()) => {
                    let done = CleanUpDone { epoch: self.epoch, run: self.run.clone() };
                    let appended = self.store.append(Command::CleanUpDone(done)).await;
                    appended.map_err(|error| ledger_error(self.store.path(), &error))?;
                }
                Err(error) => {
                    let error = self.redact(&error);
                    tracing::warn!(error, "staging of the failed run is left");
                }
            }
        }
        Ok(())
    }
}

/// Removes the staging of a run that nobody will finish.
pub(crate) async fn remove_staging(
    facts: &RunFacts,
    spec: &PipelineSpec,
    run: &RunId,
    epoch: u64,
    systems: &dyn Systems,
    files: &PipelineFiles,
) -> Result<(), String> {
    // The plan has the sinks as they were rendered; without one nothing was prepared.
    let graph = read_graph(files, run, facts).await.map_err(|error| error.to_string())?;
    for stage in graph.iter().flat_map(|graph| &graph.stages) {
        let StageOutput::Sink { node, sink, .. } = &stage.output else { continue };
        let Some(prepared) = facts.prepared.get(node) else { continue };
        let failed =
            |error: ConnectorError| format!("failed to clean up after sink `{node}`: {error}");
        let sink = systems.open_sink(node, sink).map_err(failed)?;
        let never = CancellationToken::new();
        retrying(&spec.retry, &never, || sink.clean_up(prepared, epoch)).await.map_err(failed)?;
    }
    remove_exchanges(&files.run(run), epoch).await;
    remove_working_files(files, run, &[RunFolder::SPILL]).await;
    Ok(())
}

/// Exchanges of this epoch's attempts and of earlier ones. Who removes them may have been replaced meanwhile, without
/// having noticed, and the run may go on: what it computes now has a later epoch in its name.
async fn remove_exchanges(folder: &RunFolder, epoch: u64) {
    // As below.
    let storage = folder.storage().clone().hasty();
    let removed = async {
        let names = storage.list(RunFolder::EXCHANGE).await?;
        let outputs = names.iter().filter_map(|name| {
            let (output, _partition) = name.rsplit_once('/')?;
            let (_, file_id) = output.rsplit_once('/')?;
            let of: u64 = file_id.split('-').nth(1)?.parse().ok()?;
            (of <= epoch).then(|| output.to_owned())
        });
        for output in outputs.collect::<std::collections::BTreeSet<_>>() {
            storage.delete_all(&output).await?;
        }
        Ok::<_, std::io::Error>(())
    };
    if let Err(error) = removed.await {
        let path = storage.shown(RunFolder::EXCHANGE);
        tracing::warn!(path, %error, "exchanges are left");
    }
}

/// Exchanges and spilled rows: large, and of no use once the run is over.
async fn remove_working_files(files: &PipelineFiles, run: &RunId, names: &[&str]) {
    let folder = files.run(run);
    // The run is over, and nobody waits for this.
    let storage = folder.storage().clone().hasty();
    for name in names {
        if let Err(error) = storage.delete_all(name).await {
            let path = storage.shown(name);
            tracing::warn!(path, %error, "working files are left");
        }
    }
}

/// The run for which templates are rendered.
pub(crate) struct RunIdentity<'run> {
    pub(crate) id: &'run str,
    pub(crate) started_at: DateTime<Utc>,
}

/// Where the tasks of a plan will run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workplace {
    /// Tasks at once.
    pub(crate) slots: usize,
    /// In several processes.
    pub(crate) is_distributed: bool,
}

impl Workplace {
    /// This process.
    pub(crate) fn here(slots: usize) -> Self {
        Self { slots, is_distributed: false }
    }
}

/// Asks the sources, and plans. Writes nothing.
#[expect(
    clippy::too_many_arguments,
    reason = "called from two places, each with all of them at hand"
)]
pub(crate) async fn plan_run(
    spec: &PipelineSpec,
    request: &RunRequest,
    run: Option<RunIdentity<'_>>,
    watermarks: &BTreeMap<NodeName, String>,
    given: &IndexMap<NodeName, Arc<dyn Source>>,
    systems: &dyn Systems,
    workplace: Workplace,
    stop: &CancellationToken,
) -> Result<StageGraph, Failure> {
    let scope = plan_scope(spec, request, run, watermarks, workplace);
    let rendered = render_nodes(spec, &scope).map_err(Failure::Invalid)?;
    let catalog = describe_sources(&rendered, watermarks, given, systems, workplace.slots, stop)
        .await
        .map_err(source_failure)?;
    // On its own: of a large pipeline that takes seconds, in which executors want to be heard.
    let planning = async move { weir_plan::plan(&rendered, &catalog, &scope).await };
    let planned = computed_beside(planning.boxed()).await;
    planned.map_err(|error| plan_failure(&error))
}

pub(crate) fn plan_scope(
    spec: &PipelineSpec,
    request: &RunRequest,
    run: Option<RunIdentity<'_>>,
    watermarks: &BTreeMap<NodeName, String>,
    workplace: Workplace,
) -> PlanScope {
    let text = |name: &str, value: String| (name.to_owned(), Value::String(value));
    let mut run_values = BTreeMap::from([text("pipeline", spec.pipeline.to_string())]);
    let identity = run.unwrap_or(RunIdentity { id: "preview", started_at: now() });
    run_values.extend([
        text("id", identity.id.to_owned()),
        text("started_at", identity.started_at.to_rfc3339()),
    ]);
    PlanScope {
        params: request.params.clone(),
        run: run_values,
        window: (request.window.iter())
            .flat_map(|(start, end)| {
                [text("start", start.to_rfc3339()), text("end", end.to_rfc3339())]
            })
            .collect(),
        state: (watermarks.iter())
            .map(|(node, value)| (node.to_string(), Value::String(value.clone())))
            .collect(),
        parallelism: workplace.slots,
        distributed: workplace.is_distributed,
    }
}

fn plan_failure(error: &PlanError) -> Failure {
    match error {
        PlanError::Node { .. } => Failure::Invalid(error.to_string()),
        PlanError::Engine { .. } => Failure::Run(error.to_string()),
    }
}

fn source_failure(SourceFailure { node, error }: SourceFailure) -> Failure {
    Failure::Run(format!("failed to read source `{node}`: {error}"))
}

/// A ledger that cannot be used is one thing, a command that does not fit its facts another: that one is
/// the affair of who sent it, unless the right to write is lost.
pub(crate) fn ledger_error(path: &std::path::Path, error: &StoreError) -> EngineError {
    match error {
        StoreError::Rejected(Rejection::OldEpoch { .. } | Rejection::OtherLedger { .. }) => {}
        StoreError::Rejected(rejection) => return EngineError::Refused(rejection.to_string()),
        // No leader could note it.
        StoreError::TooLarge { .. } => return EngineError::Invalid(error.to_string()),
        _ => {}
    }
    EngineError::Ledger { path: path.display().to_string(), message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use weir_executor::storage::Storage;

    use super::*;

    #[tokio::test]
    async fn who_was_replaced_leaves_what_the_run_computes_under_his_successor() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let run = RunFolder::new(Storage::folder(folder.path()));
        for file_id in ["0-3-1", "1-7-1", "0-8-2"] {
            let name = RunFolder::exchange_file(StageId(2), file_id, 0);
            run.storage().put(&name, "rows").await.expect("the disk has room");
        }
        remove_exchanges(&run, 7).await;
        let left = run.storage().list(RunFolder::EXCHANGE).await.expect("it can be listed");
        assert_eq!(left, [RunFolder::exchange_file(StageId(2), "0-8-2", 0)]);
    }
}
