//! Begins jobs: what a task is given, and what becomes of its result on the way into the ledger.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument;
use weir_connectors::{Manifest, Recovery};
use weir_executor::{Task, TaskError, TaskOutcome};
use weir_ledger::{
    Command, CommitDone, CommitLost, FinishExchange, OpenIntent, Rejection, RunCommitIntent,
    SliceAttempt, StartAttempt, StartCopy,
};
use weir_plan::{ExchangeOutput, StageId, StageOutput};

use super::locality::rows_kept_for;
use super::{Attempting, Begun, Driver, JobEnd};
use crate::cluster::place::NoPlace;
use crate::decide::Job;
use crate::limits::{Moment, exceeded_limit};
use crate::progress_files::read_manifests;
use crate::retry::retrying;
use crate::session::{Failure, OpenSink};
use crate::store::StoreError;
use crate::workers::{Slot, TaskContext, Wanted, WorkError};

/// Between two attempts to read what another executor keeps.
const BETWEEN_READS: Duration = Duration::from_secs(1);

impl Driver<'_> {
    pub(super) async fn begin(&mut self, job: Job) -> Result<Begun, Failure> {
        let handle = match job {
            Job::Attempt { stage, slice } => {
                let wanted = self.wanted(job, stage, slice).await;
                let slot = match self.workers.take_slot(&wanted) {
                    Ok(slot) => slot,
                    Err(why) => {
                        if why == NoPlace::Elsewhere {
                            self.waits.entry(job).or_insert_with(Instant::now);
                        }
                        return Ok(Begun::No(why));
                    }
                };
                self.waits.remove(&job);
                self.begin_attempt(slot, job, stage, slice).await
            }
            Job::Copy { stage, slice } => match self.copy_place(stage, slice).await {
                Ok(slot) => self.begin_attempt(slot, job, stage, slice).await,
                Err(why) => return Ok(Begun::No(why)),
            },
            Job::Recover { stage, slice } => match self.begin_recovery(stage, slice).await {
                Some(handle) => handle,
                None => return Ok(Begun::NotNeeded),
            },
            Job::CommitRun { stage } => self.begin_run_commit(stage).await?,
        };
        self.ids.insert(handle.id(), job);
        self.busy.insert(job);
        Ok(Begun::Yes)
    }

    pub(super) async fn wanted(&self, job: Job, stage_id: StageId, slice: u32) -> Wanted {
        let stage = self.stage(stage_id);
        let rows = match stage.inputs.is_empty() {
            true => BTreeMap::new(),
            false => self.session.with_facts(|facts| rows_kept_for(facts, stage, slice)).await,
        };
        let waited = self.waits.get(&job).map_or(Duration::ZERO, Instant::elapsed);
        Wanted {
            connections: Arc::clone(self.connections_of(stage_id)),
            rows,
            not_with: None,
            waited,
        }
    }

    async fn begin_attempt(
        &mut self,
        slot: Box<dyn Slot>,
        job: Job,
        stage_id: StageId,
        slice: u32,
    ) -> tokio::task::AbortHandle {
        let session = self.session;
        let stage = Arc::clone(self.stage(stage_id));
        let (attempts, mut start, mut inputs, sessions) = session
            .with_facts(|facts| {
                let slice = facts.slice(stage_id, slice).expect("decided from these facts");
                let inputs: BTreeMap<StageId, Vec<ExchangeOutput>> = (stage.inputs.iter())
                    .filter_map(|input| Some((*input, facts.stage(*input)?.exchange()?)))
                    .collect();
                (slice.attempts, slice.start(), inputs, facts.sessions)
            })
            .await;
        for output in inputs.values_mut().flatten() {
            // Nobody has to find out that its holder is gone, or is about to go.
            let has_stayed =
                |holder| !self.workers.is_lost(holder) && !self.workers.is_leaving(holder);
            if output.is_durable() && !output.holder.as_ref().is_some_and(has_stayed) {
                output.holder = None;
            }
        }
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
        let is_copy = matches!(job, Job::Copy { .. });
        let is_whole = stage.output == StageOutput::Exchange;
        // What many tasks append at the same time becomes one entry.
        let work = async move {
            let task_id = attempt.clone();
            let begin = match is_copy {
                false => Command::StartAttempt(StartAttempt { task: task_id }),
                true => Command::StartCopy(StartCopy { task: task_id }),
            };
            match store.append(begin).await {
                Ok(_) => {}
                // What it was to be a copy of has ended meanwhile.
                Err(StoreError::Rejected(_)) if is_copy => return JobEnd::Superseded,
                Err(error) => return JobEnd::NotAppended(error),
            }
            let result = workers.run(&*slot, task, context).await;
            if let Err(WorkError::Task(TaskError::InputLost { .. })) = &result {
                // It is about to be known that the executor is lost, or the network is back.
                tokio::time::sleep(BETWEEN_READS).await;
            }
            let Ok(TaskOutcome::Exchanged { output, account }) = result else {
                return JobEnd::Attempt { task: attempt, result };
            };
            let (stage, slice) = (attempt.stage, attempt.slice);
            let finish = FinishExchange { task: attempt, output, account };
            // With the place held: an executor that has nothing to do and that nobody needs may be sent away.
            let appended = store.append(Command::FinishExchange(finish)).await;
            drop(slot);
            match appended {
                Ok(_) => JobEnd::Exchanged { stage, slice },
                // What it has read is gone (`LoseOutputs`), and so is its result.
                Err(StoreError::Rejected(Rejection::OldAttempt { .. })) => JobEnd::Superseded,
                Err(error) => JobEnd::NotAppended(error),
            }
        };
        let handle = self.running.spawn(work.instrument(span));
        if is_whole {
            let attempting = Attempting { began: Instant::now(), handle: handle.clone() };
            self.attempts.insert(job, attempting);
        }
        handle
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
}

/// The negative control of the kill test: with the ledger's positions ignored, rows must appear
/// twice, or the test would prove nothing.
fn forgets_positions() -> bool {
    cfg!(debug_assertions) && std::env::var_os("WEIR_TEST_IGNORE_LEDGER").is_some()
}
