//! Puts down what jobs have come to: done, to be tried again, or the end of the run.

use std::time::Duration;

use weir_connectors::ErrorKind;
use weir_executor::{CommitLogError, TaskError, TaskOutcome};
use weir_ledger::{Command, FailAttempt, LoseAttempt, RunCommitDone, SliceAttempt, SliceState};
use weir_plan::{StageId, StageOutput};

use super::{Driver, JobEnd};
use crate::RunEvent;
use crate::limits::{Moment, exceeded_limit};
use crate::retry::task_delay_after;
use crate::session::Failure;
use crate::workers::WorkError;

/// After so many lost executors in a row without a commit, a slice is given up.
const MOST_LOSSES: u32 = 20;

impl Driver<'_> {
    /// Puts the result of a job into the ledger.
    pub(super) async fn settle(&mut self, end: JobEnd) -> Result<(), Failure> {
        let session = self.session;
        let stage = match end {
            JobEnd::Attempt { task, result } => {
                let stage = task.stage;
                self.settle_attempt(task, result).await?;
                stage
            }
            JobEnd::Exchanged { stage, slice } => {
                self.end_others(stage, slice);
                stage
            }
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
            Err(WorkError::ExecutorLeaves(executor)) => {
                let error = format!("executor {executor} leaves");
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
        let now = self.clock.now();
        let retry_at = delay
            .and_then(|delay| now.checked_add_signed(chrono::TimeDelta::from_std(delay).ok()?));
        let (stage_id, slice, attempt) = (task.stage, task.slice, task.attempt);
        let stage = self.stage(stage_id).name.clone();
        let failed = FailAttempt { task, error: message.clone(), retry_at };
        session.append(Command::FailAttempt(failed)).await?;
        if self.others_go_on(stage_id, slice).await {
            tracing::warn!(stage, slice, attempt, error = message, "one of two attempts failed");
            return Ok(());
        }
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
        let stage_id = task.stage;
        let stage = self.stage(stage_id).name.clone();
        let (slice, attempt) = (task.slice, task.attempt);
        let is_last = losses >= MOST_LOSSES;
        let lost = LoseAttempt { task, error: error.clone(), is_last };
        session.append(Command::LoseAttempt(lost)).await?;
        if self.others_go_on(stage_id, slice).await {
            tracing::warn!(stage, slice, attempt, error, "one of two attempts lost");
            return Ok(());
        }
        if is_last {
            return Err(Failure::Run(format!(
                "slice {slice} of stage `{stage}` was attempted {losses} times, and nothing was committed; \
                 the last time: {error}. If executors end again and again, the task may need more memory \
                 than they have"
            )));
        }
        tracing::warn!(stage, slice, attempt, error, "goes on elsewhere");
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

    /// Whether another attempt is at work on the slice, or has finished it, so that the one that is put down as ended has
    /// cost nothing.
    async fn others_go_on(&self, stage: StageId, slice: u32) -> bool {
        let goes_on = self.session.with_facts(|facts| {
            facts.slice(stage, slice).is_some_and(|slice| {
                matches!(
                    slice.state,
                    SliceState::Running { .. } | SliceState::Copied { .. } | SliceState::Finished
                )
            })
        });
        goes_on.await
    }

    /// Whether the ledger still waits for the attempt.
    async fn is_current(&self, task: &SliceAttempt) -> bool {
        let current = self
            .session
            .with_facts(|facts| {
                let slice = facts.slice(task.stage, task.slice)?;
                Some(slice.is_at_work(task.epoch, task.attempt))
            })
            .await;
        current.unwrap_or(true)
    }
}

/// Somebody who is paused, most likely, has kept it from publishing.
fn is_locked(error: &TaskError) -> bool {
    matches!(error, TaskError::Connector { source, .. } if source.kind == ErrorKind::Locked)
}
