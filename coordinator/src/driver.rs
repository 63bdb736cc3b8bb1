//! Carries out what [`decide`] decides, until the run is complete, fails or is stopped.
//!
//! ```text
//!      ┌──────────── ledger ◀─────────────┐
//!      ▼                                  │ facts
//!   decide ─▶ jobs ─▶ run_task, recover, commit_run
//! ```

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use indexmap::IndexMap;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use weir_connectors::{ConnectorError, ErrorKind, Manifest, Recovery};
use weir_executor::{CommitLog, CommitLogError, RunFolder, Task, TaskError, TaskOutcome};
use weir_ledger::{
    Command, CommitDone, CommitLost, FailAttempt, FinishExchange, LoseAttempt, LoseOutputs,
    OpenIntent, Rejection, RunCommitDone, RunCommitIntent, SliceAttempt, SliceState, StartAttempt,
};
use weir_plan::{Holder, Stage, StageGraph, StageId, StageOutput};

use crate::RunEvent;
use crate::commit_log::LedgerCommitLog;
use crate::decide::{Job, decide};
use crate::limits::{Moment, exceeded_limit};
use crate::progress_files::read_manifests;
use crate::retry::{retrying, task_delay_after};
use crate::session::{Failure, OpenSink, Session};
use crate::store::StoreError;
use crate::surroundings::now;
use crate::workers::{Slot, TaskContext, WorkError, Workers};

/// Tasks that were asked to stop commit what they have read; after this time they are dropped, which
/// costs them their open batch.
const LONGEST_STOP: Duration = Duration::from_secs(15);

/// Deciding takes at most the n-th part of the driver's time.
const SHARE_OF_DECIDING: u32 = 5;

/// Between two attempts to read what another executor keeps.
const BETWEEN_READS: Duration = Duration::from_secs(1);

/// After so many lost executors in a row without a commit, a slice is given up.
const MOST_LOSSES: u32 = 20;

/// The work on one run's jobs.
pub(crate) struct Driver<'session> {
    session: &'session Session,
    stages: Vec<Arc<Stage>>,
    sinks: &'session IndexMap<StageId, OpenSink>,
    folder: RunFolder,
    workers: Arc<dyn Workers>,
    log: Arc<dyn CommitLog>,
    progress: mpsc::UnboundedSender<weir_executor::ProgressEvent>,
    /// Stops the tasks, when the session is stopped or the run has failed.
    stop_tasks: CancellationToken,
    running: JoinSet<JobEnd>,
    ids: HashMap<tokio::task::Id, Job>,
    busy: BTreeSet<Job>,
    announced: BTreeSet<StageId>,
    /// No decision before then.
    rest_until: Instant,
    /// Set once; nothing is begun afterwards.
    ending: Option<Ending>,
}

struct Ending {
    failure: Failure,
    drop_at: Instant,
}

/// What a job has come to. Facts that only the driver may put down are still open.
enum JobEnd {
    Attempt {
        task: SliceAttempt,
        result: Result<TaskOutcome, WorkError>,
    },
    /// Its exchange is in the ledger.
    Exchanged {
        stage: StageId,
    },
    /// The slice is to be computed again; nobody wants this attempt's result.
    Superseded,
    /// The ledger could not be written.
    NotAppended(StoreError),
    Recover {
        command: Result<Command, ConnectorError>,
        stage: StageId,
    },
    CommitRun {
        stage: StageId,
        result: Result<(), ConnectorError>,
    },
}

impl<'session> Driver<'session> {
    pub(crate) fn new(
        session: &'session Session,
        graph: &StageGraph,
        sinks: &'session IndexMap<StageId, OpenSink>,
        workers: Arc<dyn Workers>,
    ) -> Self {
        let folder = session.files.run(&session.run);
        let (progress, mut received) = mpsc::unbounded_channel();
        let events = session.events.clone();
        tokio::spawn(async move {
            while let Some(event) = received.recv().await {
                // Nobody may be watching.
                let _ = events.send(RunEvent::Progress(event));
            }
        });
        Self {
            session,
            stages: graph.stages.iter().cloned().map(Arc::new).collect(),
            sinks,
            log: Arc::new(LedgerCommitLog::new(
                Arc::clone(&session.store),
                &session.frozen.spec,
                &folder,
            )),
            folder,
            workers,
            progress,
            stop_tasks: session.stop.child_token(),
            running: JoinSet::new(),
            ids: HashMap::new(),
            busy: BTreeSet::new(),
            announced: BTreeSet::new(),
            rest_until: Instant::now(),
            ending: None,
        }
    }

    /// Returns once every sink shows all rows; or with the first failure, after all tasks have
    /// stopped.
    pub(crate) async fn drive(mut self) -> Result<(), Failure> {
        loop {
            if self.ending.is_none()
                && let Err(failure) = self.give_up_lost_outputs().await
            {
                self.end(failure);
            }
            let mut wake_at = None;
            if self.session.stop.is_cancelled() {
                // Whatever else has ended meanwhile.
                self.end(Failure::Stopped);
            }
            // Looked at once: executors come and go.
            let slots = self.workers.capacity();
            let mut is_waiting = slots == 0;
            if self.ending.is_none() {
                let started = Instant::now();
                let decision = {
                    let ledger = self.session.store.ledger().await;
                    let run = ledger.run(&self.session.run).expect("the run is in the ledger");
                    decide(run, self.session.epoch, slots, &self.busy, now())
                };
                if decision.is_complete && self.busy.is_empty() {
                    return Ok(());
                }
                for job in decision.jobs {
                    if self.ending.is_some() {
                        break;
                    }
                    match self.begin(job).await {
                        Ok(has_begun) => is_waiting |= !has_begun,
                        Err(failure) => self.end(failure),
                    }
                }
                wake_at = decision.wake_at;
                self.rest_until = started + started.elapsed() * SHARE_OF_DECIDING;
            }
            if self.busy.is_empty() {
                if let Some(ending) = self.ending {
                    return Err(ending.failure);
                }
                if wake_at.is_none() && !is_waiting {
                    return Err(Failure::Run(
                        "nothing is left to be done, and yet the run is not complete; this is a \
                         defect of Weir, please report it"
                            .to_owned(),
                    ));
                }
            }
            self.wait(wake_at).await;
            self.rest().await;
        }
    }

    /// What executors had kept is gone with them.
    async fn give_up_lost_outputs(&self) -> Result<(), Failure> {
        let session = self.session;
        let is_lost = |holder: &Holder| self.workers.is_lost(holder);
        // What is computed again needs its own inputs, which nobody had to read any more before.
        loop {
            let outputs = session.with_facts(|facts| facts.lost_outputs(&is_lost)).await;
            if outputs.is_empty() {
                return Ok(());
            }
            tracing::warn!(
                outputs = outputs.len(),
                "what lost executors had kept is computed again"
            );
            let run = session.run.clone();
            let lose = LoseOutputs { epoch: session.epoch, run, outputs };
            session.append(Command::LoseOutputs(lose)).await?;
        }
    }

    /// Deals with what ends meanwhile. To decide about many slices takes its time; for every task that
    /// ends it would take most of it.
    async fn rest(&mut self) {
        while self.ending.is_none() && Instant::now() < self.rest_until {
            tokio::select! {
                biased;
                Some(ended) = self.running.join_next_with_id() => self.ended(ended).await,
                () = tokio::time::sleep_until(self.rest_until) => return,
                () = self.session.stop.cancelled() => return,
            }
        }
    }

    /// Waits for the next thing to happen, and deals with it.
    async fn wait(&mut self, wake_at: Option<DateTime<Utc>>) {
        let until_wake = wake_at.map(|at| (at - now()).to_std().unwrap_or_default());
        let drop_at = self.ending.as_ref().map(|ending| ending.drop_at);
        tokio::select! {
            biased;
            Some(ended) = self.running.join_next_with_id() => {
                self.ended(ended).await;
                while let Some(ended) = self.running.try_join_next_with_id() {
                    self.ended(ended).await;
                }
            }
            () = tokio::time::sleep(until_wake.unwrap_or_default()), if until_wake.is_some() => {}
            () = self.workers.changed(), if drop_at.is_none() => {}
            () = self.session.stop.cancelled(), if drop_at.is_none() => self.end(Failure::Stopped),
            () = tokio::time::sleep_until(drop_at.unwrap_or_else(Instant::now)),
                if drop_at.is_some() =>
            {
                tracing::warn!(tasks = self.busy.len(), "tasks that did not stop are dropped");
                self.running.shutdown().await;
                self.busy.clear();
            }
        }
    }

    /// The first reason counts; tasks stop at their next commit.
    fn end(&mut self, failure: Failure) {
        self.stop_tasks.cancel();
        // Work that is cut short by a stop ends with errors of its own.
        let failure = if self.session.stop.is_cancelled() { Failure::Stopped } else { failure };
        if self.ending.is_none() {
            self.ending = Some(Ending { failure, drop_at: Instant::now() + LONGEST_STOP });
        }
    }

    /// Whether there was a place for it.
    async fn begin(&mut self, job: Job) -> Result<bool, Failure> {
        let handle = match job {
            Job::Attempt { stage, slice } => {
                let Some(slot) = self.workers.take_slot() else { return Ok(false) };
                self.begin_attempt(slot, stage, slice).await
            }
            Job::Recover { stage, slice } => match self.begin_recovery(stage, slice).await {
                Some(handle) => handle,
                None => return Ok(false),
            },
            Job::CommitRun { stage } => self.begin_run_commit(stage).await?,
        };
        self.ids.insert(handle.id(), job);
        self.busy.insert(job);
        Ok(true)
    }

    async fn begin_attempt(
        &mut self,
        slot: Box<dyn Slot>,
        stage_id: StageId,
        slice: u32,
    ) -> tokio::task::AbortHandle {
        let session = self.session;
        let stage = Arc::clone(self.stage(stage_id));
        let (attempts, mut start, inputs, sessions) = session
            .with_facts(|facts| {
                let slice = facts.slice(stage_id, slice).expect("decided from these facts");
                let inputs = (stage.inputs.iter())
                    .filter_map(|input| Some((*input, facts.stage(*input)?.exchange()?)))
                    .collect();
                (slice.attempts, slice.start(), inputs, facts.sessions)
            })
            .await;
        let attempt = SliceAttempt {
            epoch: session.epoch,
            run: session.run.clone(),
            stage: stage_id,
            slice,
            attempt: attempts + 1,
        };
        self.announce(&stage);
        if forgets_positions() && sessions > 1 {
            start.position = None;
        }
        let task = Task {
            run: session.run.0.clone(),
            pipeline: session.frozen.pipeline.clone(),
            stage: Arc::clone(&stage),
            slice,
            attempt: attempt.attempt,
            epoch: session.epoch,
            start,
            inputs,
            prepared: self.sinks.get(&stage_id).map(|sink| sink.prepared.clone()),
        };
        let span =
            tracing::info_span!("task", stage = stage.name, slice, attempt = attempt.attempt);
        let context = TaskContext {
            log: Arc::clone(&self.log),
            progress: self.progress.clone(),
            stop: self.stop_tasks.clone(),
        };
        let workers = Arc::clone(&self.workers);
        let store = Arc::clone(&session.store);
        // What many tasks append at the same time becomes one entry.
        let work = async move {
            let begin = StartAttempt { task: attempt.clone() };
            if let Err(error) = store.append(Command::StartAttempt(begin)).await {
                return JobEnd::NotAppended(error);
            }
            let result = workers.run(slot, task, context).await;
            if let Err(WorkError::Task(TaskError::InputLost { .. })) = &result {
                // It is about to be known that the executor is lost, or the network is back.
                tokio::time::sleep(BETWEEN_READS).await;
            }
            let Ok(TaskOutcome::Exchanged { output, account }) = result else {
                return JobEnd::Attempt { task: attempt, result };
            };
            let stage = attempt.stage;
            let finish = FinishExchange { task: attempt, output, account };
            match store.append(Command::FinishExchange(finish)).await {
                Ok(_) => JobEnd::Exchanged { stage },
                // What it has read is gone (`LoseOutputs`), and so is its result.
                Err(StoreError::Rejected(Rejection::OldAttempt { .. })) => JobEnd::Superseded,
                Err(error) => JobEnd::NotAppended(error),
            }
        };
        self.running.spawn(work.instrument(span))
    }

    /// `None`: what a lost executor had said last has settled the batch meanwhile.
    async fn begin_recovery(
        &mut self,
        stage: StageId,
        slice: u32,
    ) -> Option<tokio::task::AbortHandle> {
        let session = self.session;
        let intent = session.with_facts(|facts| facts.slice(stage, slice)?.intent.clone()).await;
        let OpenIntent { attempt, commit, .. } = *intent?;
        let OpenSink { sink, prepared, .. } = self.sink(stage).clone();
        let (epoch, policy) = (session.epoch, session.frozen.spec.retry.clone());
        let task = SliceAttempt { epoch, run: session.run.clone(), stage, slice, attempt };
        let stop = self.stop_tasks.clone();
        Some(self.running.spawn(async move {
            let manifest = &commit.manifest;
            let sequence = manifest.sequence;
            let answer =
                retrying(&policy, &stop, || sink.recover(&prepared, manifest, attempt, epoch))
                    .await;
            let command = answer.map(|answer| match answer {
                Recovery::Published => Command::CommitDone(CommitDone { task, sequence }),
                Recovery::Lost => Command::CommitLost(CommitLost { task, sequence }),
            });
            JobEnd::Recover { command, stage }
        }))
    }

    async fn begin_run_commit(
        &mut self,
        stage: StageId,
    ) -> Result<tokio::task::AbortHandle, Failure> {
        let session = self.session;
        let facts = session.facts().await;
        if let Some(exceeded) = exceeded_limit(&session.frozen.spec, &facts, Moment::End) {
            return Err(Failure::Run(exceeded.message));
        }
        let stage_facts = facts.stage(stage).expect("decided from these facts").clone();
        let reading = read_manifests(&self.folder, stage, &stage_facts);
        let manifests: Vec<Manifest> =
            session.unless_stopped(reading).await?.map_err(Failure::Engine)?;
        let run = session.run.clone();
        let intent = RunCommitIntent { epoch: session.epoch, run, stage };
        session.append(Command::RunCommitIntent(intent)).await?;
        let OpenSink { node, sink, prepared } = self.sink(stage).clone();
        tracing::info!(sink = %node, batches = manifests.len(), "showing all rows");
        let (epoch, policy) = (session.epoch, session.frozen.spec.retry.clone());
        let stop = self.stop_tasks.clone();
        Ok(self.running.spawn(async move {
            let committing =
                retrying(&policy, &stop, || sink.commit_run(&prepared, &manifests, epoch));
            JobEnd::CommitRun { stage, result: committing.await }
        }))
    }

    async fn ended(&mut self, ended: Result<(tokio::task::Id, JobEnd), JoinError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        if let Some(job) = self.ids.remove(&id) {
            self.busy.remove(&job);
        }
        let settled = match ended {
            Ok((_, end)) => self.settle(end).await,
            Err(error) => Err(Failure::Run(format!(
                "a job ended without a result ({error}); this is a defect of Weir, please report it"
            ))),
        };
        if let Err(failure) = settled {
            self.end(failure);
        }
    }

    /// Puts the result of a job into the ledger.
    async fn settle(&mut self, end: JobEnd) -> Result<(), Failure> {
        let session = self.session;
        let stage = match end {
            JobEnd::Attempt { task, result } => {
                let stage = task.stage;
                self.settle_attempt(task, result).await?;
                stage
            }
            JobEnd::Exchanged { stage } => stage,
            JobEnd::Superseded => return Ok(()),
            JobEnd::NotAppended(error) => return Err(session.store_failure(&error)),
            JobEnd::Recover { command, stage } => {
                let command = command.map_err(|error| {
                    let node = &self.sink(stage).node;
                    Failure::Run(format!("failed to ask sink `{node}` about a batch: {error}"))
                })?;
                tracing::info!(sink = %self.sink(stage).node, ?command, "recovered");
                session.append(command).await?;
                stage
            }
            JobEnd::CommitRun { stage, result } => {
                result.map_err(|error| {
                    let node = &self.sink(stage).node;
                    Failure::Run(format!("failed to show the rows of sink `{node}`: {error}"))
                })?;
                let done = RunCommitDone { epoch: session.epoch, run: session.run.clone(), stage };
                session.append(Command::RunCommitDone(done)).await?;
                return Ok(());
            }
        };
        let (exceeded, finished) = session
            .with_facts(|facts| {
                let exceeded = exceeded_limit(&session.frozen.spec, facts, Moment::Between);
                let finished = facts.stage(stage).filter(|stage| stage.are_slices_finished());
                (exceeded, finished.map(|stage| (stage.shape.name.clone(), stage.account())))
            })
            .await;
        if let Some(exceeded) = exceeded {
            return Err(Failure::Run(exceeded.message));
        }
        if let Some((name, account)) = finished {
            tracing::info!(stage = name, "stage finished");
            let (run, stage) = (session.run.0.clone(), stage.0);
            session.send(RunEvent::StageFinished { run, stage, name, account });
        }
        Ok(())
    }

    async fn settle_attempt(
        &mut self,
        task: SliceAttempt,
        result: Result<TaskOutcome, WorkError>,
    ) -> Result<(), Failure> {
        let session = self.session;
        let error = match result {
            // Is in the ledger already.
            Ok(TaskOutcome::Exchanged { .. }) => return Ok(()),
            Ok(TaskOutcome::Committed(_)) => {
                let is_finished = session
                    .with_facts(|facts| {
                        facts.slice(task.stage, task.slice)?.is_finished().then_some(())
                    })
                    .await;
                if is_finished.is_some() {
                    return Ok(());
                }
                return Err(Failure::Run(format!(
                    "slice {} of stage `{}` ended before its last batch was committed; this is a \
                     defect of Weir, please report it",
                    task.slice,
                    self.stage(task.stage).name
                )));
            }
            // The attempt stays the current one until the next session begins another.
            Ok(TaskOutcome::Stopped) => return Ok(()),
            // What a task of a whole stage has read is gone, and its slice begins again.
            Err(_)
                if self.stage(task.stage).output == StageOutput::Exchange
                    && !self.is_current(&task).await =>
            {
                return Ok(());
            }
            Err(WorkError::ExecutorLost(executor)) => {
                let error = format!("executor {executor} was lost");
                return self.settle_lost(task, error).await;
            }
            Err(WorkError::Task(error @ TaskError::InputLost { .. })) => {
                let error = session.redact(&error.to_string());
                return self.settle_lost(task, error).await;
            }
            Err(WorkError::Task(TaskError::CommitLog(CommitLogError::Refused(message)))) => {
                return Err(Failure::Run(message));
            }
            // Its epoch goes on: no other leader will fare better with this batch.
            Err(WorkError::Task(TaskError::CommitLog(error @ CommitLogError::Fenced(_))))
                if session.store.ledger().await.current_epoch() == session.epoch =>
            {
                return Err(Failure::Run(format!(
                    "the ledger refuses a batch of slice {} of stage `{}`: {error}",
                    task.slice,
                    self.stage(task.stage).name
                )));
            }
            Err(WorkError::Task(TaskError::CommitLog(error))) => {
                let message = error.to_string();
                let path = session.store.path().display().to_string();
                return Err(Failure::Engine(crate::EngineError::Ledger { path, message }));
            }
            Err(WorkError::Task(error)) if is_locked(&error) => {
                // No fault of the slice either.
                let error = session.redact(&error.to_string());
                return self.settle_lost(task, error).await;
            }
            Err(WorkError::Task(error)) => error,
        };
        let failures = session
            .with_facts(|facts| {
                facts.slice(task.stage, task.slice).map_or(0, |slice| slice.failures)
            })
            .await;
        let delay = task_delay_after(&session.frozen.spec.retry, failures + 1, &error);
        let message = session.redact(&error.to_string());
        let retry_at = delay
            .and_then(|delay| now().checked_add_signed(chrono::TimeDelta::from_std(delay).ok()?));
        let (slice, attempt) = (task.slice, task.attempt);
        let stage = self.stage(task.stage).name.clone();
        let failed = FailAttempt { task, error: message.clone(), retry_at };
        session.append(Command::FailAttempt(failed)).await?;
        let Some(delay) = delay else { return Err(Failure::Run(message)) };
        tracing::warn!(stage, slice, attempt, ?delay, error = message, "retrying");
        session.send(RunEvent::Retrying {
            run: session.run.0.clone(),
            stage,
            slice,
            attempt,
            delay,
            error: message,
        });
        Ok(())
    }

    /// Another executor goes on behind the last commit. No fault of the slice, unless it keeps
    /// happening: a task may be what ends them.
    async fn settle_lost(&mut self, task: SliceAttempt, error: String) -> Result<(), Failure> {
        let session = self.session;
        let losses = session
            .with_facts(|facts| facts.slice(task.stage, task.slice).map_or(0, |slice| slice.losses))
            .await
            + 1;
        let stage = self.stage(task.stage).name.clone();
        let (slice, attempt) = (task.slice, task.attempt);
        let is_last = losses >= MOST_LOSSES;
        let lost = LoseAttempt { task, error: error.clone(), is_last };
        session.append(Command::LoseAttempt(lost)).await?;
        if is_last {
            return Err(Failure::Run(format!(
                "slice {slice} of stage `{stage}` was attempted {losses} times, and nothing was committed; \
                 the last time: {error}. If executors end again and again, the task may need more memory \
                 than they have"
            )));
        }
        tracing::warn!(stage, slice, attempt, error, "executor lost");
        session.send(RunEvent::Retrying {
            run: session.run.0.clone(),
            stage,
            slice,
            attempt,
            delay: Duration::ZERO,
            error,
        });
        Ok(())
    }

    /// Whether the ledger still waits for the attempt.
    async fn is_current(&self, task: &SliceAttempt) -> bool {
        let current = self
            .session
            .with_facts(|facts| {
                let slice = facts.slice(task.stage, task.slice)?;
                let is_running =
                    matches!(slice.state, SliceState::Running { epoch } if epoch == task.epoch);
                Some(is_running && slice.attempts == task.attempt || slice.is_finished())
            })
            .await;
        current.unwrap_or(true)
    }

    fn announce(&mut self, stage: &Stage) {
        if self.announced.insert(stage.id) {
            tracing::info!(stage = stage.name, slices = stage.slice_count(), "stage started");
            self.session.send(RunEvent::StageStarted {
                run: self.session.run.0.clone(),
                stage: stage.id.0,
                name: stage.name.clone(),
                slices: stage.slice_count(),
            });
        }
    }

    fn stage(&self, stage: StageId) -> &Arc<Stage> {
        (usize::try_from(stage.0).ok().and_then(|index| self.stages.get(index)))
            .expect("the ledger's stages are the plan's")
    }

    fn sink(&self, stage: StageId) -> &OpenSink {
        self.sinks.get(&stage).expect("every stage with batches ends in a sink")
    }
}

/// Somebody who is paused, most likely, has kept it from publishing.
fn is_locked(error: &TaskError) -> bool {
    matches!(error, TaskError::Connector { source, .. } if source.kind == ErrorKind::Locked)
}

/// The negative control of the kill test: with the ledger's positions ignored, rows must appear
/// twice, or the test would prove nothing.
fn forgets_positions() -> bool {
    cfg!(debug_assertions) && std::env::var_os("WEIR_TEST_IGNORE_LEDGER").is_some()
}
