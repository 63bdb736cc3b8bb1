//! Runs one task.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;
use weir_plan::StageKind;

use crate::dead_letters::{DeadLetterBox, remove_uncommitted};
use crate::durable::storage_error;
use crate::failure::FailureSite;
use crate::folder::is_left_over;
use crate::recorder::Recorder;
use crate::storage::Storage;
use crate::streaming::run_streaming;
use crate::whole::run_whole;
use crate::{CommitLog, ExecutorEnv, ProgressEvent, RunFolder, Task, TaskError, TaskOutcome};

/// Runs a task to its end.
///
/// `stop` asks it to end early: a streaming task commits what it has read at the next position and
/// returns [`TaskOutcome::Stopped`]; where none comes within ten seconds it drops its open batch. A
/// whole task drops its work.
///
/// Dropping the future aborts the task like a crash: what has an intent may or may not be published,
/// everything else is invisible. A panic of an operator or connector is an error of the task.
pub async fn run_task(
    task: Task,
    env: Arc<ExecutorEnv>,
    log: Arc<dyn CommitLog>,
    events: UnboundedSender<ProgressEvent>,
    stop: CancellationToken,
) -> Result<TaskOutcome, TaskError> {
    let stage = task.stage.name.clone();
    let site = FailureSite::new(&stage, &env);
    let work = run_here(task, Arc::clone(&env), log, events, stop).in_current_span();
    let running = tokio::spawn(work);
    match AbortOnDropHandle::new(running).await {
        Ok(result) => result,
        Err(ended) => Err(site.ended(ended)),
    }
}

async fn run_here(
    task: Task,
    env: Arc<ExecutorEnv>,
    log: Arc<dyn CommitLog>,
    events: UnboundedSender<ProgressEvent>,
    stop: CancellationToken,
) -> Result<TaskOutcome, TaskError> {
    let site = FailureSite::new(&task.stage.name, &env);
    let dead_letters = DeadLetterBox::new(env.places.drafts(), &task);
    let recorder = Recorder::new(&task, dead_letters, events);
    remove_left_over(&task, env.folder.storage()).await?;
    match &task.stage.kind {
        StageKind::Streaming { .. } => {
            run_streaming(&task, &env, log.as_ref(), &recorder, &stop, &site).await
        }
        StageKind::Whole { .. } => run_whole(&task, &env, &recorder, &stop, &site).await,
    }
}

/// What earlier attempts have written for batches that they did not commit.
async fn remove_left_over(task: &Task, storage: &Storage) -> Result<(), TaskError> {
    remove_uncommitted(storage, task).await?;
    let progress = RunFolder::progress(task.stage.id, task.slice);
    let start = (task.attempt, task.start.next_sequence);
    let is_meant = move |name: &str| {
        ["json", "tmp"].iter().any(|extension| is_left_over(name, "", extension, start))
    };
    let removed = storage.delete_in(&progress, is_meant).await;
    removed.map_err(|cause| storage_error("remove checkpoints in", storage, &progress, cause))
}
