//! The one place that calls the planner.

use weir_plan::{Catalog, PlanError, PlanScope, StageGraph};
use weir_spec::PipelineSpec;

/// Plans a rendered pipeline.
pub(crate) fn plan(
    spec: &PipelineSpec,
    catalog: &Catalog,
    scope: &PlanScope,
) -> Result<StageGraph, PlanError> {
    let _ = (catalog, scope);
    Err(PlanError::Engine {
        attempt: format!("failed to plan pipeline `{}`", spec.pipeline),
        message: "this build has no planner".to_owned(),
    })
}
