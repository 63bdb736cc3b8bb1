//! Between the ledger's words and those of the executors' stream.

use weir_ledger::{RunId, SliceAttempt};
use weir_plan::StageId;
use weir_proto::internal::TaskId;

pub(super) fn task_id(task: &SliceAttempt) -> TaskId {
    TaskId {
        run: task.run.0.clone(),
        stage: task.stage.0,
        slice: task.slice,
        attempt: task.attempt,
        epoch: task.epoch,
    }
}

pub(super) fn slice_attempt(task: TaskId) -> SliceAttempt {
    SliceAttempt {
        epoch: task.epoch,
        run: RunId(task.run),
        stage: StageId(task.stage),
        slice: task.slice,
        attempt: task.attempt,
    }
}
