//! DataFusion sessions, all with the same options: for planning, and for executing what was planned.

use std::sync::{Arc, LazyLock};

use chrono::{DateTime, Utc};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SessionState, SessionStateBuilder, TaskContext};
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::collect::plan_for_tasks;
use crate::logical::WeirQueryPlanner;
use crate::services::TaskExtension;
use crate::{PlanScope, TaskServices};

/// A context in which a decoded plan is executed.
///
/// `runtime` bounds memory and says where operators spill; `batch_rows` is the size of batches
/// between operators; `partitions` is what the plan's repartitionings were made for, and only
/// matters for operators that decide at run time.
pub fn task_context(
    services: Arc<dyn TaskServices>,
    runtime: Arc<RuntimeEnv>,
    batch_rows: usize,
    partitions: usize,
) -> Arc<TaskContext> {
    // A session of its own for each task would register some hundred functions each time.
    static FUNCTIONS: LazyLock<SessionState> =
        LazyLock::new(|| SessionStateBuilder::new().with_default_features().build());
    let config = config(partitions)
        .with_batch_size(batch_rows.max(1))
        .with_extension(Arc::new(TaskExtension(services)));
    let context = TaskContext::from(&*FUNCTIONS);
    Arc::new(context.with_session_config(config).with_runtime(runtime))
}

/// Options that a plan depends on. A change of any changes plans: it is a new engine version.
fn config(partitions: usize) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(partitions.max(1))
        .with_information_schema(false)
        .with_collect_statistics(false);
    let options = config.options_mut();
    // Scans of frozen plans must not wait for filters that another part of the plan produces.
    options.optimizer.enable_dynamic_filter_pushdown = false;
    options.optimizer.enable_topk_dynamic_filter_pushdown = false;
    options.optimizer.enable_join_dynamic_filter_pushdown = false;
    options.optimizer.enable_aggregate_dynamic_filter_pushdown = false;
    // Plain strings everywhere: sinks and exchanges know no views.
    options.execution.parquet.schema_force_view_types = false;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.parquet.pushdown_filters = true;
    options.execution.parquet.reorder_filters = true;
    config
}

/// A session that plans. `now()` is the run's `started_at`, so that a plan does not depend on when
/// it is made; without one, a pipeline that uses `now()` is not planned.
pub(crate) fn planning(partitions: usize, scope: &PlanScope) -> (SessionContext, SessionState) {
    let mut config = config(partitions);
    let rules = scope.distributed.then(|| plan_for_tasks(config.options_mut()));
    let mut builder = SessionStateBuilder::new()
        .with_config(config)
        .with_default_features()
        .with_query_planner(Arc::new(WeirQueryPlanner));
    if let Some(rules) = rules {
        builder = builder.with_physical_optimizer_rules(rules);
    }
    let state = builder.build();
    let context = SessionContext::new_with_state(state);
    let mut state = context.state();
    state.execution_props_mut().query_execution_start_time = started_at(scope);
    (context, state)
}

fn started_at(scope: &PlanScope) -> Option<DateTime<Utc>> {
    let text = scope.run.get("started_at")?.as_str()?;
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.with_timezone(&Utc))
}
