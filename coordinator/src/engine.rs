//! The embedded engine: takes the pipeline's lock, finds out which run is meant, and works on it.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use indexmap::IndexMap;
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use weir_executor::{Registry, Systems};
use weir_ledger::{
    CleanUpDone, Command, FinishRun, Ledger, NewEpoch, ResumeRun, RunFacts, RunId, RunOutcome,
    RunState, StartRun,
};
use weir_plan::StageGraph;
use weir_spec::{OnOverlap, PipelineName, PipelineSpec};

use crate::abandon::{Unsettled, ask_targets, finish_run_commits, open_intents, open_run_commits};
use crate::choose::{Choice, Wanted, choose, unfinished_run};
use crate::frozen::{read_frozen, spec_hash, write_frozen};
use crate::lock::{BETWEEN_ASKING, Holder, PipelineLock, interrupt};
use crate::params::complete_params;
use crate::pipeline_files::PipelineFiles;
use crate::session::{Failure, Session, Workplace, ledger_error, plan_run, remove_staging};
use crate::sources::open_given;
use crate::state_dir::{PipelineDir, StateDir};
use crate::store::{LedgerStore, StoreError};
use crate::summary::summarize;
use crate::surroundings::{new_uuid, now};
use crate::{EngineError, EngineOptions, Frozen, RunEvent, RunRequest, RunStatus, RunSummary};

/// Runs pipelines in this process.
#[derive(Debug)]
pub struct Engine {
    pub(crate) options: EngineOptions,
    pub(crate) systems: Arc<dyn Systems>,
    state: StateDir,
}

impl Engine {
    /// With the connectors of this build.
    pub async fn open(options: EngineOptions) -> Result<Self, EngineError> {
        let systems = Arc::new(Registry { context: options.context.clone() });
        Ok(Self::with_systems(options, systems))
    }

    /// With other systems than the connectors': for tests.
    pub fn with_systems(options: EngineOptions, systems: Arc<dyn Systems>) -> Self {
        let state = StateDir::new(&options.state_dir);
        Self { options, systems, state }
    }

    /// What a run would do. Asks the sources, and writes nothing.
    pub async fn plan(
        &self,
        spec: &PipelineSpec,
        request: RunRequest,
    ) -> Result<StageGraph, EngineError> {
        let params = complete_params(&spec.params, &request.params)?;
        let request = RunRequest { params, ..request };
        let ledger = self.state.pipeline(&spec.pipeline).ledger();
        let watermarks = match ledger.is_file() {
            true => LedgerStore::open_reader(&ledger)
                .await
                .map_err(|error| ledger_error(&ledger, &error))?
                .pipelines
                .remove(&spec.pipeline)
                .map(|pipeline| pipeline.watermarks)
                .unwrap_or_default(),
            false => std::collections::BTreeMap::new(),
        };
        let systems = self.systems.as_ref();
        let given = open_given(spec, &request, systems).await.map_err(|failure| {
            EngineError::Invalid(format!("source `{}`: {}", failure.node, failure.error))
        })?;
        let stop = CancellationToken::new();
        let here = Workplace::here(self.options.slots.get());
        plan_run(spec, &request, None, &watermarks, &given, systems, here, &stop).await.map_err(
            |failure| match failure {
                Failure::Invalid(message) | Failure::Run(message) => {
                    EngineError::Invalid(self.options.context.redactor.redact(&message))
                }
                Failure::Engine(error) => error,
                Failure::Stopped => EngineError::Busy("planning was stopped".to_owned()),
            },
        )
    }

    /// Runs a pipeline to its end, or goes on with a run of it that is not finished.
    ///
    /// `stop` ends the work at the next committed batch of every task ([`EngineError::Stopped`]).
    /// Dropping the future is like a crash: the next call goes on behind what is committed.
    pub async fn run(
        &self,
        spec: &PipelineSpec,
        spec_text: &str,
        request: RunRequest,
        events: UnboundedSender<RunEvent>,
        stop: CancellationToken,
    ) -> Result<RunSummary, EngineError> {
        let request = match request.resume {
            // Its values are frozen.
            Some(_) => request,
            None => {
                let params = complete_params(&spec.params, &request.params)?;
                RunRequest { params, ..request }
            }
        };
        let dir = self.state.pipeline(&spec.pipeline);
        let lock = match self.lock(spec, &dir, &events, &stop).await? {
            Locking::Ours(lock) => lock,
            Locking::Skipped => return Ok(skipped(spec, &request)),
        };
        let path = dir.ledger();
        let store = LedgerStore::open_writer(&path, lock)
            .await
            .map_err(|error| ledger_error(&path, &error))?;
        let store = Arc::new(store);
        let files = dir.files();
        let result = self.run_locked(spec, spec_text, request, events, stop, &files, &store).await;
        match Arc::try_unwrap(store) {
            Ok(store) => store.close().await,
            // A task that was dropped still has it for a moment; the file closes with the process.
            Err(_) => tracing::debug!("the ledger is still in use"),
        }
        result
    }

    #[expect(clippy::too_many_arguments, reason = "the second half of `run`")]
    pub(crate) async fn run_locked(
        &self,
        spec: &PipelineSpec,
        spec_text: &str,
        request: RunRequest,
        events: UnboundedSender<RunEvent>,
        stop: CancellationToken,
        files: &PipelineFiles,
        store: &Arc<LedgerStore>,
    ) -> Result<RunSummary, EngineError> {
        let chosen = self.choose(spec, &request, files, store).await?;
        let epoch = self.begin_epoch(store).await?;
        if let Choice::Start { abandon } = &chosen.choice {
            if let Some(unfinished) = abandon {
                self.abandon(store, files, epoch, unfinished).await?;
            }
            self.clean_up_failed(store, files, epoch, &spec.pipeline).await?;
        }
        let begun = self.begin(chosen, spec, spec_text, request, files, store, epoch).await?;
        let (run, frozen) = begun;
        let session = Session {
            files: files.clone(),
            store: Arc::clone(store),
            epoch,
            run: run.clone(),
            frozen,
            options: self.options.clone(),
            systems: Arc::clone(&self.systems),
            events,
            stop,
            cluster: None,
        };
        let span = tracing::info_span!("run", run = %run, pipeline = %spec.pipeline);
        session.work().instrument(span).await?;
        let ledger = store.ledger().await;
        let facts = ledger.run(&run).expect("the run has just ended");
        Ok(summarize(&run, facts, true))
    }

    /// Which run is meant.
    pub(crate) async fn choose(
        &self,
        spec: &PipelineSpec,
        request: &RunRequest,
        files: &PipelineFiles,
        store: &LedgerStore,
    ) -> Result<Chosen, EngineError> {
        let spec_hash = spec_hash(spec, request)?;
        let unfinished = {
            let ledger = store.ledger().await;
            unfinished_run(&ledger, &spec.pipeline).map(|(run, _)| run.clone())
        };
        let replay_of = match unfinished {
            Some(run) => read_frozen(files, &run).await.ok().and_then(|run| run.request.replay_of),
            None => None,
        };
        let wanted = Wanted {
            pipeline: &spec.pipeline,
            spec_hash: &spec_hash,
            params: &request.params,
            window: request.window,
            fresh: request.fresh,
            resume: request.resume.as_deref(),
            replay_of: replay_of.as_deref(),
        };
        let choice = choose(&*store.ledger().await, &wanted)?;
        Ok(Chosen { choice, spec_hash })
    }

    /// Takes the chosen run up, or starts it: what it was to abandon is given up by now.
    #[expect(clippy::too_many_arguments, reason = "called from two places")]
    pub(crate) async fn begin(
        &self,
        Chosen { choice, spec_hash }: Chosen,
        spec: &PipelineSpec,
        spec_text: &str,
        request: RunRequest,
        files: &PipelineFiles,
        store: &LedgerStore,
        epoch: u64,
    ) -> Result<(RunId, Frozen), EngineError> {
        if let Choice::Resume(run) = choice {
            let frozen = read_frozen(files, &run).await?;
            let (request_id, at) = (request.request_id, now());
            let resume = ResumeRun { epoch, run: run.clone(), request_id, at };
            self.append(store, Command::ResumeRun(resume)).await?;
            return Ok((run, frozen));
        }
        let at = now();
        let run = new_run_id(at);
        let frozen = Frozen {
            run: run.0.clone(),
            pipeline: spec.pipeline.to_string(),
            spec: spec.clone(),
            spec_text: spec_text.to_owned(),
            base_dir: self.options.context.base_dir.clone(),
            request: RunRequest { fresh: false, ..request.clone() },
        };
        write_frozen(files, &frozen).await?;
        let start = StartRun {
            epoch,
            run: run.clone(),
            pipeline: spec.pipeline.clone(),
            spec_hash,
            params: request.params,
            window: request.window,
            version: request.version,
            request_id: request.request_id,
            backfill: None,
            replay_of: request.replay_of.map(RunId),
            at,
        };
        self.append(store, Command::StartRun(start)).await?;
        Ok((run, frozen))
    }

    /// Waits for the pipeline's lock, or does what `concurrency.on_overlap` says instead.
    async fn lock(
        &self,
        spec: &PipelineSpec,
        dir: &PipelineDir,
        events: &UnboundedSender<RunEvent>,
        stop: &CancellationToken,
    ) -> Result<Locking, EngineError> {
        let mut told: Option<Holder> = None;
        let mut is_asked = false;
        loop {
            let holder = match PipelineLock::try_acquire(dir)? {
                Ok(lock) => return Ok(Locking::Ours(lock)),
                Err(holder) => holder,
            };
            if spec.concurrency.on_overlap == OnOverlap::Skip {
                tracing::info!(%holder, "skipped");
                return Ok(Locking::Skipped);
            }
            if told.as_ref() != Some(&holder) {
                is_asked = false;
                let _ = events.send(RunEvent::Waiting { holder: holder.to_string() });
                told = Some(holder.clone());
            }
            if spec.concurrency.on_overlap == OnOverlap::CancelRunning && !is_asked {
                // Who has just got the lock has not written its number yet: asked again.
                is_asked = interrupt(dir, &holder);
                if is_asked {
                    tracing::info!(%holder, "stopping the run that is going on");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(BETWEEN_ASKING) => {}
                () = stop.cancelled() => {
                    return Err(EngineError::Busy(format!(
                        "stopped while waiting for {holder}, which runs pipeline `{}`",
                        spec.pipeline
                    )));
                }
            }
        }
    }

    pub(crate) async fn begin_epoch(&self, store: &LedgerStore) -> Result<u64, EngineError> {
        let known = store.ledger().await.ledger_id.clone();
        let boot_id = new_uuid().to_string();
        let command = Command::NewEpoch(NewEpoch {
            ledger_id: known.unwrap_or_else(|| new_uuid().to_string()),
            boot_id: boot_id.clone(),
            pid: std::process::id(),
            host: host_name(),
            at: now(),
        });
        self.append(store, command).await?;
        own_epoch(&*store.ledger().await, &boot_id).ok_or_else(|| EngineError::Ledger {
            path: store.path().display().to_string(),
            message: "another process has taken it over meanwhile".to_owned(),
        })
    }

    async fn append(&self, store: &LedgerStore, command: Command) -> Result<(), EngineError> {
        let appended: Result<bool, StoreError> = store.append(command).await;
        appended.map(|_| ()).map_err(|error| ledger_error(store.path(), &error))
    }

    /// Gives an unfinished run up. Its committed rows stay, its staging goes: first the targets say
    /// which intended batches have landed, and show all rows of a sink that has begun to, then the ledger gives the run up, and only then is
    /// anything removed, so that a run that may still be taken up never lacks its staging.
    pub(crate) async fn abandon(
        &self,
        store: &LedgerStore,
        files: &PipelineFiles,
        epoch: u64,
        run: &RunId,
    ) -> Result<(), EngineError> {
        let Some(settled) = self.settle(store, files, epoch, run).await? else { return Ok(()) };
        self.give_up(store, epoch, &settled).await?;
        self.remove_staging(store, files, epoch, run, Some(&settled.facts)).await
    }

    /// The first part: the targets are asked, and the ledger stays as it is. Nobody else may take up the run meanwhile, nor
    /// before it is given up. `None`: there is no such run.
    pub(crate) async fn settle(
        &self,
        store: &LedgerStore,
        files: &PipelineFiles,
        epoch: u64,
        run: &RunId,
    ) -> Result<Option<Settled>, EngineError> {
        let Some(facts) = store.ledger().await.run(run).cloned() else { return Ok(None) };
        let (intents, run_commits) = (open_intents(&facts), open_run_commits(&facts));
        let mut answers = Vec::new();
        if !intents.is_empty() || !run_commits.is_empty() {
            let frozen = read_frozen(files, run).await?;
            let (spec, systems) = (&frozen.spec, self.systems.as_ref());
            let asking = ask_targets(&facts, intents, spec, run, epoch, systems, files);
            answers = asking.await.map_err(|error| self.not_abandoned(run, &error))?;
            let showing = finish_run_commits(&facts, run_commits, spec, run, epoch, systems, files);
            answers.extend(showing.await.map_err(|error| self.not_abandoned(run, &error))?);
        }
        Ok(Some(Settled { run: run.clone(), facts, answers }))
    }

    /// The second part, in the ledger alone.
    pub(crate) async fn give_up(
        &self,
        store: &LedgerStore,
        epoch: u64,
        Settled { run, facts, answers }: &Settled,
    ) -> Result<(), EngineError> {
        if !answers.is_empty() && matches!(facts.state, RunState::Failed { .. }) {
            let resume = ResumeRun { epoch, run: run.clone(), request_id: None, at: now() };
            self.append(store, Command::ResumeRun(resume)).await?;
        }
        for answer in answers {
            self.append(store, answer.clone()).await?;
        }
        let outcome = RunOutcome::Abandoned;
        let finish = FinishRun { epoch, run: run.clone(), outcome, at: now() };
        self.append(store, Command::FinishRun(finish)).await
    }

    fn not_abandoned(&self, run: &RunId, error: &Unsettled) -> EngineError {
        let message = self.options.context.redactor.redact(&error.message);
        let message = format!("run {run} cannot be given up now: {message}");
        match error.may_pass {
            true => EngineError::NoAnswer(message),
            false => EngineError::Refused(message),
        }
    }

    /// Removes the staging of runs that are over, or that nobody will take up, where that failed
    /// before.
    pub(crate) async fn clean_up_failed(
        &self,
        store: &LedgerStore,
        files: &PipelineFiles,
        epoch: u64,
        pipeline: &PipelineName,
    ) -> Result<(), EngineError> {
        let left: Vec<(RunId, RunFacts)> = left_in_staging(&*store.ledger().await, pipeline)
            .map(|(id, run)| (id.clone(), run.clone()))
            .collect();
        for (run, facts) in left {
            self.remove_staging(store, files, epoch, &run, Some(&facts)).await?;
        }
        Ok(())
    }

    pub(crate) async fn remove_staging(
        &self,
        store: &LedgerStore,
        files: &PipelineFiles,
        epoch: u64,
        run: &RunId,
        facts: Option<&RunFacts>,
    ) -> Result<(), EngineError> {
        let Some(facts) = facts.filter(|facts| !facts.cleaned_up) else { return Ok(()) };
        let removed = match read_frozen(files, run).await {
            Ok(frozen) => {
                remove_staging(facts, &frozen.spec, run, epoch, self.systems.as_ref(), files).await
            }
            // Somebody has removed the run's folder.
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = removed {
            // The target may be gone for good: that must not keep the pipeline from running.
            let error = self.options.context.redactor.redact(&error);
            tracing::warn!(%run, error, "staging of an earlier run is left");
            return Ok(());
        }
        self.append(store, Command::CleanUpDone(CleanUpDone { epoch, run: run.clone() })).await
    }
}

/// A run whose targets have said what they have of it.
#[derive(Debug)]
pub(crate) struct Settled {
    run: RunId,
    pub(crate) facts: RunFacts,
    /// What the ledger is to be told.
    answers: Vec<Command>,
}

/// Runs that are over, or that nobody will take up, and of which something may be left.
pub(crate) fn left_in_staging<'ledger>(
    ledger: &'ledger Ledger,
    pipeline: &PipelineName,
) -> impl Iterator<Item = (&'ledger RunId, &'ledger RunFacts)> {
    (ledger.runs.iter())
        // Backfills clean up after their windows themselves.
        .filter(move |(_, run)| run.pipeline == *pipeline && !run.cleaned_up)
        .filter(|(_, run)| run.backfill.is_none())
        .filter(|(_, run)| match run.state {
            RunState::Queued | RunState::Running => false,
            RunState::Failed { .. } => !run.may_have_committed() || run.is_complete(),
            RunState::Succeeded { .. } | RunState::Abandoned { .. } | RunState::Skipped { .. } => {
                true
            }
        })
}

/// The current epoch, if it is that of the process with this id.
pub(crate) fn own_epoch(ledger: &Ledger, boot_id: &str) -> Option<u64> {
    let current = ledger.epoch.as_ref().filter(|epoch| epoch.boot_id == boot_id);
    current.map(|epoch| epoch.epoch)
}

/// A run that is meant, with the hash of what it does.
pub(crate) struct Chosen {
    pub(crate) choice: Choice,
    spec_hash: String,
}

/// What comes of waiting for the pipeline's lock.
enum Locking {
    Ours(PipelineLock),
    /// Another process has it, and this one is not to wait. Other than on a cluster no run is noted: the ledger is that
    /// process's.
    Skipped,
}

fn skipped(spec: &PipelineSpec, request: &RunRequest) -> RunSummary {
    let now = now();
    RunSummary {
        run: String::new(),
        pipeline: spec.pipeline.to_string(),
        status: RunStatus::Skipped,
        started_at: now,
        ended_at: Some(now),
        params: request.params.clone(),
        window: request.window,
        version: None,
        rows_read: 0,
        rows_written: IndexMap::new(),
        dead_letters: 0,
        sessions: 0,
        error: None,
    }
}

/// Sorts by time; random enough for several in one second.
pub(crate) fn new_run_id(at: DateTime<Utc>) -> RunId {
    let random = new_uuid().simple().to_string();
    RunId(format!("{}-{}", at.format("%Y%m%d-%H%M%S"), &random[..6]))
}

pub(crate) fn host_name() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/hostname");
    read.map_or_else(|_| "localhost".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_only_that_of_the_process_that_has_begun_it() {
        let mut ledger = Ledger::default();
        assert_eq!(own_epoch(&ledger, "a"), None);
        for (index, boot_id) in [(1, "a"), (2, "b")] {
            let begin = Command::NewEpoch(NewEpoch {
                ledger_id: "ledger".to_owned(),
                boot_id: boot_id.to_owned(),
                pid: 1,
                host: String::new(),
                at: now(),
            });
            weir_ledger::apply(&mut ledger, index, &begin);
            assert_eq!(own_epoch(&ledger, boot_id), Some(index));
        }
        assert_eq!(own_epoch(&ledger, "a"), None, "it was applied, and another one came after it");
    }
}
