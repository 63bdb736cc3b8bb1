//! Which physical plans are row-wise: can go on behind any row of their one input.

use std::sync::Arc;

use datafusion::error::Result;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use weir_connectors::ScanRequest;

use crate::operators::{CountExec, ExchangeScanExec, MorselExec, SourceScanExec, ValidateExec};

/// A row-wise plan over a morsel of its input.
pub(crate) struct RowWisePlan {
    pub(crate) plan: Arc<dyn ExecutionPlan>,
    /// What is asked of the source; `None` when the input is an exchange.
    pub(crate) request: Option<ScanRequest>,
}

/// The plan over a morsel if it is row-wise: only filters, projections, `validate` and counting,
/// one partition, no limit, one leaf.
pub(crate) fn row_wise(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<RowWisePlan>> {
    if plan.output_partitioning().partition_count() != 1 || plan.fetch().is_some() {
        return Ok(None);
    }
    if let Some(source) = plan.downcast_ref::<SourceScanExec>() {
        let scan = source.scan();
        if scan.request.limit.is_some() {
            return Ok(None);
        }
        let morsel = MorselExec::new(scan.output.clone(), source.schema());
        return Ok(Some(RowWisePlan {
            plan: Arc::new(morsel),
            request: Some(scan.request.clone()),
        }));
    }
    if let Some(exchange) = plan.downcast_ref::<ExchangeScanExec>() {
        let morsel = MorselExec::new(exchange.projection.clone(), exchange.schema());
        return Ok(Some(RowWisePlan { plan: Arc::new(morsel), request: None }));
    }
    let is_row_wise = plan.is::<FilterExec>()
        || plan.is::<ProjectionExec>()
        || plan.is::<CooperativeExec>()
        || plan.is::<ValidateExec>()
        || plan.is::<CountExec>();
    let children = plan.children();
    let (true, [input]) = (is_row_wise, children.as_slice()) else { return Ok(None) };
    let Some(input) = row_wise(input)? else { return Ok(None) };
    let plan = replace_children_if_necessary(Arc::clone(plan), vec![input.plan])?;
    Ok(Some(RowWisePlan { plan, request: input.request }))
}
