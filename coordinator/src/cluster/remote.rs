//! The executors of the cluster, as the workers of one run.

use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc::UnboundedSender;
use weir_executor::{Task, TaskOutcome};
use weir_ledger::{RunId, SliceAttempt};
use weir_plan::Holder;
use weir_proto::internal::Assign;

use super::place::NoPlace;
use super::pool::{Place, Pool, Share};
use super::wire::task_id;
use crate::RunEvent;
use crate::connection_limits::ConnectionLimit;
use crate::workers::{Slot, TaskContext, Wanted, WorkError, Workers};

/// A driver that found no place looks again after this time, so that its wish stays known.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// A task that ends sooner is not worth a second one.
const COPIES_AFTER: Duration = Duration::from_secs(5);

/// What all tasks of a run have in common.
#[derive(Clone, Debug)]
pub(super) struct RunPlace {
    pub(super) run: RunId,
    pub(super) share: Share,
    pub(super) pipeline: String,
    /// In the storage.
    pub(super) folder: String,
    pub(super) graph_hash: String,
    pub(super) base_dir: PathBuf,
    pub(super) checkpoint_every: Duration,
    /// Of the session.
    pub(super) events: UnboundedSender<RunEvent>,
}

#[derive(Debug)]
pub(super) struct RemoteWorkers {
    pub(super) pool: Arc<Pool>,
    pub(super) run: RunPlace,
}

#[derive(Debug)]
struct RemoteSlot(Place);

impl Slot for RemoteSlot {}

/// Refuses what a task reports once nobody waits for it.
struct Forget<'pool>(&'pool Pool, SliceAttempt);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.forget(&self.1);
    }
}

#[async_trait]
impl Workers for RemoteWorkers {
    fn capacity(&self) -> usize {
        self.pool.capacity_for(&self.run.share)
    }

    fn take_slot(&self, wanted: &Wanted) -> Result<Box<dyn Slot>, NoPlace> {
        let place = self.pool.take_place(&self.run.share, wanted)?;
        Ok(Box::new(RemoteSlot(place)))
    }

    fn room(&self, connections: &[ConnectionLimit]) -> usize {
        self.pool.room(connections)
    }

    fn executor_of(&self, attempt: &SliceAttempt) -> Option<String> {
        self.pool.executor_of(attempt)
    }

    fn copies_after(&self) -> Duration {
        COPIES_AFTER
    }

    fn is_lost(&self, holder: &Holder) -> bool {
        self.pool.is_lost(holder)
    }

    fn is_leaving(&self, holder: &Holder) -> bool {
        self.pool.is_leaving(holder)
    }

    async fn changed(&self) {
        let _ = tokio::time::timeout(BETWEEN_LOOKS, self.pool.changed()).await;
    }

    async fn run(
        &self,
        slot: &dyn Slot,
        task: Task,
        context: TaskContext,
    ) -> Result<TaskOutcome, WorkError> {
        let key = SliceAttempt {
            epoch: task.epoch,
            run: self.run.run.clone(),
            stage: task.stage.id,
            slice: task.slice,
            attempt: task.attempt,
        };
        let assign = self.assign(&key, &task);
        let slot = (slot as &dyn Any).downcast_ref::<RemoteSlot>();
        let RemoteSlot(place) = slot.expect("workers are given their own slots");
        let stop = context.stop.clone();
        let forget = Forget(&self.pool, key.clone());
        let (stage, slice, attempt) = (task.stage.name.clone(), task.slice, task.attempt);
        let of = || (key.run.0.clone(), stage.clone(), place.executor.clone());
        let (run, stage_name, executor) = of();
        let began = RunEvent::AttemptStarted { run, stage: stage_name, slice, attempt, executor };
        // Nobody may be watching.
        let _ = self.run.events.send(began);
        let mut ended = self.pool.assign(place, key.clone(), Arc::new(task), context, assign);
        let mut is_stopping = false;
        let result = loop {
            tokio::select! {
                biased;
                result = &mut ended => break result,
                () = stop.cancelled(), if !is_stopping => {
                    is_stopping = true;
                    self.pool.stop(&key);
                }
            }
        };
        drop(forget);
        let lost = || WorkError::ExecutorLost(place.executor.clone());
        let result = result.unwrap_or_else(|_| Err(lost()));
        let leaves = || WorkError::ExecutorLeaves(place.executor.clone());
        let result = settled(result, is_stopping, leaves);
        let error = why(&result);
        let (run, stage, executor) = of();
        let over = RunEvent::AttemptEnded { run, stage, slice, attempt, executor, error };
        let _ = self.run.events.send(over);
        result
    }
}

impl RemoteWorkers {
    fn assign(&self, key: &SliceAttempt, task: &Task) -> Assign {
        Assign {
            task: Some(task_id(key)),
            pipeline: self.run.pipeline.clone(),
            run_folder: self.run.folder.clone(),
            graph_hash: self.run.graph_hash.clone(),
            base_dir: self.run.base_dir.display().to_string(),
            checkpoint_every_millis: u64::try_from(self.run.checkpoint_every.as_millis())
                .unwrap_or(u64::MAX),
            start: to_json(&task.start),
            inputs: to_json(&task.inputs),
            prepared: task.prepared.as_ref().map(to_json).unwrap_or_default(),
        }
    }
}

/// A task that has stopped without having been asked to from here belongs to a process that leaves:
/// the slice goes on elsewhere.
fn settled(
    result: Result<TaskOutcome, WorkError>,
    is_stopping: bool,
    leaves: impl FnOnce() -> WorkError,
) -> Result<TaskOutcome, WorkError> {
    match result {
        Ok(TaskOutcome::Stopped) if !is_stopping => Err(leaves()),
        result => result,
    }
}

/// Why an attempt is not done; for people.
fn why(result: &Result<TaskOutcome, WorkError>) -> Option<String> {
    match result {
        Ok(TaskOutcome::Stopped) => Some("it was stopped".to_owned()),
        Ok(_) => None,
        Err(WorkError::ExecutorLost(_)) => Some("its executor was lost".to_owned()),
        Err(WorkError::ExecutorLeaves(_)) => Some("its executor leaves".to_owned()),
        Err(WorkError::Task(error)) => Some(error.to_string()),
    }
}

fn to_json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value)
        .expect("positions, exchanges and prepared sinks can be written as JSON")
}

#[cfg(test)]
mod tests {
    use weir_proto::internal::Hello;

    use super::*;

    #[test]
    fn a_task_of_a_process_that_leaves_is_begun_again_elsewhere() {
        let leaves = || WorkError::ExecutorLeaves("e".to_owned());
        let left = settled(Ok(TaskOutcome::Stopped), false, leaves);
        assert!(matches!(left, Err(WorkError::ExecutorLeaves(_))), "{left:?}");
        assert_eq!(why(&left).as_deref(), Some("its executor leaves"), "nothing was lost");
        let stopped = settled(Ok(TaskOutcome::Stopped), true, leaves);
        assert!(matches!(stopped, Ok(TaskOutcome::Stopped)), "{stopped:?}");
    }
    /// What a drained executor does to its end is busy, and so its places count.
    #[test]
    fn the_places_of_a_run_that_nobody_gets_after_it_count_among_its_own() {
        let pool = Pool::new(7, Duration::from_secs(3));
        let share = Share { pipeline: "orders".to_owned(), of: "run-1".to_owned() };
        let (events, _events) = tokio::sync::mpsc::unbounded_channel();
        let run = RunPlace {
            run: RunId("run-1".to_owned()),
            share,
            pipeline: "orders".to_owned(),
            folder: "orders/runs/run-1".to_owned(),
            graph_hash: String::new(),
            base_dir: PathBuf::new(),
            checkpoint_every: Duration::from_secs(1),
            events,
        };
        let workers = RemoteWorkers { pool: Arc::clone(&pool), run };
        let hello = |name: &str| Hello {
            executor: name.to_owned(),
            boot_id: name.to_owned(),
            slots: 2,
            ..Hello::default()
        };
        let _joined = ["a", "b"].map(|name| pool.join(hello(name)).expect("joined"));
        let wanted = Wanted {
            connections: Arc::default(),
            rows: Default::default(),
            not_with: None,
            waited: Duration::ZERO,
        };
        let _slots = [(); 4].map(|()| workers.take_slot(&wanted).expect("a place"));
        pool.set_to_leave(&["a".to_owned()].into());
        assert_eq!((pool.capacity(), workers.capacity()), (2, 4));
    }
}
