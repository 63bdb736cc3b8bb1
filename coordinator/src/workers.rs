//! Who carries out the tasks of a run: this process, or the executors of a cluster.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use weir_executor::{
    CommitLog, ExecutorEnv, ProgressEvent, Task, TaskError, TaskOutcome, run_task,
};
use weir_plan::Holder;

/// What a task is given besides itself.
#[derive(Clone, Debug)]
pub(crate) struct TaskContext {
    pub(crate) log: Arc<dyn CommitLog>,
    pub(crate) progress: UnboundedSender<ProgressEvent>,
    /// Ends the task at its next commit.
    pub(crate) stop: CancellationToken,
}

/// How an attempt did not succeed.
#[derive(Debug)]
pub(crate) enum WorkError {
    Task(TaskError),
    /// Nobody knows how far it got. It may still be at work, and can no longer commit.
    ExecutorLost(String),
}

/// A place for one task, kept until it is dropped.
pub(crate) trait Slot: Any + Send + fmt::Debug {}

/// Carries out the tasks of one run.
#[async_trait]
pub(crate) trait Workers: Send + Sync + fmt::Debug {
    /// Tasks that could run at once if nothing else did.
    fn capacity(&self) -> usize;

    /// A place for a task that is about to begin, if there is one now.
    fn take_slot(&self) -> Option<Box<dyn Slot>>;

    /// Whether this process of an executor, and with it what it has kept, is gone for good.
    fn is_lost(&self, _holder: &Holder) -> bool {
        false
    }

    /// Returns when there may be a place again, or the capacity has changed.
    async fn changed(&self);

    /// Runs a task to its end. Dropping the future gives it up, like a crash.
    async fn run(
        &self,
        slot: Box<dyn Slot>,
        task: Task,
        context: TaskContext,
    ) -> Result<TaskOutcome, WorkError>;
}

/// This process.
#[derive(Debug)]
pub(crate) struct LocalWorkers {
    env: Arc<ExecutorEnv>,
    slots: usize,
    free: Arc<Semaphore>,
}

impl LocalWorkers {
    pub(crate) fn new(env: ExecutorEnv, slots: usize) -> Self {
        Self { env: Arc::new(env), slots, free: Arc::new(Semaphore::new(slots)) }
    }
}

#[derive(Debug)]
struct LocalSlot(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit);

impl Slot for LocalSlot {}

#[async_trait]
impl Workers for LocalWorkers {
    fn capacity(&self) -> usize {
        self.slots
    }

    fn take_slot(&self) -> Option<Box<dyn Slot>> {
        let permit = Arc::clone(&self.free).try_acquire_owned().ok()?;
        Some(Box::new(LocalSlot(permit)))
    }

    /// A place becomes free only when a task ends, which its driver sees.
    async fn changed(&self) {
        std::future::pending().await
    }

    async fn run(
        &self,
        slot: Box<dyn Slot>,
        task: Task,
        TaskContext { log, progress, stop }: TaskContext,
    ) -> Result<TaskOutcome, WorkError> {
        let outcome = run_task(task, Arc::clone(&self.env), log, progress, stop).await;
        drop(slot);
        outcome.map_err(WorkError::Task)
    }
}
