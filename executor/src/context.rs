//! The DataFusion session that a task's operators run in.

use std::sync::Arc;

use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use weir_plan::{EncodedPlan, TaskServices, session};

use crate::failure::FailureSite;
use crate::{ExecutorEnv, TaskError};

/// Rows of a batch between operators.
pub(crate) const BATCH_ROWS: usize = 8192;

/// A session with the process's memory and disk and the task's services.
pub(crate) fn task_context(env: &ExecutorEnv, services: Arc<dyn TaskServices>) -> Arc<TaskContext> {
    let resources = &env.resources;
    let (runtime, slots) = (Arc::clone(&resources.runtime), resources.slots.get());
    let context = session::task_context(services, runtime, BATCH_ROWS, slots);
    let mut config = context.session_config().clone();
    // What a sort keeps back for merging its spills; the default would not fit a small pool.
    let per_slot = resources.memory_bytes.get() / slots as u64;
    let reservation = usize::try_from(per_slot / 32).unwrap_or(usize::MAX);
    let execution = &mut config.options_mut().execution;
    execution.sort_spill_reservation_bytes =
        execution.sort_spill_reservation_bytes.min(reservation);
    let context = Arc::into_inner(context).expect("a new session is not shared yet");
    Arc::new(context.with_session_config(config))
}

/// Decodes a frozen plan.
pub(crate) fn read_plan(
    plan: &EncodedPlan,
    env: &ExecutorEnv,
    context: &TaskContext,
    site: &FailureSite<'_>,
) -> Result<Arc<dyn ExecutionPlan>, TaskError> {
    env.systems.read_plan(plan, context).map_err(|error| TaskError::Operator {
        stage: site.stage.to_owned(),
        message: error.to_string(),
    })
}
