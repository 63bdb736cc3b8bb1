//! The tasks that run in this process.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use weir_connectors::Redactor;
use weir_plan::{Stage, StageId};
use weir_proto::internal::{Assign, TaskId};

use super::commit_log::{Call, RemoteCommitLog};
use super::runs::{OpenRun, Runs};
use crate::exchange::StoreJob;
use crate::{CommitLog, ProgressEvent, Task, TaskEnd, TaskError, TaskOutcome, run_task};

/// Carries out what a node is given to do: [`run_task`], or what a simulation has in its place.
pub trait TaskRunner: Send + fmt::Debug {
    /// The work on a task. What is wrong with the assignment is how it ends; dropping it gives it up.
    fn run(&mut self, given: GivenTask) -> BoxFuture<'static, Result<TaskOutcome, TaskError>>;

    /// Nobody will read again what is kept of the run.
    fn run_over(&mut self, run_folder: &str);

    /// Nobody will read again what is kept of other runs, apart from those that tasks have been given of.
    fn keep_only(&mut self, run_folders: &[String]);

    /// Some time has passed.
    fn tick(&mut self, now: Instant);

    /// What is to be taken to the storage now that the task has ended.
    fn to_store(&self, _task: &TaskId, _outcome: &TaskOutcome) -> Option<StoreJob> {
        None
    }
}

/// A task with its ways to the leader.
#[derive(Debug)]
pub struct GivenTask {
    pub id: TaskId,
    pub assign: Assign,
    pub log: Arc<dyn CommitLog>,
    pub events: mpsc::UnboundedSender<ProgressEvent>,
    /// Ends the task at its next commit.
    pub stop: CancellationToken,
}

/// Starts tasks, and tells how they have ended.
#[derive(Debug)]
pub(super) struct Tasks {
    pub(super) runner: Box<dyn TaskRunner>,
    redactor: Redactor,
    calls: mpsc::Sender<Call>,
    events: mpsc::UnboundedSender<ProgressEvent>,
    set: JoinSet<Result<TaskOutcome, TaskError>>,
    running: HashMap<TaskId, Running>,
    ids: HashMap<Id, TaskId>,
}

#[derive(Debug)]
struct Running {
    stop: CancellationToken,
    work: AbortHandle,
}

impl Tasks {
    pub(super) fn new(
        runner: Box<dyn TaskRunner>,
        redactor: Redactor,
        calls: mpsc::Sender<Call>,
        events: mpsc::UnboundedSender<ProgressEvent>,
    ) -> Self {
        let (running, ids) = (HashMap::new(), HashMap::new());
        Self { runner, redactor, calls, events, set: JoinSet::new(), running, ids }
    }

    /// Begins the work.
    pub(super) fn start(&mut self, id: TaskId, assign: Assign) {
        let stop = CancellationToken::new();
        let log = RemoteCommitLog { task: id.clone(), calls: self.calls.clone() };
        let key = id.clone();
        let given = GivenTask {
            id,
            assign,
            log: Arc::new(log),
            events: self.events.clone(),
            stop: stop.clone(),
        };
        let work = self.set.spawn(self.runner.run(given));
        self.ids.insert(work.id(), key.clone());
        self.running.insert(key, Running { stop, work });
    }

    /// The task shall end at its next commit.
    pub(super) fn stop(&self, task: &TaskId) {
        if let Some(running) = self.running.get(task) {
            running.stop.cancel();
        }
    }

    /// Drops the task's work, as a crash would.
    pub(super) fn abort(&mut self, task: &TaskId) {
        if let Some(running) = self.running.remove(task) {
            self.ids.remove(&running.work.id());
            running.work.abort();
        }
    }

    /// The next task that has ended by itself; `None` while there is none that could.
    pub(super) async fn next_end(&mut self) -> Option<(TaskId, TaskEnd, Option<StoreJob>)> {
        loop {
            let (id, result) = match self.set.join_next_with_id().await? {
                Ok((id, result)) => (id, Ok(result)),
                Err(error) => (error.id(), Err(error)),
            };
            // Aborted tasks are not known any more.
            let Some(task) = self.ids.remove(&id) else { continue };
            self.running.remove(&task);
            let result = result.unwrap_or_else(|error| {
                Err(TaskError::Operator {
                    stage: task.stage.to_string(),
                    message: format!(
                        "the task ended without a result ({error}); this is a defect of Weir, \
                         please report it"
                    ),
                })
            });
            if let Err(error) = &result {
                let error = self.redactor.redact(&error.to_string());
                tracing::warn!(
                    run = task.run,
                    stage = task.stage,
                    slice = task.slice,
                    error,
                    "task failed"
                );
            }
            let outcome = result.as_ref().ok();
            let kept = outcome.and_then(|outcome| self.runner.to_store(&task, outcome));
            return Some((task, TaskEnd::from_result(&result, &self.redactor), kept));
        }
    }
}

impl TaskRunner for Runs {
    fn run(&mut self, given: GivenTask) -> BoxFuture<'static, Result<TaskOutcome, TaskError>> {
        let GivenTask { id, assign, log, events, stop } = given;
        let run = self.open(&id, &assign);
        let work = async move {
            let run = run.map_err(|error| malformed(&id, &error))?;
            let stage = run.stage(StageId(id.stage)).await?;
            let OpenRun { env, .. } = run.as_ref();
            let span = tracing::info_span!(
                "task",
                run = id.run,
                stage = stage.name,
                slice = id.slice,
                attempt = id.attempt
            );
            let task = assigned_task(&id, assign, stage)?;
            run_task(task, Arc::clone(env), log, events, stop).instrument(span).await
        };
        self.threads.run(work).boxed()
    }

    fn run_over(&mut self, run_folder: &str) {
        self.forget(run_folder);
    }

    fn keep_only(&mut self, run_folders: &[String]) {
        self.forget_others(run_folders);
    }

    fn tick(&mut self, now: Instant) {
        self.drop_idle(now);
    }

    fn to_store(&self, task: &TaskId, outcome: &TaskOutcome) -> Option<StoreJob> {
        let TaskOutcome::Exchanged { output, .. } = outcome else { return None };
        self.job_of_output(task, output)
    }
}

/// What an assignment says, of a stage of the run's graph.
pub fn assigned_task(id: &TaskId, assign: Assign, stage: Arc<Stage>) -> Result<Task, TaskError> {
    let start = serde_json::from_slice(&assign.start)
        .map_err(|error| malformed(id, &format!("its start: {error}")))?;
    let inputs = serde_json::from_slice(&assign.inputs)
        .map_err(|error| malformed(id, &format!("its inputs: {error}")))?;
    let prepared = match assign.prepared.as_slice() {
        [] => None,
        json => Some(
            serde_json::from_slice(json)
                .map_err(|error| malformed(id, &format!("its sink: {error}")))?,
        ),
    };
    Ok(Task {
        run: id.run.clone(),
        pipeline: assign.pipeline,
        stage,
        slice: id.slice,
        attempt: id.attempt,
        epoch: id.epoch,
        start,
        inputs,
        prepared,
    })
}

fn malformed(id: &TaskId, error: &str) -> TaskError {
    TaskError::Operator {
        stage: id.stage.to_string(),
        message: format!(
            "the task's assignment cannot be understood ({error}); this is a defect of Weir, please \
             report it"
        ),
    }
}
