//! Who carries out the tasks of a run: this process, or the executors of a cluster.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use weir_executor::{
    CommitLog, ExecutorEnv, ProgressEvent, Task, TaskError, TaskOutcome, run_task,
};
use weir_ledger::SliceAttempt;
use weir_plan::Holder;

use crate::cluster::place::NoPlace;
use crate::connection_limits::{ConnectionKey, ConnectionLimit};

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
    /// It leaves, and has stopped the task at a commit.
    ExecutorLeaves(String),
}

/// What a task wants of its place.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Those that it is going to use, of which not every number of tasks may be at work.
    pub(crate) connections: Arc<[ConnectionLimit]>,
    /// Rows that it is going to read from processes of executors.
    pub(crate) rows: BTreeMap<Holder, u64>,
    /// It is a copy of a task that this executor has: only for a place that nobody else wants.
    pub(crate) not_with: Option<String>,
    /// Since it was told that there are free places, but far from these rows.
    pub(crate) waited: Duration,
}

/// A place for one task, kept until it is dropped: not before it is known what has become of the task's result.
pub(crate) trait Slot: Any + Send + Sync + fmt::Debug {}

/// Carries out the tasks of one run.
#[async_trait]
pub(crate) trait Workers: Send + Sync + fmt::Debug {
    /// Tasks that could run at once if nothing else did. A place that its task keeps, and that is for nobody afterwards,
    /// counts as well: it is one of those that are busy.
    fn capacity(&self) -> usize;

    /// A place for a task that is about to begin, if there is one now.
    fn take_slot(&self, wanted: &Wanted) -> Result<Box<dyn Slot>, NoPlace>;

    /// How many more tasks may use all of these connections.
    fn room(&self, connections: &[ConnectionLimit]) -> usize;

    /// Who works on an attempt, where others could do so as well.
    fn executor_of(&self, _attempt: &SliceAttempt) -> Option<String> {
        None
    }

    /// A task of a whole stage that takes at least so long may be done a second time beside it.
    fn copies_after(&self) -> Duration {
        Duration::MAX
    }

    /// Whether this process of an executor, and with it what it has kept, is gone for good.
    fn is_lost(&self, _holder: &Holder) -> bool {
        false
    }

    /// Whether this process of an executor waits to go until nobody needs what it keeps.
    fn is_leaving(&self, _holder: &Holder) -> bool {
        false
    }

    /// Returns when there may be a place again, or the capacity has changed.
    async fn changed(&self);

    /// Runs a task to its end. Dropping the future gives it up, like a crash.
    async fn run(
        &self,
        slot: &dyn Slot,
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
    used: Arc<Mutex<BTreeMap<ConnectionKey, u32>>>,
}

impl LocalWorkers {
    pub(crate) fn new(env: ExecutorEnv, slots: usize) -> Self {
        let free = Arc::new(Semaphore::new(slots));
        Self { env: Arc::new(env), slots, free, used: Arc::default() }
    }
}

#[derive(Debug)]
struct LocalSlot {
    _permit: OwnedSemaphorePermit,
    connections: Arc<[ConnectionLimit]>,
    used: Arc<Mutex<BTreeMap<ConnectionKey, u32>>>,
}

impl Drop for LocalSlot {
    fn drop(&mut self) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        for limit in self.connections.iter() {
            if let Some(used) = used.get_mut(&limit.connection) {
                *used -= 1;
            }
        }
    }
}

impl Slot for LocalSlot {}

#[async_trait]
impl Workers for LocalWorkers {
    fn capacity(&self) -> usize {
        self.slots
    }

    fn take_slot(&self, wanted: &Wanted) -> Result<Box<dyn Slot>, NoPlace> {
        if self.room(&wanted.connections) == 0 {
            return Err(NoPlace::Limited);
        }
        let permit = Arc::clone(&self.free).try_acquire_owned().map_err(|_| NoPlace::Full)?;
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        for limit in wanted.connections.iter() {
            *used.entry(limit.connection.clone()).or_default() += 1;
        }
        let connections = Arc::clone(&wanted.connections);
        Ok(Box::new(LocalSlot { _permit: permit, connections, used: Arc::clone(&self.used) }))
    }

    /// Of this run: another process counts its own.
    fn room(&self, connections: &[ConnectionLimit]) -> usize {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let left = connections.iter().map(|limit| {
            limit.most.saturating_sub(used.get(&limit.connection).copied().unwrap_or(0)) as usize
        });
        left.min().unwrap_or(usize::MAX)
    }

    /// A place becomes free only when a task ends, which its driver sees.
    async fn changed(&self) {
        std::future::pending().await
    }

    async fn run(
        &self,
        _slot: &dyn Slot,
        task: Task,
        TaskContext { log, progress, stop }: TaskContext,
    ) -> Result<TaskOutcome, WorkError> {
        let outcome = run_task(task, Arc::clone(&self.env), log, progress, stop).await;
        outcome.map_err(WorkError::Task)
    }
}
