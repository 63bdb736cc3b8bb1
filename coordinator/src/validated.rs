//! The columns that came into the `validate` nodes of a run, out of its frozen plan: rejected rows are
//! kept as JSON, which has fewer types than they had.

use std::sync::Arc;

use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;
use indexmap::IndexMap;
use weir_connectors::types::declared_columns;
use weir_plan::operators::ValidateExec;
use weir_plan::{PlanError, StageGraph, StageKind, decode_plan};
use weir_spec::{DeclaredColumns, NodeName};

pub(crate) fn validated_columns(
    graph: &StageGraph,
) -> Result<IndexMap<NodeName, DeclaredColumns>, PlanError> {
    let context = SessionContext::new().task_ctx();
    let mut columns = IndexMap::new();
    for stage in &graph.stages {
        let plan = match &stage.kind {
            StageKind::Streaming { plan, .. } | StageKind::Whole { plan, .. } => plan,
        };
        collect(&decode_plan(plan, &context)?, &mut columns);
    }
    Ok(columns)
}

fn collect(plan: &Arc<dyn ExecutionPlan>, columns: &mut IndexMap<NodeName, DeclaredColumns>) {
    if let Some(validate) = plan.downcast_ref::<ValidateExec>() {
        for input in validate.children() {
            columns.insert(validate.node().clone(), declared_columns(&input.schema()));
        }
    }
    for child in plan.children() {
        collect(child, columns);
    }
}
