//! The DataFusion session that a task's operators run in.

use std::sync::Arc;

use datafusion::execution::{SessionStateBuilder, TaskContext};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;
use weir_plan::services::TaskExtension;
use weir_plan::{EncodedPlan, TaskServices};

use crate::failure::FailureSite;
use crate::{ExecutorEnv, TaskError};

/// A session with the run's memory and disk and the task's services.
pub(crate) fn task_context(env: &ExecutorEnv, services: Arc<dyn TaskServices>) -> Arc<TaskContext> {
    let mut config = SessionConfig::new().with_extension(Arc::new(TaskExtension(services)));
    // What a sort keeps back for merging its spills; the default would not fit a small pool.
    let per_slot = env.memory_bytes.get() / env.slots.get() as u64;
    let reservation = usize::try_from(per_slot / 32).unwrap_or(usize::MAX);
    let execution = &mut config.options_mut().execution;
    execution.sort_spill_reservation_bytes =
        execution.sort_spill_reservation_bytes.min(reservation);
    execution.collect_statistics = false;
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(Arc::clone(&env.runtime))
        .with_default_features()
        .build();
    state.task_ctx()
}

/// Decodes a frozen plan.
pub(crate) fn read_plan(
    plan: &EncodedPlan,
    env: &ExecutorEnv,
    context: &TaskContext,
    site: &FailureSite<'_>,
) -> Result<Arc<dyn ExecutionPlan>, TaskError> {
    env.systems.read_plan(plan, context).map_err(|error| site.classify(error))
}
